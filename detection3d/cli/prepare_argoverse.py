"""Argoverse 2 logs to a prepared store."""

import argparse
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


def main(arguments: Sequence[str] | None = None) -> int:
    """Prepare every log of a folder; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="prepare_argoverse.py",
        description="Turn Argoverse 2 sensor logs into a prepared store. Run it again to go on after an interruption.",
    )
    add_options(parser, "a log's folder (it holds sensors/lidar), or a folder of logs")
    options = parser.parse_args(arguments)
    sources = find_sources(options.input)
    for source in sources:
        for line in _shortcomings(source.path):
            print(f"note: {source.name}: {line}", file=sys.stderr)
    return prepare_and_report(sources, options)


def find_sources(path: Path) -> "list[Source]":
    """List the logs in a folder and its subfolders: whatever holds `sensors/lidar`.

    Raises:
        UserError: there is no such folder, or no log in it.
    """
    from detection3d.data.preparation import Source

    if not path.is_dir():
        raise UserError(f"{path}: there is no such folder; give the one that holds the Argoverse 2 logs")
    logs = sorted(folder for folder in (path, *walk(path)) if (folder / "sensors" / "lidar").is_dir())
    if not logs:
        raise UserError(f"{path}: no folder in it holds sensors/lidar; give the folder of the Argoverse 2 logs")
    return [Source(own_name(log), log, _read, count=_count) for log in logs]


def _read(log: Path, settings: "StoreSettings") -> "Iterable[Frame]":
    from detection3d.data.argoverse import read_log

    return read_log(log, every=settings.every)


def _count(log: Path) -> int:
    return sum(1 for _ in (log / "sensors" / "lidar").glob("*.feather"))


def _shortcomings(log: Path) -> list[str]:
    """Say what a log lacks that it can be prepared without."""
    files = {
        "city_SE3_egovehicle.feather": "its poses become the identity and its velocities 0",
        "annotations.feather": "its frames have no labels, so they can't be trained on",
    }
    return [f"has no {name}; {effect}" for name, effect in files.items() if not (log / name).exists()]


def entry() -> None:
    """Run the tool and exit with its status."""
    sys.exit(run(main))
