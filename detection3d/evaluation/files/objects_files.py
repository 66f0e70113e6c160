"""Opens what holds Waymo's messages: a file, a folder of shards, or a tar archive of shards."""

import gzip
import re
import tarfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from detection3d.errors import DataError, one_line
from detection3d.evaluation.files.objects_kinds import HEAD, Kind, kind_of
from detection3d.evaluation.files.objects_stream import Piece, Source, read_objects, read_submission
from detection3d.evaluation.files.objects_table import ObjectTable, collect
from detection3d.evaluation.files.wire_objects import ObjectRows
from detection3d.protos import waymo_pb2

CheckRows = Callable[[Source, ObjectRows, int], None]

_TASKS = (waymo_pb2.Submission.UNKNOWN, waymo_pb2.Submission.DETECTION_3D, waymo_pb2.Submission.DOMAIN_ADAPTATION)


def is_parquet(path: Path) -> bool:
    """Tell whether a path is a parquet file; raises DataError where it is of no use here, as `kind_of` does."""
    if path.is_dir():
        return False
    if path.exists() and not path.is_file():
        raise DataError(path, "a pipe or a device, which can be read only once; write it to a file first")
    with path.open("rb") as file:
        return kind_of(path, file.read(HEAD)) is Kind.PARQUET


def read_messages(path: Path, check: CheckRows) -> ObjectTable:
    """Read all objects of a file, a folder or an archive.

    Shards count in the order of their names, with numbers by value, whatever their order in an archive.

    Args:
        path: an `Objects` message, a `Submission` shard, a folder of either, or a tar archive of them (.tar, .tar.gz).
        check: called with each piece of a file and the number of its first object; raises DataError.

    Returns:
        The objects by frame.

    Raises:
        DataError: a file is damaged or of another kind, shards are of different submissions, or one is there twice.
    """
    parts: list[_Part] = []
    try:
        for source in _sources(path):
            part = _read_part(source, check)
            for other in parts:
                _compare(part, other)
            parts.append(part)
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        reason = f"not a tar archive, or cut short or damaged ({one_line(error)}); write it again, or unpack it"
        raise DataError(path, reason) from error
    if not parts:
        raise DataError(path, "holds no file; give the folder or archive that the shards lie in")
    parts.sort(key=lambda part: natural_order(part.name.name))
    pieces = [piece for part in parts for piece in part.pieces]
    for part in parts:
        part.pieces.clear()
    if not pieces:
        raise DataError(path, "the file holds no objects; it is probably not an Objects or Submission message")
    return collect(pieces)


def natural_order(name: str) -> list[tuple[int, str]]:
    """Return a key that sorts names with numbers in them by value: model2 before model10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"([0-9]+)", name)]


@dataclass
class _Part:
    """One file's content; `header` is what a submission holds besides its objects."""

    name: Path
    kind: Kind
    header: waymo_pb2.Submission
    pieces: list[Piece]

    def __post_init__(self) -> None:
        self.frames = {key for piece in self.pieces for key in piece.keys}
        checksum = 0
        for piece in self.pieces:
            checksum = zlib.crc32(piece.rows.floats.data, checksum)
        self.content = (sum(len(piece.rows.present) for piece in self.pieces), checksum)


def _sources(path: Path) -> Iterator[Source]:
    """Yield each file; it can be read until the next one is asked for."""
    if path.is_dir():
        for entry in sorted(path.iterdir()):
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                raise DataError(entry, "a folder among the shards; give the folder with the shards alone")
            with entry.open("rb") as file:
                yield Source(file, entry.stat().st_size, entry)
        return
    with path.open("rb") as file:
        source = Source(file, path.stat().st_size, path)
        if kind_of(path, source.peek(HEAD)) is not Kind.ARCHIVE:
            yield source
            return
        packed = source.peek(2) == b"\x1f\x8b"
    with gzip.open(path, "rb") if packed else path.open("rb") as content:
        # tarfile's own decompression doesn't look at gzip's checksum.
        with tarfile.open(fileobj=content, mode="r|") as archive:
            yield from _members(path, archive)
        while content.read(1 << 20):
            pass


def _members(path: Path, archive: tarfile.TarFile) -> Iterator[Source]:
    for member in archive:
        name = path / member.name
        # Archives made on a Mac hold a hidden file beside each file.
        if member.isdir() or name.name.startswith("."):
            continue
        stream = archive.extractfile(member) if member.isfile() else None
        if stream is None:
            raise DataError(name, "a link or a device in the archive; pack the shards themselves")
        yield Source(cast("BinaryIO", stream), member.size, name)


def _read_part(source: Source, check: CheckRows) -> _Part:
    kind = kind_of(source.name, source.peek(HEAD))
    if kind is Kind.SUBMISSION:
        header, results = read_submission(source)
        if header.task not in _TASKS:
            task = waymo_pb2.Submission.Task.Name(header.task)
            raise DataError(source.name, f"the submission's task is {task}; these metrics are of DETECTION_3D")
    elif kind is Kind.OBJECTS:
        header, results = waymo_pb2.Submission(), read_objects(source)
    else:
        raise DataError(
            source.name,
            f"the file is a {kind.value}; a folder or archive may hold Objects messages or Submission shards, and "
            "nothing else. Give the path of this file, if it is the one",
        )
    pieces = []
    first = 0
    for piece in results:
        check(source, piece.rows, first)
        first += len(piece.rows.present)
        pieces.append(piece)
    return _Part(source.name, kind, header, pieces)


def _compare(part: _Part, other: _Part) -> None:
    """Refuse files that don't belong together."""
    both = f"{other.name.name} lies beside it"
    if part.kind is not other.kind:
        raise DataError(part.name, f"the file is a {part.kind.value}, but {both} and is a {other.kind.value}")
    if part.content == other.content and part.content[0] and part.frames == other.frames:
        raise DataError(part.name, f"holds the same objects as {other.name.name}; keep one of them")
    if part.header != other.header:
        fields = waymo_pb2.Submission.DESCRIPTOR.fields
        differ = [f.name for f in fields if getattr(part.header, f.name) != getattr(other.header, f.name)]
        raise DataError(
            part.name,
            f"is of another submission than {other.name.name}: {', '.join(differ) or 'unknown fields'} differ; keep "
            "the shards of one submission",
        )
    # Waymo's own tool deals a frame's objects over the shards; nothing does so with Objects messages.
    if part.kind is Kind.OBJECTS and (shared := part.frames & other.frames):
        name, timestamp = min(shared)
        raise DataError(
            part.name,
            f"frame {name} at {timestamp} is also in {other.name.name} ({len(shared):,} frames in all); are they of "
            "two models? Keep one of them",
        )
