"""The whole pipeline on synthetic data, on a CPU: generate, prepare, train with GradDrop, evaluate, report."""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from detection3d.cli.run import run

TRAINING = (100, 4)  # segments, frames of each: streets teach more than moments
VALIDATION = (20, 3)
INTERVAL = 1.0  # seconds between frames, so that few frames show many situations
SEEDS_APART = 1000  # validation segments never share a seed with training segments


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and run every step."""
    parser = argparse.ArgumentParser(prog="demo.py", description=__doc__)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings of configs/tiny.yaml")
    parser.add_argument("--output", type=Path, default=Path("demo"), help="folder for everything (default: demo)")
    parser.add_argument("--seed", type=int, default=0, help="of the data and the training (default: 0)")
    options = parser.parse_intermixed_args(arguments)  # settings may also follow an option

    from detection3d.cli import evaluate, make_synthetic, prepare_waymo, train

    started = time.perf_counter()
    output: Path = options.output
    for split, (segments, frames), seed in (
        ("train", TRAINING, 2 * SEEDS_APART * options.seed),
        ("validation", VALIDATION, 2 * SEEDS_APART * options.seed + SEEDS_APART),
    ):
        raw, store = str(output / "raw" / split), str(output / "store" / split)
        _announce(f"{split}: {segments} segments of synthetic lidar in Waymo's format", started)
        count = ["--segments", str(segments), "--frames", str(frames), "--interval", str(INTERVAL)]
        _expect(make_synthetic.main(["--output", raw, "--rig", "tiny", "--seed", str(seed), *count]))
        _expect(prepare_waymo.main(["--input", raw, "--output", store]))
    _announce("training, with GradDrop at the fork of the three heads", started)
    settings = [f"data.train={output / 'store' / 'train'}", f"data.validation={output / 'store' / 'validation'}"]
    settings += [f"seed={options.seed}", *options.overrides]
    _expect(train.main(["tiny", *settings, "--output", str(output / "run"), "--device", "cpu"]))
    _announce("evaluating on the validation segments with Waymo's metrics", started)
    _expect(evaluate.main([str(output / "run"), "--device", "cpu"]))
    print(f"the demo took {time.perf_counter() - started:.0f} s; run it again to go on where it stopped")
    return 0


def entry() -> None:
    """Run as a console command."""
    sys.exit(run(main))


def _announce(text: str, started: float) -> None:
    print(f"\n[{time.perf_counter() - started:4.0f} s] {text}", flush=True)


def _expect(status: int) -> None:
    if status:
        sys.exit(status)
