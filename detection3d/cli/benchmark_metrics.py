"""The part `metrics` of the benchmark: the native metrics against Waymo's op; time and memory of a validation set."""

import argparse
import json
import tempfile
from pathlib import Path

from detection3d.cli.preparing import positive


def add_parser(parsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the part and its options."""
    parser = parsers.add_parser("metrics", help="the metrics, native and by Waymo's op, from files to numbers")
    parser.add_argument(
        "--official",
        type=Path,
        metavar="PYTHON",
        help="interpreter of the evaluation environment (docker/evaluation_environment.sh): evaluate by Waymo's op, "
        "too, in turns with ours",
    )
    parser.add_argument("--frames", type=positive, default=2000, help="to compare the two with (default: 2000)")
    parser.add_argument("--rounds", type=positive, default=3, help="turns of each (default: 3)")
    parser.add_argument(
        "--scale", type=int, default=40_000, metavar="FRAMES", help="of a validation set; 0 leaves it out"
    )
    parser.add_argument("--format", choices=["parquet", "bin"], default="parquet", help="of the files")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the figures as JSON, too")
    parser.set_defaults(run=run_metrics)


def run_metrics(options: argparse.Namespace) -> int:
    """Time what was asked for, print and write; returns the exit status."""
    import sys

    from detection3d.benchmark.metrics import compare, medians, take_turn, write_frames
    from detection3d.benchmark.metrics_frames import DETECTIONS, OBJECTS
    from detection3d.data.preparation_pool import available_cores
    from detection3d.files import replace_file

    content: dict[str, object] = {"schema_version": 1, "cores": available_cores()}
    print(f"{available_cores()} cores; frames of {DETECTIONS} detections and {OBJECTS} objects, OBJECT_TYPE and RANGE")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = write_frames(folder, options.frames, f".{options.format}")
        turns: dict[str, list] = {}
        for backend, turn in compare(files, options.official, options.rounds):
            turns.setdefault(backend, []).append(turn)
            print(
                f"{backend:9} {turn.whole:7.2f} s from start to end, {turn.read:6.2f} s reading, "
                f"{turn.evaluate:6.2f} s evaluating, {turn.peak_bytes / 1e9:.2f} GB",
                flush=True,
            )
        figures = {backend: medians(of_backend) for backend, of_backend in turns.items()}
        content["comparison"] = {"frames": options.frames, "rounds": options.rounds, **figures}
        if "official" in figures:
            ratios = {key: figures["official"][key] / figures["native"][key] for key in figures["native"]}
            content["times_as_fast"] = {key: ratios[key] for key in ratios if key.endswith("_s")}
            content["official_versions"] = turns["official"][0].versions
            print(
                f"native is {ratios['whole_s']:.1f} times as fast with start-up, {ratios['read_and_evaluate_s']:.1f} "
                f"times without, {ratios['evaluate_s']:.1f} times in evaluating alone; numbers are equal"
            )
        empty = folder / "cache"
        empty.mkdir()
        cold = take_turn(Path(sys.executable), "native", files, empty)
        content["first_time_s"] = cold.whole
        print(f"native, the first time, with all compilation: {cold.whole:.1f} s from start to end")
        if options.scale:
            files = write_frames(folder, options.scale, f".{options.format}")
            turn = take_turn(Path(sys.executable), "native", files)
            content["scale"] = {"frames": options.scale, **medians([turn])}
            print(
                f"{options.scale:,} frames: {turn.whole:.1f} s from start to end, {turn.read:.1f} s reading, "
                f"{turn.evaluate:.1f} s evaluating, {turn.peak_bytes / 1e9:.2f} GB at most"
            )
    if options.output is not None:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        replace_file(options.output, json.dumps(content, indent=1).encode())
    return 0
