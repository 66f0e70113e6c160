"""Write Waymo v1 TFRecords of synthetic scenes."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from detection3d.cli.run import run

if TYPE_CHECKING:
    from detection3d.data.synthetic.write import SegmentReport


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, write, and report speeds; the command line is described by `--help`.

    Returns:
        0.
    """
    options = _parser().parse_args(arguments)
    import time

    from detection3d.data.synthetic.rigs import full_rig, tiny_rig
    from detection3d.data.synthetic.scene import SceneConfig, waymo_streets
    from detection3d.data.synthetic.write import write_segments

    rig, scene = (full_rig(), waymo_streets()) if options.rig == "full" else (tiny_rig(), SceneConfig())
    done = 0

    def show(report: "SegmentReport") -> None:
        nonlocal done
        done += 1
        place = f"[{done}/{options.segments}] {report.path.name}"
        if report.skipped:
            print(f"{place}: already there, skipped", flush=True)
            return
        count = len(report.frames)
        points = sum(frame.points for frame in report.frames) / count
        objects = sum(frame.objects for frame in report.frames) / count
        speed = count / report.seconds
        print(f"{place}: {count} frames, {speed:.1f} frames/s, {points:,.0f} points and {objects:.0f} objects a frame")
        sys.stdout.flush()

    begin = time.perf_counter()
    reports = write_segments(
        output=options.output,
        segments=options.segments,
        frames=options.frames,
        seed=options.seed,
        rig=rig,
        scene=scene,
        interval=options.interval,
        workers=options.workers,
        on_segment=show,
    )
    _summarise(reports, time.perf_counter() - begin, options.output)
    return 0


def entry() -> None:
    """Run as a program."""
    sys.exit(run(main))


def _summarise(reports: "Sequence[SegmentReport]", seconds: float, output: Path) -> None:
    frames = [frame for report in reports for frame in report.frames]
    skipped = sum(report.skipped for report in reports)
    if skipped:
        print(f"{skipped} of {len(reports)} segments were there already")
    if frames:
        casting = sum(frame.cast_seconds for frame in frames) / len(frames)
        encoding = sum(frame.encode_seconds for frame in frames) / len(frames)
        print(
            f"{len(frames)} frames in {seconds:.1f} s: {len(frames) / seconds:.1f} frames/s written; in each process "
            f"{1000 * casting:.0f} ms a frame in ray casting, {1000 * encoding:.0f} ms in labels, encoding and writing "
            f"({casting * len(frames):.1f} s and {encoding * len(frames):.1f} s in all)"
        )
    print(f"segments are in {output}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="make_synthetic.py",
        description="Write Waymo v1 TFRecords of synthetic scenes. The same settings give the same bytes.",
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder for the files")
    parser.add_argument("--segments", type=int, required=True, metavar="N", help="number of files")
    parser.add_argument("--frames", type=int, required=True, metavar="N", help="frames in each file")
    parser.add_argument("--seed", type=int, required=True, metavar="S", help="different seeds give different segments")
    parser.add_argument(
        "--rig",
        choices=("full", "tiny"),
        default="full",
        help="Waymo's lidars in Waymo-like streets, or a small version (default: full)",
    )
    parser.add_argument(
        "--interval", type=float, default=0.1, metavar="S", help="seconds between frames (default: 0.1)"
    )
    parser.add_argument("--workers", type=int, metavar="N", help="processes (default: one for each core)")
    return parser
