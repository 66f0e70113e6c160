"""Look at recordings, prepared stores, and what the augmentation makes of them."""

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detection3d.cli.preparing import metres, positive
from detection3d.cli.run import run
from detection3d.errors import UserError

if TYPE_CHECKING:
    from detection3d.cli.inspect_sources import PreparedData, RawData
    from detection3d.cli.inspect_tables import Findings
    from detection3d.config import Config
    from detection3d.data.checking import Evidence
    from detection3d.data.frame_summary import FrameSummary
    from detection3d.data.statistics import Statistics
    from detection3d.types.scene import Frame

SCHEMA_VERSION = 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Show what is in a data set; returns the exit status, 0 also where there are warnings.

    Raises:
        UserError: the input or a setting can't be used.
    """
    options = _parser().parse_args(arguments)

    from rich.console import Console

    from detection3d.cli.inspect_sources import PreparedData, recognise
    from detection3d.cli.inspect_tables import Findings, print_statistics
    from detection3d.config_file import load_config
    from detection3d.data.checking import judge
    from detection3d.data.data_checks import check_data
    from detection3d.data.statistics import collect_statistics

    overrides = [] if options.seed is None else [f"seed={options.seed}"]
    config = load_config(options.augmented or options.config, overrides)
    data = recognise(options.data)
    if options.augmented is not None and not isinstance(data, PreparedData):
        raise UserError(f"{options.data}: it is {data.kind}; --augmented takes a prepared store, as training does")
    if options.output is not None:
        options.output.mkdir(parents=True, exist_ok=True)
    seen = list(_look(data, options, config))
    if not seen:
        raise UserError(f"{options.data}: it is {data.kind}, but it holds no frames")
    summaries = [summary for summary, _ in seen]
    statistics = collect_statistics(summaries)
    findings = Findings(check_data(summaries, config.model), judge([evidence for _, evidence in seen]))
    augmented = "" if options.augmented is None else f", augmented as {options.augmented} says"
    print_statistics(statistics, findings, f"{options.data}: {data.kind}{augmented}", Console())
    if options.output is not None:
        path = _write_json(options, data.kind, config, statistics, findings)
        print(f"statistics  {path}\npictures    {options.output}/*.{options.format}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="inspect_data.py",
        description="Statistics, warnings and pictures from above of Waymo v1 or v2, Argoverse 2, KITTI, or a prepared"
        " store; which of them it is shows itself.",
    )
    parser.add_argument("data", type=Path, help="a file, a folder of recordings, or the folder of a prepared store")
    parser.add_argument(
        "--frames", type=positive, default=20, metavar="N", help="to look at, spread over the data (default: 20)"
    )
    parser.add_argument("--segment", metavar="NAME", help="look at this segment alone")
    parser.add_argument("--output", type=Path, metavar="DIR", help="for statistics.json and a picture of each frame")
    parser.add_argument("--format", choices=("png", "svg"), default="png", help="of the pictures (default: png)")
    parser.add_argument(
        "--reach", type=metres, metavar="M", help="half the side of the pictures, metres (default: what fits)"
    )
    parser.add_argument(
        "--config",
        default="waymo_voxel",
        metavar="CONFIG",
        help="whose range and voxels to count in: a YAML file or the name of a shipped config (default: waymo_voxel)",
    )
    parser.add_argument(
        "--augmented",
        metavar="CONFIG",
        help="show samples as training with this config sees them in its first epoch: sampled, merged, augmented",
    )
    parser.add_argument("--seed", type=int, metavar="S", help="of the augmentation (default: the config's)")
    return parser


def _look(
    data: "RawData | PreparedData", options: argparse.Namespace, config: "Config"
) -> "Iterator[tuple[FrameSummary, Evidence]]":
    """Look at one frame after the other, and draw it where pictures are wanted."""
    from rich.console import Console
    from rich.progress import track

    from detection3d.data.checking import examine_frame
    from detection3d.data.frame_summary import summarise_frame

    console = Console(stderr=True)
    frames = _frames(data, options, config)
    for frame in track(frames, "frames", options.frames, console=console, disable=not console.is_terminal):
        summary = summarise_frame(frame, config.model)
        if options.output is not None:
            _draw(frame, summary, options)
        yield summary, examine_frame(frame)


def _frames(data: "RawData | PreparedData", options: argparse.Namespace, config: "Config") -> "Iterator[Frame]":
    from detection3d.cli.inspect_sources import RawData

    if isinstance(data, RawData):
        yield from data.frames(options.frames, options.segment)
        return
    if options.augmented is None:
        for number in data.numbers(options.frames, options.segment):
            yield data.store.frame(number)
    else:
        from detection3d.training.augmented import augmented_frames  # torch, which nothing else here needs

        yield from augmented_frames(data.store, config, options.frames, options.segment)


def _draw(frame: "Frame", summary: "FrameSummary", options: argparse.Namespace) -> None:
    import math

    from detection3d.evaluation.reporting.frame_picture import frame_picture
    from detection3d.files import replace_file

    ground = 0.0 if math.isnan(summary.ground) else summary.ground
    content = frame_picture(frame, ground=ground, reach=options.reach, kind=options.format)
    name = f"{frame.context_name}_{frame.timestamp_micros}".replace("/", "_")
    replace_file(options.output / f"{name}.{options.format}", content)


def _write_json(
    options: argparse.Namespace,
    kind: str,
    config: "Config",
    statistics: "Statistics",
    findings: "Findings",
) -> Path:
    from detection3d import __version__
    from detection3d.files import replace_file

    content: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "provenance": {
            "data": str(options.data),
            "kind": kind,
            "segment": options.segment,
            "augmented": options.augmented,
            "seed": config.seed if options.augmented else None,
            "point_range": config.model.point_range,
            "voxel_size": config.model.voxel_size,
            "detection3d": __version__,
        },
        "statistics": dataclasses.asdict(statistics),
        "warnings": [dataclasses.asdict(warning) for warning in findings.warnings],
        "errors": [dataclasses.asdict(problem) for problem in findings.report.problems],
        "suspicions": [dataclasses.asdict(suspicion) for suspicion in findings.report.suspicions],
    }
    path = options.output / "statistics.json"
    replace_file(path, json.dumps(content, indent=1, allow_nan=False).encode())
    return path


def entry() -> None:
    """Run as a console command."""
    sys.exit(run(main))
