"""What makes a frame's labels unusable, in whichever format they came."""

from collections import Counter

import numpy as np

from detection3d.types.scene import Boxes, ObjectType

_LARGEST_DIFFICULTY = 2


def unusable_label(labels: Boxes) -> str | None:
    """Say what is wrong with the first label that can't be used; None where all are sound.

    There must be one value for each box, numbers must be finite, sizes positive, types and difficulties Waymo's, and an
    object may have one box in a frame. Labels without an id (an empty one) may be many.
    """
    for name in ("types", "ids", "difficulty", "num_points", "velocity", "acceleration"):
        if len(getattr(labels, name)) != len(labels):
            return f"{name} has {len(getattr(labels, name))} values for {len(labels)} boxes"
    usable = np.isfinite(labels.boxes).all(axis=1) & (labels.boxes[:, 3:6] > 0).all(axis=1)
    for first in np.flatnonzero(~usable)[:1]:
        values = ", ".join(f"{value:g}" for value in labels.boxes[first])
        return f"box {first} ({labels.ids[first]!r}) is ({values}); numbers must be finite and sizes positive"
    for what, values in (("velocity", labels.velocity), ("acceleration", labels.acceleration)):
        for first in np.flatnonzero(~np.isfinite(values).all(axis=1))[:1]:
            found = ", ".join(f"{value:g}" for value in values[first])
            return f"the {what} of box {first} ({labels.ids[first]!r}) is ({found}); give 0 where it isn't known"
    for what, values, largest in (
        ("type", labels.types, max(ObjectType)),
        ("difficulty", labels.difficulty, _LARGEST_DIFFICULTY),
    ):
        for first in np.flatnonzero(values > largest)[:1]:
            return f"box {first} ({labels.ids[first]!r}) is of {what} {values[first]}; known are 0 to {int(largest)}"
    for first in np.flatnonzero(labels.num_points < 0)[:1]:
        return f"box {first} ({labels.ids[first]!r}) says that {labels.num_points[first]} points are in it"
    for name, count in Counter(labels.ids).items():
        if name and count > 1:
            return f"the object {name!r} has {count} boxes in one frame"
    return None
