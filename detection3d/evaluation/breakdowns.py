"""How the metrics are split: by object type, and by type and distance, as Waymo's BreakdownGenerator does.

Each breakdown puts every box into one shard, or into none. Detections and ground truth of different shards never match.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from detection3d.types.scene import Float32Array, ObjectType, UInt8Array

ShardArray = npt.NDArray[np.int64]

EVALUATED_TYPES = (ObjectType.VEHICLE, ObjectType.PEDESTRIAN, ObjectType.SIGN, ObjectType.CYCLIST)


@dataclass(frozen=True)
class Shard:
    """One row of a breakdown, without the difficulty level.

    Attributes:
        name: the official name, such as "OBJECT_TYPE_TYPE_VEHICLE".
        object_type: the type of all its boxes; it decides the overlap that a match needs.
        distance: such as "[0, 30)", metres; empty where the breakdown doesn't look at distance.
    """

    name: str
    object_type: ObjectType
    distance: str = ""


@dataclass(frozen=True)
class ByObjectType:
    """OBJECT_TYPE: one shard for each type but UNKNOWN."""

    name: str = "OBJECT_TYPE"

    @property
    def shards(self) -> tuple[Shard, ...]:
        """The shards, in the official order."""
        return tuple(Shard(f"{self.name}_TYPE_{kind.name}", kind) for kind in EVALUATED_TYPES)

    def assign(self, boxes: Float32Array, types: UInt8Array) -> ShardArray:
        """Return the shard of each box, int64 [M], -1 for none; boxes are float32 [M, 7], types uint8 [M]."""
        del boxes
        return types.astype(np.int64) - 1


@dataclass(frozen=True)
class ByRange:
    """RANGE: each type split by distance of the box's own centre from the vehicle's origin, in 3D.

    Each box goes by its own centre, so a pair that straddles a limit is a false positive in one shard and a false
    negative in the other. That is the official rule.
    """

    name: str = "RANGE"
    limits: tuple[float, ...] = (30.0, 50.0)

    @property
    def shards(self) -> tuple[Shard, ...]:
        """The shards, in the official order: distance within type."""
        edges = ("0", *(f"{limit:g}" for limit in self.limits), "+inf")
        spans = [f"[{near}, {far})" for near, far in pairwise(edges)]
        return tuple(
            Shard(f"{self.name}_TYPE_{kind.name}_{span}", kind, span) for kind in EVALUATED_TYPES for span in spans
        )

    def assign(self, boxes: Float32Array, types: UInt8Array) -> ShardArray:
        """Return the shard of each box, int64 [M], -1 for none; boxes are float32 [M, 7], types uint8 [M]."""
        centre = boxes[:, :3].astype(np.float64)
        distance = np.sqrt(np.sum(centre * centre, axis=1))
        spans = len(self.limits) + 1
        shard = (types.astype(np.int64) - 1) * spans + np.searchsorted(self.limits, distance, side="right")
        return np.where(types == ObjectType.UNKNOWN, -1, shard)


Breakdown = ByObjectType | ByRange
