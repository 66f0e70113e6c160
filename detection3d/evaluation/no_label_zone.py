"""Which detections lie where the labellers were told not to look.

The official metric takes the answer as an input: its servers compute it, its local tools expect it from the caller.
A detection counts as overlapping a no-label zone where it contains a lidar point, of either return, that the data set
marks as lying in such a zone.
"""

import numpy as np
import numpy.typing as npt

from detection3d.geometry.host.boxes import count_points_in_boxes
from detection3d.types.scene import BoolArray


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
