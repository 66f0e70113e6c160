"""Which detections lie where the labellers were told not to look.

The official metric takes the answer as an input: its servers compute it, its local tools expect it from the caller.
By its rule a detection overlaps a no-label zone where it contains a lidar point, of either return, that the data set
marks as lying in such a zone. Where there are no points, the zones' outlines serve: they mark more, as places without
any point count, too.
"""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from detection3d.compiled_code import numba
from detection3d.geometry.host.boxes import count_points_in_boxes
from detection3d.geometry.host.poses import zone_in_vehicle_frame
from detection3d.types.scene import BoolArray, Float64Array


def overlaps_no_label_zone(boxes: npt.NDArray[np.floating], points_in_zone: npt.NDArray[np.floating]) -> BoolArray:
    """Tell which boxes contain a point of a no-label zone.

    Args:
        boxes: [D, 7], vehicle frame.
        points_in_zone: [N, 3 or more], x, y, z in the vehicle frame: the points flagged as in a zone, and no others,
            such as `frame.points[frame.in_no_label_zone]`.

    Returns:
        bool [D]; all false where there are no points.
    """
    return count_points_in_boxes(points_in_zone, boxes) > 0


def overlaps_zone_outline(
    boxes: npt.NDArray[np.floating], zones: Sequence[npt.NDArray[np.floating]], pose: npt.NDArray[np.floating]
) -> BoolArray:
    """Tell which boxes' footprints have a point in common with the outlines of no-label zones or their inside.

    Args:
        boxes: [D, 7], vehicle frame.
        zones: the frame's zones, each [P, 2], x and y of its corners in the global frame, in order; convex or not.
        pose: [4, 4], vehicle to global.

    Returns:
        bool [D]; all false where there are no zones.

    Raises:
        ValueError: a zone isn't [P, 2], with three corners at least.
    """
    boxes = np.ascontiguousarray(boxes, np.float64)
    overlap = np.zeros(len(boxes), np.bool_)
    for zone in zones:
        if np.ndim(zone) != 2 or np.shape(zone)[1] != 2 or len(zone) < 3:
            raise ValueError(f"a no-label zone must be [P, 2] with P of at least 3, got shape {np.shape(zone)}")
        _mark_overlaps(boxes, zone_in_vehicle_frame(zone, pose), overlap)
    return overlap


@numba.njit(cache=True, nogil=True)
def _mark_overlaps(boxes: Float64Array, zone: Float64Array, overlap: BoolArray) -> None:
    for d in range(len(boxes)):
        if not overlap[d]:
            overlap[d] = _overlaps(boxes[d], zone)


@numba.njit(cache=True, nogil=True)
def _overlaps(box: Float64Array, zone: Float64Array) -> bool:
    """Look at the zone in the frame of the box, where the footprint is a window about the origin."""
    cosine, sine = math.cos(box[6]), math.sin(box[6])
    half_length, half_width = 0.5 * box[3], 0.5 * box[4]
    inside = False
    last = len(zone) - 1
    x0 = cosine * (zone[last, 0] - box[0]) + sine * (zone[last, 1] - box[1])
    y0 = cosine * (zone[last, 1] - box[1]) - sine * (zone[last, 0] - box[0])
    for k in range(len(zone)):
        x1 = cosine * (zone[k, 0] - box[0]) + sine * (zone[k, 1] - box[1])
        y1 = cosine * (zone[k, 1] - box[1]) - sine * (zone[k, 0] - box[0])
        if _crosses_window(x0, y0, x1, y1, half_length, half_width):
            return True
        # The ray from the origin along x crosses this side: once more, and the origin is on the other side of the zone.
        if (y0 > 0.0) != (y1 > 0.0) and x0 + (x1 - x0) * (y0 / (y0 - y1)) > 0.0:
            inside = not inside
        x0, y0 = x1, y1
    # No side of the zone touches the window, so it is all inside or all outside, as its centre is.
    return inside


@numba.njit(cache=True, nogil=True)
def _crosses_window(x0: float, y0: float, x1: float, y1: float, half_x: float, half_y: float) -> bool:
    """Tell whether a segment has a point in |x| <= half_x, |y| <= half_y (Liang and Barsky, 1984)."""
    first, last = 0.0, 1.0
    for start, step, half in ((x0, x1 - x0, half_x), (y0, y1 - y0, half_y)):
        if step == 0.0:
            if abs(start) > half:
                return False
            continue
        enter, leave = (-half - start) / step, (half - start) / step
        if enter > leave:
            enter, leave = leave, enter
        first, last = max(first, enter), min(last, leave)
    return first <= last
