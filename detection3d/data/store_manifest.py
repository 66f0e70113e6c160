"""What a prepared store says of itself: the manifest, the record of each segment, and where the files lie.

    <root>/manifest.json                         the whole store; written last
    <root>/unfinished.json                       while a preparation is under way: a manifest of what it is to do
    <root>/segments/<context name>/points.bin    per frame: xyz block, feature block, flag block
                                   frames.arrow  Arrow IPC: timestamp, pose, place of the points and boxes ...
                                   boxes.arrow   Arrow IPC: the labels of all frames, one after the other
                                   segment.json  the `SegmentRecord`
    <root>/segments/.<anything>                  being written; never read

A segment's folder appears by one rename when all its files are on the disk. The records are JSON, checked by pydantic.
"""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, TypeVar

import google_crc32c
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from detection3d.errors import DataError
from detection3d.files import replace_file

MANIFEST = "manifest.json"
UNFINISHED = "unfinished.json"
SEGMENTS = "segments"
SEGMENT_RECORD = "segment.json"
POINTS = "points.bin"
FRAMES = "frames.arrow"
BOXES = "boxes.arrow"
POINTS_MAGIC = b"detection3d points 1\n".ljust(64, b"\0")
"""First bytes of a points file; a frame's blocks start at multiples of this length."""

_ANEW = "prepare the data again into another folder"
AGAIN = "run the preparation again with the same output; it goes on where it stopped"


class Record(BaseModel):
    """Base of what is written as JSON."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class FileRecord(Record):
    """Size in bytes and CRC-32C of a file."""

    size: int
    crc32c: int


class SourceRecord(Record):
    """Where a segment came from; a change of any field means that it must be prepared again.

    Attributes:
        name: the file or folder, relative to the input folder.
        size: bytes, summed over a folder.
        mtime_ns: time of the last change, the latest of a folder.
        files_crc32c: of the names, sizes and times of all files, where there are several: the sum and the latest alone
            would miss an exchange for something older of the same size.
    """

    name: str
    size: int
    mtime_ns: int
    files_crc32c: int = 0

    @classmethod
    def of(cls, name: str, files: Sequence[tuple[str, int, int]]) -> "SourceRecord":
        """Describe files, each by name, size and time of its last change."""
        several = json.dumps(sorted(files)).encode() if len(files) > 1 else b""
        return cls(
            name=name,
            size=sum(size for _, size, _ in files),
            mtime_ns=max((changed for _, _, changed in files), default=0),
            files_crc32c=google_crc32c.value(several) if several else 0,
        )


class StoreSettings(Record):
    """Choices that hold for every segment of a store.

    Attributes:
        returns: lidar returns that were kept.
        every: of each segment, every so many frames were kept, from the first on.
        reach: metres; points with |x| or |y| beyond it were left out. None: all were kept.
    """

    returns: tuple[int, ...] = (1, 2)
    every: int = Field(default=1, ge=1)
    reach: float | None = Field(default=None, gt=0)

    def describe(self) -> str:
        """Return the options of a preparation tool that stand for them."""
        reach = "" if self.reach is None else f" --range {self.reach:g}"
        return f"--returns {','.join(map(str, self.returns))} --every {self.every}{reach}"


class LossRecord(Record):
    """`detection3d.data.packing.PackingLosses`, summed over a segment."""

    out_of_range: int
    not_finite: int
    clipped: int


class SegmentRecord(Record):
    """One finished segment.

    Attributes:
        schema_version: version of the layout.
        context_name: the segment's name and that of its folder.
        frames: number of frames.
        points: points kept, over all frames.
        boxes: labelled boxes, over all frames.
        losses: points that packing could not keep.
        source: where it came from; None for frames that came from no file.
        settings: the choices it was prepared with.
        files: every file but the record itself.
    """

    schema_version: Literal[1] = 1
    context_name: str
    frames: int = Field(ge=1)  # with 0 the segment would vanish from the numbering in silence
    points: int
    boxes: int
    losses: LossRecord
    source: SourceRecord | None
    settings: StoreSettings
    files: dict[str, FileRecord]


class LeftOut(Record):
    """A source that is not in the store.

    Attributes:
        name: the source's name.
        record: index of the record that was at fault; None for the whole.
        reason: what was wrong, and what to do.
    """

    name: str
    record: int | None
    reason: str


class Manifest(Record):
    """The whole store.

    Attributes:
        schema_version: version of the layout.
        settings: the choices that all segments share.
        segments: finished segments, ascending by name; frames are numbered in this order.
        left_out: sources that could not be used.
    """

    schema_version: Literal[1] = 1
    settings: StoreSettings
    segments: tuple[SegmentRecord, ...]
    left_out: tuple[LeftOut, ...] = ()

    @field_validator("segments")
    @classmethod
    def _once(cls, segments: tuple[SegmentRecord, ...]) -> tuple[SegmentRecord, ...]:
        for name, count in Counter(segment.context_name for segment in segments).items():
            if count > 1:
                raise ValueError(f"the segment {name} is listed {count} times")
        return segments


AnyRecord = TypeVar("AnyRecord", bound=Record)


def read_record(path: Path, kind: type[AnyRecord], advice: str | None = None) -> AnyRecord:
    """Read a record, such as a manifest or a segment's.

    Args:
        path: the file.
        kind: of record.
        advice: what to do where it is damaged; None: what helps with a store's.

    Raises:
        DataError: the file isn't JSON of this kind, or of another schema version.
        OSError: it can't be read.
    """
    text = path.read_bytes()
    # Without its record a segment can't be told from something foreign, so the whole of it has to go.
    way_out = f"the file is damaged, delete {path.parent if path.name == SEGMENT_RECORD else path} and {AGAIN}"
    if advice is not None:
        way_out = f"the file is damaged, {advice}"
    try:
        version = json.loads(text).get("schema_version")
        if version != 1:
            raise DataError(
                path,
                f"schema_version is {version!r}, this program reads 1; {advice or _ANEW}",
            )
        return kind.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise DataError(path, f"{place}: {first['msg']}; {way_out}") from error
    except (ValueError, AttributeError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(path, f"not a JSON object ({error}); {way_out}") from error


def write_record(path: Path, record: Record) -> None:
    """Write a record so that a reader finds the old or the new file, whole, whatever happens in between."""
    replace_file(path, record.model_dump_json(indent=1).encode())


def finished_segments(root: Path) -> dict[str, SegmentRecord]:
    """Read the records of all finished segments of a store, by context name, ascending.

    Raises:
        DataError: a record is damaged or missing.
    """
    folder = root / SEGMENTS
    if not folder.is_dir():
        return {}
    records = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        try:
            records[path.name] = read_record(path / SEGMENT_RECORD, SegmentRecord)
        except (FileNotFoundError, NotADirectoryError) as error:
            reason = f"no {SEGMENT_RECORD} in it, so it is not a segment of a store; delete it"
            raise DataError(path, reason) from error
    return records


def write_manifest(root: Path, settings: StoreSettings, *, left_out: tuple[LeftOut, ...] = ()) -> Manifest:
    """Write the manifest for the segments that are finished now.

    Args:
        root: the store's folder.
        settings: the choices that all segments share.
        left_out: sources that could not be used.

    Returns:
        The manifest as written.
    """
    segments = tuple(finished_segments(root).values())
    manifest = Manifest(settings=settings, segments=segments, left_out=left_out)
    write_record(root / MANIFEST, manifest)
    return manifest
