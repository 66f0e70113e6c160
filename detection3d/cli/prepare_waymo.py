"""Waymo Open Dataset files to a prepared store."""

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from detection3d.cli.preparing import add_options, prepare_and_report
from detection3d.cli.run import run
from detection3d.errors import UserError
from detection3d.files import walk

if TYPE_CHECKING:
    from detection3d.data.preparation import Source
    from detection3d.data.store import StoreSettings
    from detection3d.types.scene import Frame


def main(arguments: Sequence[str] | None = None) -> int:
    """Prepare every segment of a folder; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="prepare_waymo.py",
        description="Turn Waymo's files into a prepared store: v1's TFRecords, or v2's parquet components. Run it"
        " again to go on after an interruption.",
    )
    add_options(
        parser,
        "a .tfrecord file or a folder that is searched for them; for v2, the folder that holds lidar, lidar_box ...;"
        " or a URL of such, as gs://BUCKET/FOLDER, whose segments are fetched one by one",
        remote=True,
    )
    parser.add_argument(
        "--returns", type=_returns, default=(1, 2), metavar="1,2", help="lidar returns to keep (default: 1,2)"
    )
    options = parser.parse_args(arguments)
    return prepare_and_report(find_sources(options.input), options, options.returns)


def find_sources(place: Path | str) -> "list[Source]":
    """List the segments of a folder and its subfolders, or the one file that is named.

    A segment is a TFRecord of v1, or a parquet file in a folder named lidar, with v2's other components beside it.

    Args:
        place: a path, or a URL.

    Raises:
        UserError: there is no such place, no segment in it, or segments of v1 and v2.
    """
    if isinstance(place, str):
        return _remote_sources(place)
    if place.is_file():
        if place.suffix == ".parquet":
            return [_component_source(place, place.name)]
        return [_record_source(place, place.name)]
    if not place.is_dir():
        raise UserError(f"{place}: there is no such file or folder; give the one that holds Waymo's files")
    if place.name == "lidar":
        place = place.parent
    # A link to nowhere stays: it is a part of the data that can't be read, and is told as such.
    found = sorted(walk(place))
    files = {file.relative_to(place).as_posix(): file for file in found if not file.is_dir() or _hides_file(file)}
    names, are_records = _segments(str(place), list(files))
    make = _record_source if are_records else _component_source
    return [make(files[name], name) for name in names]


def _hides_file(folder: Path) -> bool:
    """Whether a folder stands where a segment's file is expected: it has such a name, and no such file is in it."""
    is_named_so = folder.suffix in (".tfrecord", ".parquet")
    return is_named_so and not any(file.suffix == folder.suffix for file in walk(folder))


def _segments(place: str, names: Sequence[str]) -> tuple[list[str], bool]:
    """Return which of the files are segments, and whether they are v1's; note what is nearly one."""
    records = [name for name in names if name.endswith(".tfrecord")]
    scans = [name for name in names if name.endswith(".parquet") and PurePosixPath(name).parent.name == "lidar"]
    if records and scans:
        raise UserError(f"{place}: it holds v1's {records[0]} and v2's {scans[0]}; give the folder of one of them")
    if not records and not scans:
        raise UserError(f"{place}: no segment in it ({_describe(names)}); give a folder of .tfrecord files, or v2's")
    # Such as .tfrecord.gz, or .tfrecord_.gstmp of a download that was interrupted: a part of the data would be missed.
    kind = ".tfrecord" if records else ".parquet"
    passed_over = [name for name in map(_last, names) if kind in name and not name.endswith(kind)]
    _note_missing_scans(names, scans)
    if passed_over:
        print(
            f"note: {len(passed_over)} files are passed over, as their names don't end in {kind}: "
            f"{passed_over[0]}{' ...' if len(passed_over) > 1 else ''}; unpack them or get them again",
            file=sys.stderr,
        )
    return records or scans, bool(records)


def _note_missing_scans(names: Sequence[str], scans: Sequence[str]) -> None:
    """Say which segments of v2 have other components, but no lidar."""
    from detection3d.data.waymo.component_frames import COMPONENTS

    def key(name: str) -> tuple[PurePosixPath, str]:
        return PurePosixPath(name).parent.parent, _last(name)

    known = {key(name) for name in scans}
    others = [name for name in names if name.endswith(".parquet") and PurePosixPath(name).parent.name in COMPONENTS]
    missing = sorted({_last(name) for name in others if key(name) not in known}) if scans else []
    if missing:
        print(
            f"note: {len(missing)} segments are passed over, as they have other components, but no lidar: {missing[0]}"
            f"{' ...' if len(missing) > 1 else ''}; get their lidar, too",
            file=sys.stderr,
        )


def _record_source(path: Path, name: str) -> "Source":
    from detection3d.data.preparation import Source

    return Source(name, path, _read_records, count=_count_records)


def _component_source(path: Path, name: str) -> "Source":
    from detection3d.data.preparation import Source
    from detection3d.data.waymo.component_frames import COMPONENTS

    if path.parent.name != "lidar":
        raise UserError(f"{path}: of Waymo v2, give the folder, or the file in its folder lidar")
    # Those that are missing are reported when the segment is read.
    others = [path.parent.parent / component / path.name for component in COMPONENTS if component != "lidar"]
    return Source(name, path, _read_components, tuple(file for file in others if file.exists()), _count_components)


def _remote_sources(url: str) -> "list[Source]":
    from detection3d.data.remote import RemoteSource, list_remote, select
    from detection3d.data.waymo.component_frames import COMPONENTS

    files = list_remote(url)
    if not files:
        raise UserError(f"{url}: there is no such file or folder; give the one that holds Waymo's files")
    names, are_records = _segments(url, [file.name for file in files])
    folders = {str(PurePosixPath(file.name).parent) for file in files}
    sources: list[Source] = []
    for name in names:
        place = PurePosixPath(name)
        siblings = [] if are_records else [str(place.parent.parent / item) for item in COMPONENTS]
        wanted = [name] if are_records else [f"{folder}/{place.name}" for folder in siblings]
        read = _read_records if are_records else _read_components
        own = tuple(select(files, wanted))
        sources.append(RemoteSource(name, Path(name), read, files=own, folders=tuple(folders.intersection(siblings))))
    return sources


def _last(name: str) -> str:
    return PurePosixPath(name).name


def _read_records(path: Path, settings: "StoreSettings") -> "Iterable[Frame]":
    from detection3d.data.waymo import read_segment

    return read_segment(path, settings.returns, every=settings.every)


def _count_records(path: Path) -> int:
    from detection3d.data.waymo import index_records

    return len(index_records(path))


def _count_components(path: Path) -> int:
    from detection3d.data.waymo.component_frames import count_component_frames

    return count_component_frames(path)


def _read_components(path: Path, settings: "StoreSettings") -> "Iterable[Frame]":
    from detection3d.data.waymo import read_component_segment

    return read_component_segment(path, settings.returns, every=settings.every)


def _describe(names: Sequence[str]) -> str:
    return f"{len(names)} other files, such as {_last(names[0])}" if names else "it is empty"


def _returns(text: str) -> tuple[int, ...]:
    chosen = {part.strip() for part in text.split(",")}
    if not chosen <= {"1", "2"}:
        raise argparse.ArgumentTypeError(f"{text!r}: choose 1, 2 or 1,2")
    return tuple(sorted(int(number) for number in chosen))


def entry() -> None:
    """Run the tool and exit with its status."""
    sys.exit(run(main))
