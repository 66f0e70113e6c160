"""Time the parts of detection3d against each other, in turns within one run.

fork: whole training steps with each method at the fork against the same step without a fork. The voxel detector comes
from --config; the nets of 40 heads and the curves over tasks, channels and map size need no data. Of the detector's
steps, those that measure telemetry are timed apart; "speed" is that of a training with one of them in
--telemetry-every steps.

data: frames a second of decoding, by ours and by Waymo's own code, preparation, the store, and the loader with
augmentation.

step: a whole training step of a config, with batches that lie in memory: augmentation, voxels, targets, forward,
losses, backward, optimiser and average, as tools/train.py does them.

scaling: under torchrun, such steps of one rank alone, of all ranks, and of all with multitask.sync=none, in turns.

metrics: Waymo's metrics by our code and by Waymo's op, from files to numbers, and on as many frames as the validation
set has.
"""

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from detection3d.cli.benchmark_data import add_parser as add_data_parser
from detection3d.cli.benchmark_metrics import add_parser as add_metrics_parser
from detection3d.cli.benchmark_step import add_parsers as add_step_parsers
from detection3d.cli.run import run

if TYPE_CHECKING:
    import torch

    from detection3d.benchmark.timing import Timing
    from detection3d.multitask import Method

    Subject = Callable[[argparse.Namespace, Mapping[str, Method], torch.device], object]

SUBJECTS = ("detector", "linear", "convolution", "curves")


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, time, print and write."""
    options = _parser().parse_args(arguments)
    return options.run(options)


def _run_fork(options: argparse.Namespace) -> int:
    import torch

    from detection3d.benchmark.fork import methods
    from detection3d.cli.device import choose_device
    from detection3d.errors import UserError
    from detection3d.files import replace_file

    device = choose_device(options.device)
    torch.backends.cudnn.benchmark = options.cudnn_benchmark
    known = methods()
    unknown = [name for name in options.methods or () if name not in known]
    if unknown:
        raise UserError(f"--methods: unknown: {', '.join(unknown)}; known: {', '.join(known)}")
    chosen = {name: method for name, method in known.items() if name in (options.methods or known)}
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    result: dict[str, object] = {
        "schema_version": 1,
        "device": name,
        "torch": torch.__version__,
        "cudnn_benchmark": options.cudnn_benchmark,
    }
    print(
        f"{name}, torch {torch.__version__}, {options.rounds} rounds, telemetry every {options.telemetry_every} steps"
    )
    for subject in options.subjects:
        print(f"\n{subject}", flush=True)
        result[subject] = _SUBJECTS[subject](options, chosen, device)
        if options.output is not None:
            options.output.parent.mkdir(parents=True, exist_ok=True)
            replace_file(options.output, json.dumps(result, indent=1).encode())
    return 0


def entry() -> None:
    """Run as a console command."""
    sys.exit(run(main))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="benchmark.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parsers = parser.add_subparsers(dest="part", required=True, metavar="PART")
    add_data_parser(parsers)
    add_metrics_parser(parsers)
    add_step_parsers(parsers)
    fork = parsers.add_parser("fork", help="the methods at the fork, in whole training steps")
    fork.set_defaults(run=_run_fork)
    fork.add_argument("--subjects", nargs="+", choices=SUBJECTS, default=list(SUBJECTS))
    fork.add_argument("--methods", nargs="+", metavar="NAME", help="default: all")
    fork.add_argument("--config", default="waymo_voxel", help="of the detector (default: waymo_voxel)")
    fork.add_argument("--data", type=Path, help="a prepared store; needed for the detector")
    fork.add_argument("--batch-size", type=int, default=8, help="of the detector (default: 8)")
    fork.add_argument("--rounds", type=int, default=50)
    fork.add_argument("--telemetry-every", type=int, default=10, metavar="STEPS", help="default: 10")
    fork.add_argument(
        "--cudnn-benchmark", action="store_true", help="let cuDNN try its algorithms first, as many trainings do"
    )
    fork.add_argument("--device", help="cpu, cuda, cuda:1 ... (default: cuda where there is one)")
    fork.add_argument("--output", type=Path, metavar="FILE", help="write the figures as JSON, too")
    return parser


def _detector(options: argparse.Namespace, chosen: "Mapping[str, Method]", device: "torch.device") -> object:
    from detection3d.benchmark.detector import first_batch, time_detector
    from detection3d.benchmark.fork import BASELINE
    from detection3d.config_file import load_config
    from detection3d.errors import UserError

    if options.data is None:
        raise UserError("the detector needs --data STORE, a prepared store (tools/prepare_waymo.py makes one)")
    overrides = [
        f"training.batch_size={options.batch_size}",
        f"data.train={options.data}",
        "training.steps=1000000",
        "training.ema_decay=0",
    ]
    config = load_config(options.config, overrides)
    batch = first_batch(options.data, config, device)
    timings = time_detector(config, batch, chosen, device, rounds=options.rounds)
    baseline = timings[BASELINE].plain
    told: dict[str, dict[str, float]] = {}
    print(f"{'':22}{'step':>11}{'measured':>13}{'speed':>9}{'of measured':>13}{'of the sum':>12}")
    for name, timing in timings.items():
        mixed = timing.mixed(options.telemetry_every)
        figures = told[name] = {
            "seconds": timing.plain.median,
            "measured_seconds": timing.measured.median,
            "speed": mixed.speed(baseline),
            "measured_speed": timing.measured.speed(baseline),
        }
        to_sum = ""
        if "sum" in timings:
            figures["speed_to_sum"] = mixed.speed(timings["sum"].mixed(options.telemetry_every))
            to_sum = f"{figures['speed_to_sum']:12.3f}"
        print(
            f"{name:22}{1e3 * timing.plain.median:8.1f} ms{1e3 * timing.measured.median:10.1f} ms"
            f"{figures['speed']:9.3f}{figures['measured_speed']:13.3f}{to_sum}",
            flush=True,
        )
    return told


def _many_heads(subject: str) -> "Subject":
    def time_them(options: argparse.Namespace, chosen: "Mapping[str, Method]", device: "torch.device") -> object:
        from detection3d.benchmark.fork import CONVOLUTION, LINEAR, many_heads_steps
        from detection3d.benchmark.timing import time_in_turns

        shape = LINEAR if subject == "linear" else CONVOLUTION
        steps = many_heads_steps(shape, chosen, device, options.telemetry_every)
        calls = max(options.telemetry_every, 1)
        return _told(time_in_turns(steps, device, rounds=options.rounds, calls_a_round=calls))

    return time_them


def _curves(options: argparse.Namespace, chosen: "Mapping[str, Method]", device: "torch.device") -> object:
    from dataclasses import asdict, replace

    from detection3d.benchmark.fork import CONVOLUTION, curve
    from detection3d.multitask import GradDrop

    base = replace(CONVOLUTION, tasks=3)
    sweeps = {
        "tasks": [replace(base, tasks=count) for count in (2, 3, 5, 10, 20, 40)],
        "channels": [replace(base, channels=count) for count in (16, 32, 64, 128, 256)],
        "size": [replace(base, size=count) for count in (16, 32, 64, 128, 188)],
    }
    told: dict[str, list[dict[str, object]]] = {}
    for axis, shapes in sweeps.items():
        told[axis] = []
        rounds, every = max(options.rounds // 5, 5), options.telemetry_every
        for point in curve(shapes, GradDrop(), device, rounds=rounds, telemetry_every=every):
            overhead = point.timing.median - point.baseline.median
            speed = point.timing.speed(point.baseline)
            print(
                f"{axis:9} {getattr(point.shape, axis):4}   without {1e3 * point.baseline.median:8.3f} ms   graddrop"
                f" {1e3 * point.timing.median:8.3f} ms   overhead {1e3 * overhead:7.3f} ms   speed {speed:.3f}",
                flush=True,
            )
            told[axis].append({**asdict(point.shape), "baseline_seconds": point.baseline.median, "speed": speed})
    return told


def _told(timings: "Mapping[str, Timing]") -> dict[str, dict[str, float]]:
    """Print a table, and return its figures."""
    from detection3d.benchmark.fork import BASELINE
    from detection3d.benchmark.timing import table

    baseline = timings[BASELINE]
    print("\n".join(table(list(timings.items()), baseline)), flush=True)
    return {name: {"seconds": timing.median, "speed": timing.speed(baseline)} for name, timing in timings.items()}


_SUBJECTS: "dict[str, Subject]" = {
    "detector": _detector,
    "linear": _many_heads("linear"),
    "convolution": _many_heads("convolution"),
    "curves": _curves,
}
