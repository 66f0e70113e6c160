"""Overlap of upright rotated boxes on the host, exact, in float64.

The intersection of two rectangles is found in the frame of the first one: there it is an axis-aligned window, and the
second rectangle is clipped against its four sides (Sutherland and Hodgman, 1974). Centres are subtracted before
anything is rotated, so that the result is as good far from the origin as near it, and a box overlaps itself exactly.

Which boxes count as degenerate follows `ComputeIoU` and `ComputeIoU3d` in metrics/iou.cc of the Waymo Open Dataset.
"""

import math

import numpy as np
import numpy.typing as npt

from detection3d.compiled_code import numba
from detection3d.types.scene import Float64Array

MIN_SIDE = 1e-2  # metres; a box with a side of at most this overlaps nothing
MAX_SIDE = 1e6  # metres; nor does one with a side of at least this
MIN_UNION = 1e-6  # square or cubic metres; the overlap is 0 where the union is at most this

# A convex quadrilateral clipped four times has at most 8 vertices. Rounding can bend a side that lies on the window's
# side by one unit in the last place, so this is what any polygon can come to: half as many again with each clip.
_MAX_VERTICES = 20


@numba.njit(cache=True, nogil=True)
def _clip(polygon: Float64Array, count: int, axis: int, sign: float, limit: float, clipped: Float64Array) -> int:
    """Keep the part of a convex polygon where sign * coordinate[axis] <= limit; returns its number of vertices."""
    kept = 0
    for k in range(count):
        following = k + 1 if k + 1 < count else 0
        here = sign * polygon[k, axis] - limit
        there = sign * polygon[following, axis] - limit
        if here <= 0.0:
            clipped[kept, 0] = polygon[k, 0]
            clipped[kept, 1] = polygon[k, 1]
            kept += 1
        if (here < 0.0 < there) or (there < 0.0 < here):
            share = here / (here - there)
            other = 1 - axis
            clipped[kept, axis] = sign * limit
            clipped[kept, other] = polygon[k, other] + share * (polygon[following, other] - polygon[k, other])
            kept += 1
    return kept


@numba.njit(cache=True, nogil=True)
def _intersection_area(a: Float64Array, b: Float64Array, scratch: Float64Array) -> float:
    """Area common to the footprints of boxes a and b, float64 [7]; scratch is float64 [2, _MAX_VERTICES, 2]."""
    offset_x = b[0] - a[0]
    offset_y = b[1] - a[1]
    reach = 0.5 * (math.hypot(a[3], a[4]) + math.hypot(b[3], b[4]))
    if offset_x * offset_x + offset_y * offset_y > reach * reach:
        return 0.0
    cosine = math.cos(a[6])
    sine = math.sin(a[6])
    centre_x = cosine * offset_x + sine * offset_y
    centre_y = cosine * offset_y - sine * offset_x
    turn = b[6] - a[6]
    cosine = math.cos(turn)
    sine = math.sin(turn)
    for corner in range(4):
        along = 0.5 * b[3] if corner == 0 or corner == 3 else -0.5 * b[3]
        across = 0.5 * b[4] if corner < 2 else -0.5 * b[4]
        scratch[0, corner, 0] = centre_x + cosine * along - sine * across
        scratch[0, corner, 1] = centre_y + sine * along + cosine * across
    count = _clip(scratch[0], 4, 0, 1.0, 0.5 * a[3], scratch[1])
    count = _clip(scratch[1], count, 0, -1.0, 0.5 * a[3], scratch[0])
    count = _clip(scratch[0], count, 1, 1.0, 0.5 * a[4], scratch[1])
    count = _clip(scratch[1], count, 1, -1.0, 0.5 * a[4], scratch[0])
    polygon = scratch[0]
    twice_area = 0.0
    for k in range(1, count - 1):
        # A fan of triangles from vertex 0: differences only, so a far-away polygon loses no digits.
        twice_area += (polygon[k, 0] - polygon[0, 0]) * (polygon[k + 1, 1] - polygon[0, 1])
        twice_area -= (polygon[k + 1, 0] - polygon[0, 0]) * (polygon[k, 1] - polygon[0, 1])
    return max(0.5 * twice_area, 0.0)


@numba.njit(cache=True, nogil=True)
def _ratio(intersection: float, size_a: float, size_b: float) -> float:
    union = size_a + size_b - intersection
    if union <= MIN_UNION:
        return 0.0
    return min(max(intersection / union, 0.0), 1.0)


@numba.njit(cache=True, nogil=True)
def _usable(box: Float64Array, sides: int) -> bool:
    """Tell whether the first `sides` of (length, width, height) are large enough, and all three small enough."""
    smallest = min(box[3], box[4]) if sides == 2 else min(box[3], box[4], box[5])
    return smallest > MIN_SIDE and max(box[3], box[4], box[5]) < MAX_SIDE


@numba.njit(cache=True, nogil=True)
def _bev_iou(a: Float64Array, b: Float64Array, scratch: Float64Array) -> float:
    if not (_usable(a, 2) and _usable(b, 2)):
        return 0.0
    return _ratio(_intersection_area(a, b, scratch), a[3] * a[4], b[3] * b[4])


@numba.njit(cache=True, nogil=True)
def _iou_3d(a: Float64Array, b: Float64Array, scratch: Float64Array) -> float:
    if not (_usable(a, 3) and _usable(b, 3)):
        return 0.0
    top = min(a[2] + a[5] * 0.5, b[2] + b[5] * 0.5)
    bottom = max(a[2] - a[5] * 0.5, b[2] - b[5] * 0.5)
    if bottom > top:
        return 0.0
    intersection = _intersection_area(a, b, scratch) * (top - bottom)
    return _ratio(intersection, a[3] * a[4] * a[5], b[3] * b[4] * b[5])


@numba.njit(cache=True, nogil=True)
def iou_3d_pair(a: Float64Array, b: Float64Array) -> float:
    """Return the 3D IoU of two boxes, float64 [7], for callers that are compiled themselves."""
    return _iou_3d(a, b, np.empty((2, _MAX_VERTICES, 2), np.float64))


@numba.njit(cache=True, nogil=True)
def _pairs(a: Float64Array, b: Float64Array, three_dimensional: bool) -> Float64Array:
    result = np.empty(len(a), np.float64)
    scratch = np.empty((2, _MAX_VERTICES, 2), np.float64)
    for i in range(len(a)):
        result[i] = _iou_3d(a[i], b[i], scratch) if three_dimensional else _bev_iou(a[i], b[i], scratch)
    return result


@numba.njit(cache=True, nogil=True)
def _matrix(a: Float64Array, b: Float64Array, three_dimensional: bool) -> Float64Array:
    result = np.empty((len(a), len(b)), np.float64)
    scratch = np.empty((2, _MAX_VERTICES, 2), np.float64)
    for i in range(len(a)):
        for j in range(len(b)):
            result[i, j] = _iou_3d(a[i], b[j], scratch) if three_dimensional else _bev_iou(a[i], b[j], scratch)
    return result


def bev_iou_pairs(a: npt.ArrayLike, b: npt.ArrayLike) -> Float64Array:
    """Return the bird's-eye-view IoU of box a[i] with box b[i].

    Args:
        a: boxes [M, 7], finite, any heading.
        b: boxes [M, 7].

    Returns:
        float64 [M] in [0, 1]; 0 where length or width of either box is degenerate.

    Raises:
        ValueError: the shapes aren't [M, 7], or differ.
    """
    return _pairs(*_same_length(_boxes(a), _boxes(b)), False)


def iou_3d_pairs(a: npt.ArrayLike, b: npt.ArrayLike) -> Float64Array:
    """Return the 3D IoU of box a[i] with box b[i]; arguments, result and errors as in `bev_iou_pairs`."""
    return _pairs(*_same_length(_boxes(a), _boxes(b)), True)


def bev_iou_matrix(a: npt.ArrayLike, b: npt.ArrayLike) -> Float64Array:
    """Return the bird's-eye-view IoU of every box of a [P, 7] with every box of b [Q, 7], float64 [P, Q]."""
    return _matrix(_boxes(a), _boxes(b), False)


def iou_3d_matrix(a: npt.ArrayLike, b: npt.ArrayLike) -> Float64Array:
    """Return the 3D IoU of every box of a [P, 7] with every box of b [Q, 7], float64 [P, Q]."""
    return _matrix(_boxes(a), _boxes(b), True)


def _boxes(boxes: npt.ArrayLike) -> Float64Array:
    array = np.ascontiguousarray(boxes, dtype=np.float64)
    if array.ndim != 2 or array.shape[1] != 7:
        raise ValueError(f"boxes must be [M, 7] (x, y, z, length, width, height, heading), got shape {array.shape}")
    return array


def _same_length(a: Float64Array, b: Float64Array) -> tuple[Float64Array, Float64Array]:
    if len(a) != len(b):
        raise ValueError(f"pairs need as many boxes on both sides, got {len(a)} and {len(b)}")
    return a, b
