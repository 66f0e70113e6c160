"""Protocol buffers on the wire, walked by compiled loops.

Python's protobuf makes an object of every message, which takes minutes and gigabytes for the millions of boxes of a
validation set. Source: https://protobuf.dev/programming-guides/encoding/; what is damaged and what is merely unknown
is decided as protobuf's own decoder (upb) decides it.

All functions return a new position, which is negative where the bytes make no sense: one of the codes below.
"""

from typing import Any

import numpy as np

from detection3d.compiled_code import numba

VARINT, FIXED64, BYTES, START_GROUP, END_GROUP, FIXED32 = range(6)
"""Wire types."""

TRUNCATED, BAD_VARINT, BAD_TAG, BAD_GROUP, INCOMPLETE = -1, -2, -3, -4, -5

REASONS = {
    TRUNCATED: "a field reaches beyond its end",
    BAD_VARINT: "a number takes more than ten bytes",
    BAD_TAG: "a field has a number or a type that doesn't exist",
    BAD_GROUP: "a group isn't closed, or another one is",
    INCOMPLETE: "it is cut short",
}
"""What each code means, in words."""

_MAX_TAG_BYTES = 5
_MAX_DEPTH = 100

Buffer = Any  # uint8 [n]
Number = Any  # numba's numbers aren't Python's


@numba.njit(cache=True, nogil=True)
def read_varint(buffer: Buffer, position: int, end: int) -> tuple[Number, int]:
    """Return the number at `position`, uint64, and the position after it; bits beyond the 64th go."""
    value = np.uint64(0)
    for index in range(10):
        if position >= end:
            return value, TRUNCATED
        byte = np.uint64(buffer[position])
        position += 1
        value |= (byte & np.uint64(0x7F)) << np.uint64(7 * index)
        if byte < np.uint64(0x80):
            return value, position
    return value, BAD_VARINT


@numba.njit(cache=True, nogil=True)
def read_tag(buffer: Buffer, position: int, end: int) -> tuple[Number, Number, int]:
    """Return field number, wire type and the position after the tag."""
    value, after = read_varint(buffer, position, end)
    if after < 0:
        return 0, 0, after
    field = np.int64(value >> np.uint64(3))
    kind = np.int64(value & np.uint64(7))
    if after - position > _MAX_TAG_BYTES or value > np.uint64(0xFFFFFFFF) or field == 0 or kind > FIXED32:
        return 0, 0, BAD_TAG
    return field, kind, after


@numba.njit(cache=True, nogil=True)
def read_length(buffer: Buffer, position: int, end: int) -> tuple[Number, int]:
    """Return the length of the bytes or message at `position`, all of which lie before `end`, and where they begin."""
    value, position = read_varint(buffer, position, end)
    if position < 0:
        return 0, position
    if value > np.uint64(end - position):
        return 0, TRUNCATED
    return np.int64(value), position


@numba.njit(cache=True, nogil=True)
def skip_value(buffer: Buffer, position: int, end: int, field: int, kind: int) -> int:
    """Return the position after the value of a field that isn't of interest; a group goes with all it holds."""
    if kind == VARINT:
        _, position = read_varint(buffer, position, end)
        return position
    if kind in (FIXED64, FIXED32):
        position += 8 if kind == FIXED64 else 4
        return position if position <= end else TRUNCATED
    if kind == BYTES:
        length, position = read_length(buffer, position, end)
        return position if position < 0 else position + length
    if kind == END_GROUP:
        return BAD_GROUP
    return _skip_group(buffer, position, end, field)


@numba.njit(cache=True, nogil=True)
def _skip_group(buffer: Buffer, position: int, end: int, field: int) -> int:
    open_groups = np.zeros(_MAX_DEPTH, np.int64)
    open_groups[0] = field
    depth = 1
    while depth > 0:
        field, kind, position = read_tag(buffer, position, end)
        if position < 0:
            return position
        if kind == START_GROUP:
            if depth == _MAX_DEPTH:
                return BAD_GROUP
            open_groups[depth] = field
            depth += 1
        elif kind == END_GROUP:
            depth -= 1
            if open_groups[depth] != field:
                return BAD_GROUP
        elif kind == VARINT:
            _, position = read_varint(buffer, position, end)
        elif kind == BYTES:
            length, position = read_length(buffer, position, end)
            position = position if position < 0 else position + length
        else:
            position += 8 if kind == FIXED64 else 4
        if position < 0:
            return position
        if position > end:
            return TRUNCATED
    return position
