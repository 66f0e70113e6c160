"""Waymo's `Objects` message from bytes to arrays, one row for each object.

`waymo.proto` has the messages and their field numbers. As protobuf does it: fields that aren't known, or have another
wire type, are skipped; of a field that comes twice the last one counts, and a message that comes twice is merged.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from detection3d.compiled_code import numba
from detection3d.evaluation.files.wire import (
    BYTES,
    FIXED32,
    FIXED64,
    INCOMPLETE,
    TRUNCATED,
    VARINT,
    Buffer,
    Number,
    read_length,
    read_tag,
    read_varint,
    skip_value,
)
from detection3d.types.scene import Float32Array, Int32Array

# Columns of `floats`: the box in our order, then the score and the velocity.
BOX = slice(0, 7)
SCORE = 7
VELOCITY = slice(8, 11)
_FLOATS = 11

# Columns of `integers`.
TYPE, LEVEL, POINTS, CAMERA, IN_ZONE = range(5)
_INTEGERS = 5

# Bits of `present`. Bits 1 to 7 are the fields of the box.
HAS_WHOLE_BOX = 0b1111_1110
HAS_BOX, HAS_SCORE, HAS_NAME, HAS_TIME, HAS_POINTS, HAS_SPEED = (1 << bit for bit in (0, 8, 9, 10, 11, 12))

# Waymo's order of a box is x, y, z, width, length, height, heading.
_BOX_COLUMNS = np.array([0, 0, 1, 2, 4, 3, 5, 6])

Array = Any  # within compiled code


@dataclass(frozen=True)
class ObjectRows:
    """Objects as rows, N of them.

    Attributes:
        floats: float32 [N, 11], see the columns above; 0 where absent. Waymo's boxes are float64, the official metric
            takes float32; numbers beyond its range become infinite.
        integers: int32 [N, 5], likewise.
        present: int32 [N], bits for what the message holds.
    """

    floats: Float32Array
    integers: Int32Array
    present: Int32Array


@dataclass(frozen=True)
class Decoded:
    """What `decode_objects` made of a piece of a message.

    Attributes:
        rows: the objects.
        names: int64 [N, 2], where in the buffer the context name of each begins, and its length.
        timestamps: int64 [N].
        new_frame: bool [N], whether an object is of another frame than the one before it; true for the first.
        position: how far the buffer was read: the end of the last whole field.
        status: 0, or a negative code of `wire` for what comes at `position`.
    """

    rows: ObjectRows
    names: np.ndarray
    timestamps: np.ndarray
    new_frame: np.ndarray
    position: int
    status: int


def decode_objects(buffer: np.ndarray, capacity: int) -> Decoded:
    """Decode fields of an `Objects` message until the buffer ends, it makes no sense, or `capacity` objects are read.

    Args:
        buffer: uint8 [n], beginning with a field.
        capacity: most objects to read.

    Returns:
        The objects. A field that the buffer holds only a part of ends with the status INCOMPLETE: more of the message
        may follow.
    """
    floats = np.zeros((capacity, _FLOATS), np.float32)
    integers = np.zeros((capacity, _INTEGERS), np.int32)
    present = np.zeros(capacity, np.int32)
    frames = np.zeros((capacity, 3), np.int64)
    new_frame = np.ones(capacity, np.bool_)
    count, position, status = _objects(buffer, floats, integers, present, frames, new_frame)
    # Copies, so that the rest of the capacity isn't kept.
    return Decoded(
        rows=ObjectRows(floats[:count].copy(), integers[:count].copy(), present[:count].copy()),
        names=frames[:count, :2],
        timestamps=frames[:count, 2],
        new_frame=new_frame[:count],
        position=position,
        status=status,
    )


@numba.njit(cache=True, nogil=True)
def _objects(
    buffer: Buffer, floats: Array, integers: Array, present: Array, frames: Array, new_frame: Array
) -> tuple[Number, Number, int]:
    """Return the number of objects, the end of the last whole field, and a status."""
    end = len(buffer)
    # numba compiles what is called with a plain 0 once more.
    position = np.int64(0)
    count = np.int64(0)
    while position < end and count < len(present):
        field, kind, after = read_tag(buffer, position, end)
        if field == 1 and kind == BYTES:
            length, start = read_length(buffer, after, end)
            after = start
            if start >= 0:
                after = _object(
                    buffer, start, start + length, floats[count], integers[count], present, frames[count], count
                )
                if after < 0:
                    return count, position, after
                new_frame[count] = count == 0 or not _same_frame(buffer, frames[count - 1], frames[count])
                count += 1
        elif after >= 0:
            after = skip_value(buffer, after, end, field, kind)
        if after < 0:
            return count, position, INCOMPLETE if after == TRUNCATED else after
        position = after
    return count, position, 0


@numba.njit(cache=True, nogil=True)
def _object(
    buffer: Buffer,
    position: int,
    end: int,
    floats: Array,
    integers: Array,
    present: Array,
    frame: Array,
    index: int,
) -> int:
    """Decode an `Object`; `floats`, `integers` and `frame` are its rows."""
    found = 0
    while position < end:
        field, kind, position = read_tag(buffer, position, end)
        if position < 0:
            return position
        if field == 1 and kind == BYTES:
            length, position = read_length(buffer, position, end)
            if position >= 0:
                flags, position = _label(buffer, position, position + length, floats, integers)
                found |= flags
        elif field == 2 and kind == FIXED32:
            floats[SCORE], position = _float(buffer, position, end)
            found |= HAS_SCORE
        elif field == 3 and kind == VARINT:
            value, position = read_varint(buffer, position, end)
            integers[IN_ZONE] = value != np.uint64(0)
        elif field == 4 and kind == BYTES:
            frame[1], position = read_length(buffer, position, end)
            frame[0] = position
            if position >= 0:
                position += frame[1]
            found |= HAS_NAME
        elif field == 5 and kind == VARINT:
            value, position = read_varint(buffer, position, end)
            frame[2] = np.int64(value)
            found |= HAS_TIME
        elif field == 6 and kind == VARINT:
            integers[CAMERA], position = _integer(buffer, position, end)
        else:
            position = skip_value(buffer, position, end, field, kind)
        if position < 0:
            return position
    present[index] = found
    return position


@numba.njit(cache=True, nogil=True)
def _label(buffer: Buffer, position: int, end: int, floats: Array, integers: Array) -> tuple[int, int]:
    """Decode a `Label`; return what it holds, and the position."""
    found = 0
    while position < end:
        field, kind, position = read_tag(buffer, position, end)
        if position < 0:
            return found, position
        if field == 1 and kind == BYTES:
            length, position = read_length(buffer, position, end)
            if position >= 0:
                flags, position = _box(buffer, position, position + length, floats)
                found |= flags
        elif field == 2 and kind == BYTES:
            length, position = read_length(buffer, position, end)
            if position >= 0:
                flags, position = _metadata(buffer, position, position + length, floats)
                found |= flags
        elif field == 3 and kind == VARINT:
            integers[TYPE], position = _integer(buffer, position, end)
        elif field == 5 and kind == VARINT:
            integers[LEVEL], position = _integer(buffer, position, end)
        elif field == 7 and kind == VARINT:
            integers[POINTS], position = _integer(buffer, position, end)
            found |= HAS_POINTS
        else:
            position = skip_value(buffer, position, end, field, kind)
        if position < 0:
            return found, position
    return found, position


@numba.njit(cache=True, nogil=True)
def _box(buffer: Buffer, position: int, end: int, floats: Array) -> tuple[int, int]:
    found = HAS_BOX
    while position < end:
        field, kind, position = read_tag(buffer, position, end)
        if position < 0:
            return found, position
        if 1 <= field <= 7 and kind == FIXED64:
            floats[_BOX_COLUMNS[field]], position = _double(buffer, position, end)
            found |= 1 << field
        else:
            position = skip_value(buffer, position, end, field, kind)
        if position < 0:
            return found, position
    return found, position


@numba.njit(cache=True, nogil=True)
def _metadata(buffer: Buffer, position: int, end: int, floats: Array) -> tuple[int, int]:
    found = 0
    while position < end:
        field, kind, position = read_tag(buffer, position, end)
        if position < 0:
            return found, position
        if field in (1, 2, 5) and kind == FIXED64:
            axis = 2 if field == 5 else field - 1
            floats[VELOCITY.start + axis], position = _double(buffer, position, end)
            if axis == 0:
                found = HAS_SPEED
        else:
            position = skip_value(buffer, position, end, field, kind)
        if position < 0:
            return found, position
    return found, position


@numba.njit(cache=True, nogil=True)
def _double(buffer: Buffer, position: int, end: int) -> tuple[Number, int]:
    if end - position < 8:
        return np.float32(0.0), TRUNCATED
    return np.float32(buffer[position : position + 8].view(np.float64)[0]), position + 8


@numba.njit(cache=True, nogil=True)
def _float(buffer: Buffer, position: int, end: int) -> tuple[Number, int]:
    if end - position < 4:
        return np.float32(0.0), TRUNCATED
    return buffer[position : position + 4].view(np.float32)[0], position + 4


@numba.njit(cache=True, nogil=True)
def _integer(buffer: Buffer, position: int, end: int) -> tuple[Number, int]:
    """Read an int32 or an enum; as protobuf does it, the upper bits go."""
    value, position = read_varint(buffer, position, end)
    return np.int32(value & np.uint64(0xFFFFFFFF)), position


@numba.njit(cache=True, nogil=True)
def _same_frame(buffer: Buffer, one: Array, other: Array) -> bool:
    if one[1] != other[1] or one[2] != other[2]:
        return False
    for offset in range(one[1]):  # noqa: SIM110 (numba compiles no generator)
        if buffer[one[0] + offset] != buffer[other[0] + offset]:
            return False
    return True
