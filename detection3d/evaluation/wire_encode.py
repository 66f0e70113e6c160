"""Objects of a frame from arrays to the bytes of Waymo's `Objects` message, as protobuf itself writes them."""

from typing import Any

import numba
import numpy as np

from detection3d.evaluation.ground_truth import GroundTruth
from detection3d.evaluation.wire import BYTES, FIXED32, FIXED64, VARINT, Buffer
from detection3d.types.scene import Detections

Array = Any  # within compiled code

# Most bytes that an object takes besides its context name.
_MAX_OBJECT = 160
_MAX_ONE_BYTE = 0x7F

_BOX_BYTES = 7 * 9
_SPEED_BYTES = 3 * 9
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
        levels, points, velocity = np.zeros(0, np.uint8), np.zeros(0, np.int32), np.zeros((0, 3), np.float32)
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
) -> int:
    """Write the objects; arrays of length 0 are fields that the objects don't have."""
    tail = 1 + _varint_size(len(name)) + len(name) + 1 + _varint_size(timestamp)
    position = 0
    for index in range(len(boxes)):
        label = 2 + _BOX_BYTES + 1 + _varint_size(types[index])
        if len(velocity):
            label += 2 + _SPEED_BYTES
        if len(levels):
            label += 1 + _varint_size(levels[index]) + 1 + _varint_size(points[index])
        length = 1 + _varint_size(label) + label + tail
        if len(scores):
            length += 5 + 2
        position = _header(out, position, 1, BYTES, length)
        position = _header(out, position, 1, BYTES, label)
        position = _header(out, position, 1, BYTES, _BOX_BYTES)
        for k in range(7):
            position = _double(out, position, k + 1, boxes[index, _BOX_ORDER[k]])
        if len(velocity):
            position = _header(out, position, 2, BYTES, _SPEED_BYTES)
            position = _double(out, position, 1, velocity[index, 0])
            position = _double(out, position, 2, velocity[index, 1])
            position = _double(out, position, 5, velocity[index, 2])
        position = _header(out, position, 3, VARINT, types[index])
        if len(levels):
            position = _header(out, position, 5, VARINT, levels[index])
            position = _header(out, position, 7, VARINT, points[index])
        if len(scores):
            out[position] = 2 << 3 | FIXED32
            out[position + 1 : position + 5].view(np.float32)[0] = scores[index]
            position = _header(out, position + 5, 3, VARINT, in_zone[index])
        position = _header(out, position, 4, BYTES, len(name))
        out[position : position + len(name)] = name
        position = _header(out, position + len(name), 5, VARINT, timestamp)
    return position


@numba.njit(cache=True, nogil=True)
def _header(out: Buffer, position: int, field: int, kind: int, value: int) -> int:
    """Write a tag and a number: a field's value, or the length of what follows."""
    out[position] = field << 3 | kind
    position += 1
    rest = np.uint64(np.int64(value))
    while rest > np.uint64(_MAX_ONE_BYTE):
        out[position] = rest & np.uint64(_MAX_ONE_BYTE) | np.uint64(0x80)
        rest >>= np.uint64(7)
        position += 1
    out[position] = rest
    return position + 1


@numba.njit(cache=True, nogil=True)
def _varint_size(value: int) -> int:
    rest = np.uint64(np.int64(value))
    size = 1
    while rest > np.uint64(_MAX_ONE_BYTE):
        rest >>= np.uint64(7)
        size += 1
    return size


@numba.njit(cache=True, nogil=True)
def _double(out: Buffer, position: int, field: int, value: float) -> int:
    out[position] = field << 3 | FIXED64
    out[position + 1 : position + 9].view(np.float64)[0] = value
    return position + 9
