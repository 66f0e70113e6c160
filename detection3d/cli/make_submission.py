"""Make a submission to Waymo's 3D detection server of detections: checked shards and the archive to upload."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from detection3d.cli.run import run


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the tool.

    Args:
        arguments: the command line; None takes `sys.argv`.

    Returns:
        The exit status.

    Raises:
        UserError: a file is missing or damaged, or the server wouldn't take the submission.
    """
    parser = argparse.ArgumentParser(prog="make_submission.py", description=__doc__)
    parser.add_argument("--predictions", type=Path, required=True, metavar="F", help="detections, .parquet or .bin")
    parser.add_argument(
        "--information",
        type=Path,
        required=True,
        metavar="F",
        help="the submission's other fields, in protobuf's text format as for Waymo's own tool: see docs/metrics.md",
    )
    parser.add_argument(
        "--frames",
        type=Path,
        metavar="F",
        help="the frames to cover: a prepared store, ground truth, or a text file with CONTEXT_NAME TIMESTAMP lines",
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="where the files go")
    parser.add_argument("--shards", type=int, default=4, metavar="N", help="number of shards (default: 4)")
    parser.add_argument("--min-score", type=float, metavar="S", help="leave out boxes below it (default: 0.03)")
    parser.add_argument("--max-boxes", type=int, metavar="N", help="keep a frame's N best boxes (default: all)")
    parser.add_argument("--allow-missing", action="store_true", help="go on where frames have no detections")
    options = parser.parse_args(arguments)

    # Heavy modules only now, so that --help answers at once.
    from detection3d.errors import UserError
    from detection3d.evaluation.files.objects import read_detections
    from detection3d.evaluation.files.submission import MIN_SCORE, check_coverage, read_information, select_detections
    from detection3d.evaluation.files.submission_files import write_submission

    min_score = MIN_SCORE if options.min_score is None else options.min_score
    if not 0 <= min_score <= 1:
        raise UserError(f"--min-score {min_score}: scores lie in [0, 1]")
    if options.max_boxes is not None and options.max_boxes < 1:
        raise UserError(f"--max-boxes {options.max_boxes}: give at least 1")
    information = read_information(options.information)
    detections = read_detections(options.predictions)
    if options.frames is None:
        print("frames    not compared: --frames names those that the server expects")
    else:
        frames = _frames(options.frames)
        missing = check_coverage(detections, frames, options.allow_missing)
        print(f"frames    {len(frames):,} expected, {missing:,} without detections, none besides")
    selection = select_detections(detections, information, min_score, options.max_boxes)
    print(
        f"boxes     {selection.boxes:,}; left out: {selection.below_min_score:,} with a score below {min_score}, "
        f"{selection.beyond_max_boxes:,} beyond the best of their frame; {selection.enlarged:,} with a side below "
        "1e-6 m now have that"
    )
    files = write_submission(options.output, information, selection.detections, options.shards)
    again = read_detections(files.archive)
    if sum(len(item.boxes) for item in again) != selection.boxes:
        raise UserError(f"{files.archive} doesn't hold what was written; is the disk sound?")
    for path in (*files.shards, files.archive):
        print(f"{path.stat().st_size / 1e6:8.1f} MB  {path}")
    print(f"upload    {files.archive}")
    return 0


def _frames(path: Path) -> set[tuple[str, int]]:
    from detection3d.evaluation.files.objects import read_ground_truth
    from detection3d.evaluation.files.submission_frames import is_frame_list, read_frame_list

    if path.is_dir() and (path / "manifest.json").exists():
        from detection3d.data.store import Store

        store = Store.open(path)
        return {store.key(index) for index in range(len(store))}
    if path.is_file() and is_frame_list(path):
        return read_frame_list(path)
    return {item.key for item in read_ground_truth(path)}


def entry() -> None:
    """Run as a console script."""
    sys.exit(run(main))
