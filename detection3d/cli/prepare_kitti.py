"""KITTI's object detection scans to a prepared store."""

import argparse
import functools
import itertools
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from detection3d.cli.preparing import add_options, prepare_and_report
from detection3d.cli.run import run
from detection3d.errors import UserError
from detection3d.files import own_name, walk

if TYPE_CHECKING:
    from detection3d.data.preparation import Source
    from detection3d.data.store import StoreSettings
    from detection3d.types.scene import Frame

SCANS_A_SEGMENT = 100


def main(arguments: Sequence[str] | None = None) -> int:
    """Prepare every split of a folder; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="prepare_kitti.py",
        description="Turn KITTI's object detection scans into a prepared store, a hundred to a segment. Points that the"
        " camera doesn't see, where nothing is labelled, are marked as in a no-label zone. Run it again to go on after"
        " an interruption.",
    )
    add_options(parser, "a split's folder (it holds velodyne, calib and label_2), or a folder of such")
    options = parser.parse_args(arguments)
    return prepare_and_report(find_sources(options.input), options)


def find_sources(path: Path) -> "list[Source]":
    """List the segments in a folder and its subfolders: the scans of whatever holds `velodyne`, by hundreds.

    Raises:
        UserError: there is no such folder, or no scan in it.
    """
    from detection3d.data.kitti import scan_numbers

    if not path.is_dir():
        raise UserError(f"{path}: there is no such folder; give the one that holds KITTI's scans")
    splits = sorted(folder for folder in (path, *walk(path)) if (folder / "velodyne").is_dir())
    sources: list[Source] = []
    for split in splits:
        numbers = scan_numbers(split)
        # By the numbers, not by what is there: a scan that comes later must not move the others.
        for hundred, chunk in itertools.groupby(numbers, lambda number: int(number) // SCANS_A_SEGMENT):
            sources.append(_source(split, f"{own_name(split)}-{hundred * SCANS_A_SEGMENT:06d}", tuple(chunk)))
    if not sources:
        raise UserError(f"{path}: no folder in it holds velodyne/*.bin; give the folder of KITTI's scans")
    return sources


def _source(split: Path, segment: str, numbers: tuple[str, ...]) -> "Source":
    from detection3d.data.kitti import scan_files
    from detection3d.data.preparation import Source

    first, *others = (file for number in numbers for file in scan_files(split, number))
    read = functools.partial(_read, numbers=numbers, context_name=segment)
    return Source(segment, first, read, tuple(others), functools.partial(_count, numbers=numbers))


def _read(path: Path, settings: "StoreSettings", numbers: tuple[str, ...], context_name: str) -> "Iterable[Frame]":
    from detection3d.data.kitti import read_scan

    return (read_scan(path.parent.parent, number, context_name) for number in numbers[:: settings.every])


def _count(_: Path, numbers: tuple[str, ...]) -> int:
    return len(numbers)


def entry() -> None:
    """Run the tool and exit with its status."""
    sys.exit(run(main))
