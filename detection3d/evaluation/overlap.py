"""Overlap of detections and ground truth as the official metric computes it, rounding and quirks included.

`geometry.host.iou` is the better instrument: it is as good far from the origin as near it. This one exists because a
difference in the last bit of an overlap can decide a match. So it takes the official steps: corners in absolute
coordinates; the two outlines walked around together, each edge advancing towards the other (O'Rourke et al., "A new
linear algorithm for intersecting convex polygons", 1982), with the sign of a cross product settled exactly where it is
close to zero; a fan of triangles for the area. Where sides lie on each other, that walk can miss the intersection or
take a whole box for it; the metric then goes by what it returns, and so does this.

Source: `ComputeIoU` in metrics/iou.cc and `ComputeIntersectionVertices` in math/polygon2d.cc of the Waymo Open Dataset.
"""

import math

import numpy as np
import numpy.typing as npt

from detection3d.compiled_code import numba
from detection3d.evaluation.exact_cross import cross
from detection3d.evaluation.ground_truth import GroundTruth
from detection3d.geometry.host.iou import MAX_SIDE, MIN_SIDE, MIN_UNION, iou_3d_pair
from detection3d.types.scene import Detections, Float32Array, Float64Array, UInt8Array

_NEAR = 2.0**-50  # cross products whose difference is smaller are told apart exactly
_MIN_TWICE_AREA = 1e-10  # square metres; twice the area of a smaller intersection counts as 0
_RATIO_TOLERANCE = 1e-6  # the official program ends where an overlap leaves [0, 1] by more

Point = tuple[float, float]
Int64Array = npt.NDArray[np.int64]


@numba.njit(cache=True, nogil=True)
def footprints(boxes: Float64Array) -> Float64Array:
    """Return the corners of boxes, float64 [M, 4, 2], counter-clockwise from the rear left; boxes are [M, 7]."""
    corners = np.empty((len(boxes), 4, 2), np.float64)
    for m in range(len(boxes)):
        box = boxes[m]
        half = box[3] / 2.0
        ahead_x, ahead_y = math.cos(box[6]) * half, math.sin(box[6]) * half
        rear_x, rear_y = box[0] - ahead_x, box[1] - ahead_y
        front_x, front_y = box[0] + ahead_x, box[1] + ahead_y
        scale = 1.0 / box[3] if box[3] != 0.0 else 0.0
        half = box[4] / 2.0
        left_x, left_y = -(front_y - rear_y) * scale * half, (front_x - rear_x) * scale * half
        corners[m, 0, 0], corners[m, 0, 1] = rear_x + left_x, rear_y + left_y
        corners[m, 1, 0], corners[m, 1, 1] = rear_x - left_x, rear_y - left_y
        corners[m, 2, 0], corners[m, 2, 1] = front_x - left_x, front_y - left_y
        corners[m, 3, 0], corners[m, 3, 1] = front_x + left_x, front_y + left_y
    return corners


@numba.njit(cache=True, nogil=True)
def _between(a: Point, b: Point, point: Point) -> bool:
    return min(a[0], b[0]) <= point[0] <= max(a[0], b[0]) and min(a[1], b[1]) <= point[1] <= max(a[1], b[1])


@numba.njit(cache=True, nogil=True)
def _beyond(share: float, whole: float, tolerance: float) -> int:
    """Place a parameter share / whole of a segment: -1 outside, 0 inside, 1 too close to the end to be sure."""
    if whole < 0.0:
        share, whole = -share, -whole
    if share < 0.0 or share > whole + tolerance:
        return -1
    return 1 if share > whole - tolerance else 0


@numba.njit(cache=True, nogil=True)
def _meeting(p0: Point, p1: Point, q0: Point, q1: Point, turn: float) -> tuple[bool, float, float]:
    """Return whether two segments meet and where; turn is the cross product of p0 -> p1 and q1 -> q0."""
    if turn == 0.0:
        if cross(p0, p1, p0, q0) != 0.0:
            return False, 0.0, 0.0
        # On one line: any common end will do.
        if _between(q0, q1, p0):
            return True, p0[0], p0[1]
        if _between(q0, q1, p1):
            return True, p1[0], p1[1]
        if _between(p0, p1, q0):
            return True, q0[0], q0[1]
        if _between(p0, p1, q1):
            return True, q1[0], q1[1]
        return False, 0.0, 0.0
    tolerance = max(abs(turn), 1.0) * _NEAR
    along_p = cross(p0, q0, q1, q0)
    place = _beyond(along_p, turn, tolerance)
    # Close to an end, the segment is measured from there, where the sign is exact.
    if place < 0 or (place > 0 and cross(p1, q1, q0, q1) * turn < 0.0):
        return False, 0.0, 0.0
    along_q = cross(p0, p1, p0, q0)
    place = _beyond(along_q, turn, tolerance)
    if place < 0 or (place > 0 and cross(p1, p0, p1, q1) * turn < 0.0):
        return False, 0.0, 0.0
    share = min(max(along_p / turn, 0.0), 1.0)
    return True, p0[0] + (p1[0] - p0[0]) * share, p0[1] + (p1[1] - p0[1]) * share


@numba.njit(cache=True, nogil=True)
def _fan_area(points: Float64Array, count: int | np.int64) -> float:
    if count < 3:
        return 0.0
    twice = 0.0
    for k in range(1, count - 1):
        x1, y1 = points[k, 0] - points[0, 0], points[k, 1] - points[0, 1]
        x2, y2 = points[k + 1, 0] - points[0, 0], points[k + 1, 1] - points[0, 1]
        twice += x1 * y2 - y1 * x2
    return 0.0 if abs(twice) <= _MIN_TWICE_AREA else 0.5 * twice


@numba.njit(cache=True, nogil=True)
def _apart(p: Float64Array, q: Float64Array) -> bool:
    """Tell whether the outlines' axis-aligned bounds are apart along either axis."""
    for axis in range(2):
        p_least = min(min(p[0, axis], p[1, axis]), min(p[2, axis], p[3, axis]))
        p_most = max(max(p[0, axis], p[1, axis]), max(p[2, axis], p[3, axis]))
        q_least = min(min(q[0, axis], q[1, axis]), min(q[2, axis], q[3, axis]))
        q_most = max(max(q[0, axis], q[1, axis]), max(q[2, axis], q[3, axis]))
        if p_least > q_most or q_least > p_most:
            return True
    return False


@numba.njit(cache=True, nogil=True)
def _contains(outline: Float64Array, points: Float64Array) -> bool:
    """Tell whether an outline contains all corners of another; float64 [4, 2] both."""
    for i in range(4):
        x, y = points[i, 0], points[i, 1]
        for axis in range(2):
            least = min(min(outline[0, axis], outline[1, axis]), min(outline[2, axis], outline[3, axis]))
            most = max(max(outline[0, axis], outline[1, axis]), max(outline[2, axis], outline[3, axis]))
            if points[i, axis] < least or points[i, axis] > most:
                return False
        for k in range(4):
            following = (k + 1) % 4
            side_x, side_y = outline[following, 0] - outline[k, 0], outline[following, 1] - outline[k, 1]
            if side_x * (y - outline[k, 1]) - side_y * (x - outline[k, 0]) < 0.0:
                return False
    return True


@numba.njit(cache=True, nogil=True)
def _common_area(p: Float64Array, q: Float64Array, found: Float64Array) -> float:
    """Return the area common to two outlines, float64 [4, 2]; found is scratch, float64 [16, 2]."""
    if _apart(p, q):
        return 0.0
    p_inside = q_inside = False
    i = j = 0
    count = np.int64(0)  # typed: functions are compiled once more for an argument that begins as a plain 0
    rounds_left = 16
    while rounds_left > 0:
        i_next, j_next = (i + 1) % 4, (j + 1) % 4
        p0, p1 = (p[i, 0], p[i, 1]), (p[i_next, 0], p[i_next, 1])
        q0, q1 = (q[j, 0], q[j, 1]), (q[j_next, 0], q[j_next, 1])
        turn = cross(p0, p1, q1, q0)
        meet, x, y = _meeting(p0, p1, q0, q1, turn)
        if meet:
            again = count > 0 and x == found[0, 0] and y == found[0, 1]
            if count > 2 and again:
                return _fan_area(found, count)
            if count == 0:
                rounds_left = 9  # this one and one for each corner: enough to come back here
            if count == 0 or not (again or (x == found[count - 1, 0] and y == found[count - 1, 1])):
                found[count, 0], found[count, 1] = x, y
                count += 1
            p_inside = cross(q1, q0, p1, q0) >= 0.0
            q_inside = not p_inside
        forward_p = cross(q1, q0, p1, q0) < 0.0 if turn >= 0.0 else cross(p1, p0, q1, p0) >= 0.0
        passed, x, y = (p_inside, p1[0], p1[1]) if forward_p else (q_inside, q1[0], q1[1])
        if forward_p:
            i = i_next
        else:
            j = j_next
        if passed:
            known = count > 0 and (
                (x == found[0, 0] and y == found[0, 1]) or (x == found[count - 1, 0] and y == found[count - 1, 1])
            )
            if not known:
                found[count, 0], found[count, 1] = x, y
                count += 1
        rounds_left -= 1
    if count > 0:
        return 0.0  # as the walk never came back, they share a corner or an edge at most
    if _contains(q, p):
        return _fan_area(p, np.int64(4))
    if _contains(p, q):
        return _fan_area(q, np.int64(4))
    return 0.0


@numba.njit(cache=True, nogil=True)
def _overlap(a: Float64Array, b: Float64Array, p: Float64Array, q: Float64Array, found: Float64Array) -> float:
    """Return the 3D IoU of boxes a and b, float64 [7], with footprints p and q."""
    bottom = max(a[2] - a[5] * 0.5, b[2] - b[5] * 0.5)
    top = min(a[2] + a[5] * 0.5, b[2] + b[5] * 0.5)
    if bottom > top:
        return 0.0
    common = _common_area(p, q, found) * (top - bottom)
    union = a[3] * a[4] * a[5] + b[3] * b[4] * b[5] - common
    if union <= MIN_UNION:
        return 0.0
    ratio = common / union
    if not -_RATIO_TOLERANCE <= ratio <= 1.0 + _RATIO_TOLERANCE:
        # The walk took a wrong way. The official program ends here: there is nothing to be equal to.
        return iou_3d_pair(a, b)
    return max(min(ratio, 1.0), 0.0)


@numba.njit(cache=True, nogil=True)
def _usable(box: Float64Array) -> bool:
    # The official op has no overlap with a box of NaN or infinite numbers, either, where it does not end the process.
    for k in range(7):
        if not math.isfinite(box[k]):
            return False
    return min(box[3], box[4], box[5]) > MIN_SIDE and max(box[3], box[4], box[5]) < MAX_SIDE


@numba.njit(cache=True, nogil=True)
def fill_overlaps(
    a_ends: Int64Array,
    a: Float64Array,
    a_types: UInt8Array,
    b_ends: Int64Array,
    b: Float64Array,
    b_types: UInt8Array,
    overlaps: Float32Array,
) -> None:
    """Fill in the 3D IoU of each detection with each object of its frame; F frames, P detections, G objects.

    Args:
        a_ends: int64 [F], place after the last detection of each frame.
        a: detections, float64 [P, 7].
        a_types: uint8 [P].
        b_ends: int64 [F], likewise of the objects.
        b: objects, float64 [G, 7].
        b_types: uint8 [G].
        overlaps: float32; filled in, frame after frame and row by row; 0 where types differ, a side is degenerate
            or a number isn't finite.
    """
    p, q = footprints(a), footprints(b)
    found = np.empty((16, 2), np.float64)
    place = first_a = first_b = 0
    for frame in range(len(a_ends)):
        for i in range(first_a, a_ends[frame]):
            usable = _usable(a[i])
            for j in range(first_b, b_ends[frame]):
                if usable and a_types[i] == b_types[j] and _usable(b[j]):
                    overlaps[place] = np.float32(_overlap(a[i], b[j], p[i], q[j], found))
                else:
                    overlaps[place] = 0.0
                place += 1
        first_a, first_b = a_ends[frame], b_ends[frame]


def type_overlaps(detections: Detections, truth: GroundTruth) -> Float32Array:
    """Return the 3D IoU of each detection with each object of a frame, float32 [D, M], 0 where the types differ."""
    a, b = detections.boxes.astype(np.float64), truth.boxes.astype(np.float64)
    overlaps = np.empty((len(a), len(b)), np.float32)
    a_types, b_types = detections.types.astype(np.uint8), truth.types.astype(np.uint8)
    fill_overlaps(np.array([len(a)]), a, a_types, np.array([len(b)]), b, b_types, overlaps.reshape(-1))
    return overlaps
