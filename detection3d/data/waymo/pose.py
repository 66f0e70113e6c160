"""Matrices that place one frame in another."""

from collections.abc import Sequence

import numpy as np

from detection3d.data.waymo.malformed import MalformedFrameError
from detection3d.geometry.host.poses import is_rigid
from detection3d.types.scene import Float64Array


def rigid_pose(numbers: Sequence[float] | Float64Array, name: str) -> Float64Array:
    """Return float64 [4, 4] after checking that it is a rotation and a translation.

    Args:
        numbers: 16, row by row.
        name: what it is, for the message.

    Raises:
        MalformedFrameError: it is something else.
    """
    values = np.array(numbers, np.float64)
    if values.size != 16:
        raise MalformedFrameError(f"{name} has {values.size} numbers instead of 16")
    pose = values.reshape(4, 4)
    if not (np.isfinite(pose).all() and is_rigid(pose)):
        raise MalformedFrameError(f"{name} isn't a rotation and a translation: {values.tolist()}")
    return pose
