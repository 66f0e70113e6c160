"""Waymo Open Dataset files to a prepared store."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from detection3d.cli.preparing import add_options, prepare_and_report
from detection3d.cli.run import run
from detection3d.errors import UserError
from detection3d.files import walk

if TYPE_CHECKING:
    from detection3d.data.preparation import Source


def main(arguments: Sequence[str] | None = None) -> int:
    """Prepare every .tfrecord of a folder; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="prepare_waymo.py",
        description="Turn Waymo v1 TFRecords into a prepared store. Run it again to go on after an interruption.",
    )
    add_options(parser, "a .tfrecord file, or a folder that is searched for them")
    parser.add_argument(
        "--returns", type=_returns, default=(1, 2), metavar="1,2", help="lidar returns to keep (default: 1,2)"
    )
    options = parser.parse_args(arguments)
    return prepare_and_report(find_sources(options.input), options, options.returns)


def find_sources(path: Path) -> "list[Source]":
    """List the TFRecord files of a folder and its subfolders, or the one file that is named.

    Raises:
        UserError: there is no such path, or no TFRecord in it.
    """
    from detection3d.data.preparation import Source
    from detection3d.data.waymo import read_segment

    if path.is_file():
        return [Source(path.name, path, read_segment)]
    if not path.is_dir():
        raise UserError(f"{path}: there is no such file or folder; give the one that holds the .tfrecord files")
    files = sorted(file for file in walk(path) if file.is_file())
    records = [file for file in files if file.suffix == ".tfrecord"]
    if not records:
        found = f"{len(files)} other files, such as {files[0].name}" if files else "it is empty"
        raise UserError(f"{path}: no .tfrecord file in it ({found}); give the folder of the Waymo v1 files")
    # Such as .tfrecord.gz, or .tfrecord_.gstmp of a download that was interrupted: a part of the data would be missed.
    passed_over = [file for file in files if ".tfrecord" in file.name and file.suffix != ".tfrecord"]
    if passed_over:
        print(
            f"note: {len(passed_over)} files are passed over, as their names don't end in .tfrecord: "
            f"{passed_over[0].name}{' ...' if len(passed_over) > 1 else ''}; unpack them or get them again",
            file=sys.stderr,
        )
    return [Source(file.relative_to(path).as_posix(), file, read_segment) for file in records]


def _returns(text: str) -> tuple[int, ...]:
    chosen = {part.strip() for part in text.split(",")}
    if not chosen <= {"1", "2"}:
        raise argparse.ArgumentTypeError(f"{text!r}: choose 1, 2 or 1,2")
    return tuple(sorted(int(number) for number in chosen))


def entry() -> None:
    """Run the tool and exit with its status."""
    sys.exit(run(main))
