"""How the metrics are split, as Waymo's BreakdownGenerators do.

Each breakdown puts every box into one shard, or into none. Detections and ground truth of different shards never match,
except in VELOCITY, which splits the ground truth alone: a detection has no speed of its own.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from detection3d.types.scene import Float32Array, Float64Array, ObjectType, UInt8Array

ShardArray = npt.NDArray[np.int64]

EVALUATED_TYPES = (ObjectType.VEHICLE, ObjectType.PEDESTRIAN, ObjectType.SIGN, ObjectType.CYCLIST)


@dataclass(frozen=True)
class Shard:
    """One row of a breakdown, without the difficulty level.

    Attributes:
        name: the official name, such as "OBJECT_TYPE_TYPE_VEHICLE".
        object_type: the type of all its boxes; UNKNOWN where they are of several.
        part: which part of the type: "[0, 30)" metres, "small", "SLOW"; empty where the type isn't split.
    """

    name: str
    object_type: ObjectType
    part: str = ""

    @property
    def distance(self) -> str:
        """Such as "[0, 30)", metres; empty where the breakdown doesn't look at distance."""
        return self.part if self.part.startswith("[") else ""


@dataclass(frozen=True)
class ByObjectType:
    """OBJECT_TYPE: one shard for each type but UNKNOWN."""

    name: str = "OBJECT_TYPE"

    @property
    def shards(self) -> tuple[Shard, ...]:
        """The shards, in the official order."""
        return tuple(Shard(f"{self.name}_TYPE_{kind.name}", kind) for kind in EVALUATED_TYPES)

    def assign(self, boxes: Float32Array, types: UInt8Array, velocity: Float32Array) -> ShardArray:
        """Put boxes into shards.

        Args:
            boxes: float32 [M, 7].
            types: uint8 [M].
            velocity: float32 [M, 3], m/s.

        Returns:
            int64 [M], the shard of each box, -1 for none.
        """
        del boxes, velocity
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
        return _split_types(self.name, tuple(f"[{near}, {far})" for near, far in pairwise(edges)))

    def assign(self, boxes: Float32Array, types: UInt8Array, velocity: Float32Array) -> ShardArray:
        """Put boxes into shards; see `ByObjectType.assign`."""
        del velocity
        x, y, z = boxes[:, :3].astype(np.float64).T
        return _part_of_type(types, np.sqrt(x * x + y * y + z * z), self.limits)


@dataclass(frozen=True)
class BySize:
    """SIZE: each type split by the longest side of the box, small below 7 m."""

    name: str = "SIZE"

    @property
    def shards(self) -> tuple[Shard, ...]:
        """The shards, in the official order."""
        return _split_types(self.name, ("small", "large"))

    def assign(self, boxes: Float32Array, types: UInt8Array, velocity: Float32Array) -> ShardArray:
        """Put boxes into shards; see `ByObjectType.assign`."""
        del velocity
        return _part_of_type(types, boxes[:, 3:6].max(axis=1, initial=-np.inf).astype(np.float64), (7.0,))


@dataclass(frozen=True)
class ByVelocity:
    """VELOCITY: the objects of each type split by their speed over ground.

    Detections of a type are matched with all of its objects, once. A match counts in the object's shard. An unmatched
    detection is a false positive in the shard of the object that it overlaps most, and in all shards of its type where
    it overlaps none by 0.01 or more. An object whose velocity isn't known stands still, as it does officially.
    """

    name: str = "VELOCITY"

    @property
    def shards(self) -> tuple[Shard, ...]:
        """The shards, in the official order."""
        return _split_types(self.name, ("STATIONARY", "SLOW", "MEDIUM", "FAST", "VERY_FAST"))

    def assign(self, boxes: Float32Array, types: UInt8Array, velocity: Float32Array) -> ShardArray:
        """Put objects into shards; see `ByObjectType.assign`."""
        del boxes
        x, y = np.nan_to_num(velocity[:, :2].astype(np.float64), nan=0.0).T
        # 0.2 is a float32 there.
        return _part_of_type(types, np.sqrt(x * x + y * y), (float(np.float32(0.2)), 1.0, 3.0, 10.0))


@dataclass(frozen=True)
class AllButSign:
    """ALL_BUT_SIGN: everything but signs in one shard, UNKNOWN included, and signs in another."""

    name: str = "ALL_BUT_SIGN"

    @property
    def shards(self) -> tuple[Shard, ...]:
        """The shards, in the official order."""
        return (Shard("ALL_BUT_SIGN", ObjectType.UNKNOWN), Shard("SIGN", ObjectType.SIGN))

    def assign(self, boxes: Float32Array, types: UInt8Array, velocity: Float32Array) -> ShardArray:
        """Put boxes into shards; see `ByObjectType.assign`."""
        del boxes, velocity
        return (types == ObjectType.SIGN).astype(np.int64)


@dataclass(frozen=True)
class OneShard:
    """ONE_SHARD: everything, UNKNOWN included."""

    name: str = "ONE_SHARD"

    @property
    def shards(self) -> tuple[Shard, ...]:
        """The one shard."""
        return (Shard("ONE_SHARD", ObjectType.UNKNOWN),)

    def assign(self, boxes: Float32Array, types: UInt8Array, velocity: Float32Array) -> ShardArray:
        """Put boxes into shards; see `ByObjectType.assign`."""
        del boxes, velocity
        return np.zeros(len(types), np.int64)


Breakdown = ByObjectType | ByRange | ByVelocity | BySize | AllButSign | OneShard

BREAKDOWNS: dict[str, Breakdown] = {
    split.name: split for split in (OneShard(), ByObjectType(), ByRange(), ByVelocity(), AllButSign(), BySize())
}
"""Those that Waymo's metrics of lidar detection offer, by their official names."""


def _split_types(name: str, parts: tuple[str, ...]) -> tuple[Shard, ...]:
    return tuple(Shard(f"{name}_TYPE_{kind.name}_{part}", kind, part) for kind in EVALUATED_TYPES for part in parts)


def _part_of_type(types: UInt8Array, values: Float64Array, limits: tuple[float, ...]) -> ShardArray:
    """Return the shard of each box where types are split by a value; a limit belongs to the part above it."""
    shard = (types.astype(np.int64) - 1) * (len(limits) + 1) + np.searchsorted(limits, values, side="right")
    return np.where(types == ObjectType.UNKNOWN, -1, shard)
