"""Waymo v2: rows of the components `lidar_box` and `lidar_camera_synced_box` as boxes."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from detection3d.data.waymo.components import OBJECT
from detection3d.data.waymo.labels import make_boxes
from detection3d.data.waymo.malformed import MalformedFrameError
from detection3d.types.scene import Boxes, Float64Array

_LABEL = "[LiDARBoxComponent]."
_NUMBERS = (*(f"{part}.{axis}" for part in ("center", "size") for axis in "xyz"), "heading")
_GEOMETRY = tuple(f"{_LABEL}box.{name}" for name in _NUMBERS)
SYNCED_COLUMNS = tuple(f"[LiDARCameraSyncedBoxComponent].camera_synced_box.{name}" for name in _NUMBERS)
_TYPE = f"{_LABEL}type"
_POINTS = f"{_LABEL}num_lidar_points_in_box"
_DIFFICULTY = f"{_LABEL}difficulty_level.detection"
_MOTION = tuple(f"{_LABEL}{kind}.{axis}" for kind in ("speed", "acceleration") for axis in "xyz")

# Evaluation leaves out boxes without points, so their number must not be guessed.
NEEDED_COLUMNS = (*_GEOMETRY, _TYPE, _POINTS)
OPTIONAL_COLUMNS = (*_MOTION, _DIFFICULTY)
SYNCED = "camera-synced"
"""Where `boxes_of_rows` expects the numbers of `SYNCED_COLUMNS`."""


def boxes_of_rows(rows: Sequence[dict[str, Any]], pose: Float64Array) -> Boxes:
    """Turn a frame's rows into boxes, in their order.

    Args:
        rows: by column, and under `SYNCED` the numbers of the camera-synced box or None; an absent number of the
            optional columns is 0.
        pose: float64 [4, 4], vehicle to global.

    Raises:
        MalformedFrameError: a number that must be there isn't, isn't finite or is absurdly large.
    """
    for row in rows:
        for name in (_TYPE, _POINTS):
            if row[name] is None:
                raise MalformedFrameError(f"the object {row[OBJECT]} has no {name}")
    motion = np.array([[row[name] or 0.0 for name in _MOTION] for row in rows], np.float64)
    return make_boxes(
        np.array([[row[name] for name in _GEOMETRY] for row in rows], np.float64),
        motion.reshape(-1, 2, 3),
        pose,
        types=[int(row[_TYPE]) for row in rows],
        ids=[row[OBJECT] for row in rows],
        difficulty=[int(row[_DIFFICULTY] or 0) for row in rows],
        num_points=[int(row[_POINTS]) for row in rows],
        synced=np.array([row[SYNCED] or (np.nan,) * 7 for row in rows], np.float64),
        has_synced=np.array([row[SYNCED] is not None for row in rows], np.bool_),
    )
