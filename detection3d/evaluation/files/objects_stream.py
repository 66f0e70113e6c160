"""Reads Waymo's `Objects` and `Submission` messages piece by piece, so that memory holds numbers and not the file."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from google.protobuf.message import DecodeError

from detection3d.errors import DataError
from detection3d.evaluation.files.wire import BYTES, FIXED32, FIXED64, INCOMPLETE, REASONS, VARINT
from detection3d.evaluation.files.wire_objects import ObjectRows, decode_objects
from detection3d.protos import waymo_pb2

_PIECE = 1 << 24  # bytes
_ROWS = 1 << 17
_INFERENCE_RESULTS = waymo_pb2.Submission.DESCRIPTOR.fields_by_name["inference_results"].number
_MAX_HEADER = 1 << 24  # bytes of all that a submission holds besides its objects

FrameKey = tuple[str, int]


@dataclass(frozen=True)
class Piece:
    """Objects that follow one another in a file.

    Attributes:
        rows: the objects, N of them.
        keys: `(context_name, timestamp_micros)` of each run of objects of one frame, R of them.
        starts: int64 [R], the first object of each run.
    """

    rows: ObjectRows
    keys: list[FrameKey]
    starts: np.ndarray


class Source:
    """A message in a file, or in an archive, that is read from its beginning to its end once.

    Args:
        stream: what holds it.
        size: number of its bytes.
        name: how to call it in errors: a path.

    Attributes:
        name: likewise.
        position: number of bytes that have been read.
    """

    def __init__(self, stream: BinaryIO, size: int, name: Path) -> None:
        self._stream = stream
        self._size = size
        self.name = name
        self.position = 0
        self._head = b""

    @property
    def left(self) -> int:
        """Number of bytes that haven't been read."""
        return self._size - self.position

    def peek(self, count: int) -> bytes:
        """Return up to `count` of the bytes that come next, which stay to be read."""
        while len(self._head) < min(count, self.left):
            part = self._stream.read(min(count, self.left) - len(self._head))
            if not part:
                break
            self._head += part
        return self._head[:count]

    def fill(self, buffer: np.ndarray) -> None:
        """Read `len(buffer)` bytes; raises DataError where there aren't so many."""
        view = buffer.data
        filled = 0
        while filled < len(view):
            wanted = min(len(view) - filled, _PIECE)
            part = self._head[:wanted] or self._stream.read(wanted)
            self._head = self._head[len(part) :]
            if not part:
                raise self.error(f"it ends after {self.position:,} of {self._size:,} bytes")
            view[filled : filled + len(part)] = part
            filled += len(part)
            self.position += len(part)

    def take(self, count: int) -> bytes:
        """Return the next `count` bytes."""
        buffer = np.empty(count, np.uint8)
        self.fill(buffer)
        return buffer.tobytes()

    def error(self, reason: str, record: int | None = None) -> DataError:
        """Return an error that says what to do."""
        return DataError(self.name, f"{reason}; the file is damaged or of another kind: write it again", record)


def read_objects(source: Source) -> Iterator[Piece]:
    """Yield all objects of an `Objects` message; raises DataError with the number of the object that is damaged."""
    yield from _read_objects(source, source.left, 0)


def read_submission(source: Source) -> tuple[waymo_pb2.Submission, list[Piece]]:
    """Read a `Submission` message.

    Args:
        source: it.

    Returns:
        All fields but the objects, and the objects.

    Raises:
        DataError: it is damaged.
    """
    header = bytearray()
    pieces: list[Piece] = []
    record = 0
    while source.left:
        tag_bytes, tag = _take_varint(source)
        field, kind = tag >> 3, tag & 7
        if field == _INFERENCE_RESULTS and kind == BYTES:
            _, length = _take_varint(source)
            if length > source.left:
                raise source.error(f"its objects should take {length:,} bytes, but only {source.left:,} follow")
            for piece in _read_objects(source, length, record):
                pieces.append(piece)
                record += len(piece.rows.present)
        else:
            header += tag_bytes + _take_value(source, field, kind)
        if len(header) > _MAX_HEADER:
            raise source.error("its fields besides the objects take more than 16 MiB")
    try:
        return waymo_pb2.Submission.FromString(bytes(header)), pieces
    except DecodeError as error:
        raise source.error(f"not a Submission message ({error})") from error


def _take_varint(source: Source) -> tuple[bytes, int]:
    content = bytearray()
    value = 0
    while not content or content[-1] >= 0x80:
        if len(content) == 10:
            raise source.error("a number in it takes more than ten bytes")
        if not source.left:
            raise source.error("it is cut short")
        content += source.take(1)
        value |= (content[-1] & 0x7F) << 7 * (len(content) - 1)
    return bytes(content), value


def _take_value(source: Source, field: int, kind: int) -> bytes:
    if kind == VARINT:
        return _take_varint(source)[0]
    prefix = b""
    if kind == BYTES:
        prefix, length = _take_varint(source)
    elif kind in (FIXED32, FIXED64):
        length = 8 if kind == FIXED64 else 4
    else:
        raise source.error(f"field {field} has wire type {kind}, which no field of a Submission has")
    if length > min(source.left, _MAX_HEADER):
        raise source.error(f"field {field} should take {length:,} bytes; {source.left:,} follow")
    return prefix + source.take(length)


def _read_objects(source: Source, length: int, record: int) -> Iterator[Piece]:
    """Yield the objects of the next `length` bytes; `record` is the number of the first of them."""
    offset = source.position
    buffer = np.empty(0, np.uint8)
    more = _PIECE
    while length or len(buffer):
        fresh = np.empty(len(buffer) + min(more, length), np.uint8)
        fresh[: len(buffer)] = buffer
        source.fill(fresh[len(buffer) :])
        length -= len(fresh) - len(buffer)
        decoded = decode_objects(fresh, _ROWS)
        if decoded.status and (decoded.status != INCOMPLETE or not length):
            raise source.error(
                f"the message makes no sense at byte {offset + decoded.position:,}: {REASONS[decoded.status]}",
                record + len(decoded.timestamps),
            )
        starts = np.flatnonzero(decoded.new_frame)
        if len(starts):
            yield Piece(
                decoded.rows, _frame_keys(source, fresh, decoded.names, decoded.timestamps, starts, record), starts
            )
        record += len(decoded.timestamps)
        offset += decoded.position
        buffer = fresh[decoded.position :]
        # One field may be larger than a piece: then twice as much is tried. A full table needs no more bytes yet.
        full = decoded.status == 0 and len(buffer) > 0
        more = 0 if full else (_PIECE if decoded.position else 2 * len(fresh))


def _frame_keys(
    source: Source, buffer: np.ndarray, names: np.ndarray, timestamps: np.ndarray, starts: np.ndarray, record: int
) -> list[FrameKey]:
    keys = []
    # Equal names are kept once.
    known: dict[bytes, str] = {}
    for start, (begin, length), timestamp in zip(
        starts.tolist(), names[starts].tolist(), timestamps[starts].tolist(), strict=True
    ):
        content = buffer[begin : begin + length].tobytes()
        name = known.get(content)
        if name is None:
            try:
                name = known[content] = content.decode()
            except UnicodeDecodeError as error:
                raise source.error(f"context_name is not UTF-8: {content[:40]!r}", record + start) from error
        keys.append((name, timestamp))
    return keys
