"""Objects of a frame from arrays to the bytes of Waymo's `Objects` message, as protobuf itself writes them."""

from typing import Any

import numpy as np

from detection3d.compiled_code import numba
from detection3d.evaluation.files.wire import BYTES, FIXED32, FIXED64, VARINT, Buffer, Number
from detection3d.evaluation.ground_truth import GroundTruth
from detection3d.types.scene import Detections

Array = Any  # within compiled code

# Most bytes that an object takes besides its context name.
_MAX_OBJECT = 160
_MAX_ONE_BYTE = 0x7F

# numba compiles a function anew for each plain number that it is called with; for numpy's it does so once.
_BOX_BYTES = np.int64(7 * 9)
_SPEED_BYTES = np.int64(3 * 9)
_SCORE_BYTES = np.int64(5 + 2)


def _tag(field: int, kind: int) -> np.int64:
    return np.int64(field << 3 | kind)


_ENTRY = _tag(1, BYTES)  # of Objects
_LABEL, _SCORE, _IN_ZONE = _tag(1, BYTES), _tag(2, FIXED32), _tag(3, VARINT)  # of Object
_NAME, _TIMESTAMP = _tag(4, BYTES), _tag(5, VARINT)
_BOX, _METADATA = _tag(1, BYTES), _tag(2, BYTES)  # of Label
_TYPE, _LEVEL, _POINTS = _tag(3, VARINT), _tag(5, VARINT), _tag(7, VARINT)
_NUMBERS = np.array([field << 3 | FIXED64 for field in range(8)])  # of Box and Metadata
_SPEEDS = np.array([1, 2, 5])

# Waymo's order of a box is x, y, z, width, length, height, heading.
_BOX_ORDER = np.array([0, 1, 2, 4, 3, 5, 6])


def encode_frame(item: Detections | GroundTruth) -> bytes:
    """Return the entries of one frame's objects: `Objects` messages are joined by joining their bytes.

    Args:
        item: the frame's detections or ground truth.

    Returns:
        The bytes; none where there is no object.
    """
    name = np.frombuffer(item.context_name.encode(), np.uint8)
    out = np.empty(len(item.boxes) * (_MAX_OBJECT + len(name)), np.uint8)
    count = len(item.boxes)
    if isinstance(item, Detections):
        scores, in_zone = item.scores, item.overlaps_no_label_zone
        levels, points = np.zeros(0, np.uint8), np.zeros(0, np.int32)
        still = np.zeros((0, 3), np.float32)
        velocity = still if item.velocity is None else np.pad(item.velocity, ((0, 0), (0, 1)))  # level, as the ground
    else:
        scores, in_zone = np.zeros(0, np.float32), np.zeros(0, np.bool_)
        levels, points = item.levels, item.num_points
        velocity = np.zeros((0, 3), np.float32) if item.velocity is None else item.velocity
    length = _encode_objects(
        out,
        np.ascontiguousarray(item.boxes, np.float32),
        np.asarray(item.types, np.uint8),
        np.asarray(scores, np.float32),
        np.asarray(in_zone, np.bool_),
        np.asarray(levels, np.uint8),
        np.asarray(points, np.int32),
        np.ascontiguousarray(velocity, np.float32),
        name,
        item.timestamp_micros,
    )
    assert length <= len(out), (count, length)
    return out[:length].tobytes()


@numba.njit(cache=True, nogil=True)
def _encode_objects(
    out: Buffer,
    boxes: Array,
    types: Array,
    scores: Array,
    in_zone: Array,
    levels: Array,
    points: Array,
    velocity: Array,
    name: Array,
    timestamp: int,
) -> Number:
    """Write the objects; arrays of length 0 are fields that the objects don't have."""
    tail = 1 + _varint_size(np.int64(len(name))) + len(name) + 1 + _varint_size(timestamp)
    position = np.int64(0)
    for index in range(len(boxes)):
        label = 2 + _BOX_BYTES + 1 + _varint_size(np.int64(types[index]))
        if len(velocity):
            label += 2 + _SPEED_BYTES
        if len(levels):
            label += 1 + _varint_size(np.int64(levels[index])) + 1 + _varint_size(np.int64(points[index]))
        length = 1 + _varint_size(label) + label + tail
        if len(scores):
            length += _SCORE_BYTES
        position = _header(out, position, _ENTRY, length)
        position = _header(out, position, _LABEL, label)
        position = _header(out, position, _BOX, _BOX_BYTES)
        for k in range(7):
            position = _double(out, position, _NUMBERS[k + 1], boxes[index, _BOX_ORDER[k]])
        if len(velocity):
            position = _header(out, position, _METADATA, _SPEED_BYTES)
            for k in range(3):
                position = _double(out, position, _NUMBERS[_SPEEDS[k]], velocity[index, k])
        position = _header(out, position, _TYPE, np.int64(types[index]))
        if len(levels):
            position = _header(out, position, _LEVEL, np.int64(levels[index]))
            position = _header(out, position, _POINTS, np.int64(points[index]))
        if len(scores):
            out[position] = _SCORE
            out[position + 1 : position + 5].view(np.float32)[0] = scores[index]
            position = _header(out, position + 5, _IN_ZONE, np.int64(in_zone[index]))
        position = _header(out, position, _NAME, np.int64(len(name)))
        out[position : position + len(name)] = name
        position = _header(out, position + len(name), _TIMESTAMP, timestamp)
    return position


@numba.njit(cache=True, nogil=True)
def _header(out: Buffer, position: Number, tag: Number, value: Number) -> Number:
    """Write a tag and a number: a field's value, or the length of what follows."""
    out[position] = tag
    position += 1
    rest = np.uint64(value)
    while rest > np.uint64(_MAX_ONE_BYTE):
        out[position] = rest & np.uint64(_MAX_ONE_BYTE) | np.uint64(0x80)
        rest >>= np.uint64(7)
        position += 1
    out[position] = rest
    return position + 1


@numba.njit(cache=True, nogil=True)
def _varint_size(value: Number) -> Number:
    rest = np.uint64(value)
    size = 1
    while rest > np.uint64(_MAX_ONE_BYTE):
        rest >>= np.uint64(7)
        size += 1
    return size


@numba.njit(cache=True, nogil=True)
def _double(out: Buffer, position: Number, tag: Number, value: Number) -> Number:
    out[position] = tag
    out[position + 1 : position + 9].view(np.float64)[0] = value
    return position + 9
