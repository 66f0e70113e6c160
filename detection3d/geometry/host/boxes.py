"""Upright boxes on the host, float64 inside: corners, points in boxes, angles.

The box layout is fixed in `detection3d`'s docstring.
"""

import numpy as np
import numpy.typing as npt

from detection3d.compiled_code import numba
from detection3d.types.scene import BoolArray, Float64Array, Int32Array

_CORNER_SIGNS = np.array([[1, 1], [-1, 1], [-1, -1], [1, -1]], np.float64)


def wrap_angle(angle: npt.ArrayLike) -> Float64Array:
    """Wrap angles to [-pi, pi).

    Args:
        angle: radians, any shape.

    Returns:
        float64, the same shape.
    """
    angle = np.asarray(angle, np.float64)
    wrapped = np.mod(angle + np.pi, 2 * np.pi) - np.pi
    # For an angle a hair below -pi the sum rounds to 2 pi itself, which must wrap too.
    return np.where(wrapped >= np.pi, -np.pi, wrapped)


def corners_bev(boxes: npt.NDArray[np.floating]) -> Float64Array:
    """Return the four corners of each box seen from above.

    Args:
        boxes: [M, 7].

    Returns:
        float64 [M, 4, 2], x and y, counter-clockwise from the front left corner.
    """
    boxes = np.asarray(boxes, np.float64).reshape(-1, 7)
    offset = _CORNER_SIGNS * 0.5 * boxes[:, None, 3:5]
    cosine, sine = np.cos(boxes[:, None, 6]), np.sin(boxes[:, None, 6])
    x = boxes[:, None, 0] + cosine * offset[..., 0] - sine * offset[..., 1]
    y = boxes[:, None, 1] + sine * offset[..., 0] + cosine * offset[..., 1]
    return np.stack([x, y], axis=-1)


def points_in_boxes(points: npt.NDArray[np.floating], boxes: npt.NDArray[np.floating]) -> BoolArray:
    """Tell which points lie in which boxes; a point on the surface lies inside.

    Args:
        points: [N, 3 or more], of which the first three are x, y, z in the frame of the boxes.
        boxes: [M, 7].

    Returns:
        bool [N, M].
    """
    inside = np.zeros((len(points), len(boxes)), np.bool_)
    _mark_inside(_xyz(points), _prepare(boxes), inside)
    return inside


def count_points_in_boxes(points: npt.NDArray[np.floating], boxes: npt.NDArray[np.floating]) -> Int32Array:
    """Count the points in each box, as `points_in_boxes(points, boxes).sum(axis=0)` without the [N, M] array.

    Args:
        points: [N, 3 or more], of which the first three are x, y, z in the frame of the boxes.
        boxes: [M, 7].

    Returns:
        int32 [M].
    """
    counts = np.zeros(len(boxes), np.int32)
    _count_inside(_xyz(points), _prepare(boxes), counts)
    return counts


def _xyz(points: npt.NDArray[np.floating]) -> Float64Array:
    return np.ascontiguousarray(np.asarray(points)[:, :3], np.float64)


def _prepare(boxes: npt.NDArray[np.floating]) -> Float64Array:
    """Return [M, 8]: centre, half sizes, cosine and sine of the heading."""
    boxes = np.asarray(boxes, np.float64).reshape(-1, 7)
    return np.column_stack([boxes[:, :3], 0.5 * boxes[:, 3:6], np.cos(boxes[:, 6]), np.sin(boxes[:, 6])])


@numba.njit(cache=True, inline="always")
def _inside(x: float, y: float, z: float, box: Float64Array) -> bool:
    dx, dy = x - box[0], y - box[1]
    along = dx * box[6] + dy * box[7]
    across = dy * box[6] - dx * box[7]
    return abs(z - box[2]) <= box[5] and abs(along) <= box[3] and abs(across) <= box[4]


@numba.njit(cache=True, parallel=True)
def _mark_inside(points: Float64Array, boxes: Float64Array, inside: BoolArray) -> None:
    for n in numba.prange(len(points)):
        for m in range(len(boxes)):
            inside[n, m] = _inside(points[n, 0], points[n, 1], points[n, 2], boxes[m])


@numba.njit(cache=True, parallel=True)
def _count_inside(points: Float64Array, boxes: Float64Array, counts: Int32Array) -> None:
    for m in numba.prange(len(boxes)):
        box = boxes[m]
        radius = np.hypot(box[3], box[4])
        count = 0
        for n in range(len(points)):
            # Most points are far from the box: one comparison sends them off.
            if abs(points[n, 0] - box[0]) > radius:
                continue
            if _inside(points[n, 0], points[n, 1], points[n, 2], box):
                count += 1
        counts[m] = count
