"""A scene: everything that stands or moves along one stretch of street, and where the recording vehicle drives.

`layout` decides where things go; this file holds what a scene is and what it looks like at a moment.
"""

from dataclasses import dataclass

import numpy as np

from detection3d.data.synthetic.motion import Mover, Parked
from detection3d.data.synthetic.shapes import Shape
from detection3d.data.synthetic.street import Ground, Path
from detection3d.types.scene import BoolArray, Float64Array, Int32Array, ObjectType


@dataclass(frozen=True)
class SceneConfig:
    """How busy a street is. Each segment draws its own scene about these means.

    Attributes:
        parked_share: share of the parking places that are taken.
        lane_gap: mean metres between the centres of vehicles in a lane.
        walker_gap: mean metres between people on each of the walking strips, of which there are three on a side.
        cyclist_gap: mean metres between cyclists in a bicycle lane.
        lot_share: share of the roadside that is open car park.
        zone_share: share of the segments that have no-label zones.
        label_margin: metres that a box is larger than the object, as human labels are.
        hard_share: share of the objects that are judged LEVEL_2 where they have few points.
    """

    parked_share: float = 0.6
    lane_gap: float = 24.0
    walker_gap: float = 30.0
    cyclist_gap: float = 34.0
    lot_share: float = 0.3
    zone_share: float = 0.35
    label_margin: float = 0.06
    hard_share: float = 0.15


def waymo_streets() -> SceneConfig:
    """Return streets about as busy as Waymo's; docs/synthetic.md compares them.

    The usual ones hold twice as many objects, within the short range of the tiny rig.
    """
    return SceneConfig(parked_share=0.3, lane_gap=50.0, walker_gap=150.0, cyclist_gap=400.0, lot_share=0.15)


@dataclass(frozen=True)
class Thing:
    """One object of the scene.

    Attributes:
        shape: its parts.
        motion: where it is at any time.
        kind: its type if it is labelled, None for scenery.
        identity: the label's id; empty for scenery.
    """

    shape: Shape
    motion: Parked | Mover
    kind: ObjectType | None = None
    identity: str = ""


@dataclass(frozen=True)
class Parts:
    """The parts of all things of a scene, T things and P parts, in the frame of each thing.

    Attributes:
        solid: int32 [P], `Solid`.
        material: int32 [P], `Material`.
        shade: float64 [P].
        geometry: float64 [P, 6], centre and half size.
        owner: int32 [P], index of the thing, ascending.
    """

    solid: Int32Array
    material: Int32Array
    shade: Float64Array
    geometry: Float64Array
    owner: Int32Array


@dataclass(frozen=True)
class Scene:
    """One stretch of street.

    Attributes:
        ground: the height field.
        street: the main street's middle line.
        road_half: half the width of its roadway, metres.
        things: all objects.
        parts: their parts.
        ego: the recording vehicle's motion.
        yaw: radians that take scene directions to global ones.
        offset: float64 [3], global coordinates of the scene's origin.
        no_label_zones: polygons, each float64 [Q, 2], scene frame.
        time_of_day: as in Waymo's stats.
        location: likewise.
        weather: likewise.
    """

    ground: Ground
    street: Path
    road_half: float
    things: tuple[Thing, ...]
    parts: Parts
    ego: Mover
    yaw: float
    offset: Float64Array
    no_label_zones: tuple[Float64Array, ...]
    time_of_day: str
    location: str
    weather: str


@dataclass(frozen=True)
class Snapshot:
    """The things near a place at a moment, as the ray caster takes them: O objects, P parts, scene frame.

    Attributes:
        thing: int32 [O], index into `Scene.things`.
        first_part: int32 [O + 1]; object o has the parts first_part[o] up to first_part[o + 1].
        bounds: float64 [O, 8], each object's centre, half size, cosine and sine of its heading.
        solid: int32 [P], `Solid`.
        material: int32 [P], `Material`.
        shade: float64 [P].
        parts: float64 [P, 8], as bounds.
    """

    thing: Int32Array
    first_part: Int32Array
    bounds: Float64Array
    solid: Int32Array
    material: Int32Array
    shade: Float64Array
    parts: Float64Array


def gather_parts(things: tuple[Thing, ...]) -> Parts:
    """Collect the parts of all things."""
    parts = [part for thing in things for part in thing.shape.parts]
    return Parts(
        solid=np.array([part.solid for part in parts], np.int32),
        material=np.array([part.material for part in parts], np.int32),
        shade=np.array([part.shade for part in parts], np.float64),
        geometry=np.concatenate([thing.shape.geometry() for thing in things]).reshape(-1, 6),
        owner=np.repeat(np.arange(len(things), dtype=np.int32), [len(thing.shape.parts) for thing in things]),
    )


def thing_poses(scene: Scene, time: float) -> Float64Array:
    """Return x, y, z (of the ground) and heading of every thing, float64 [T, 4], scene frame."""
    poses = np.empty((len(scene.things), 4))
    for row, thing in zip(poses, scene.things, strict=True):
        x, y, heading = thing.motion.at(time)
        row[:] = x, y, scene.ground.height(x, y), heading
    return poses


def take_snapshot(scene: Scene, poses: Float64Array, centre: tuple[float, float], radius: float) -> Snapshot:
    """Return the things of which some part is within `radius` of `centre`.

    Args:
        scene: the scene.
        poses: float64 [T, 4], from `thing_poses`.
        centre: (x, y), metres, scene frame.
        radius: metres.

    Returns:
        The snapshot, its objects in the order of the scene.
    """
    parts = scene.parts
    low, high = _extents(parts, len(poses))
    reach = np.hypot(*np.maximum(np.abs(low[:, :2]), np.abs(high[:, :2])).T)
    near: BoolArray = np.hypot(poses[:, 0] - centre[0], poses[:, 1] - centre[1]) < radius + reach
    kept = near[parts.owner]
    owner = parts.owner[kept]
    things = np.flatnonzero(near).astype(np.int32)
    counts = np.bincount(owner, minlength=len(poses))[things]
    return Snapshot(
        thing=things,
        first_part=np.concatenate([[0], np.cumsum(counts)]).astype(np.int32),
        bounds=_place(np.hstack([0.5 * (low + high), 0.5 * (high - low)])[things], poses[things]),
        solid=parts.solid[kept],
        material=parts.material[kept],
        shade=parts.shade[kept],
        parts=_place(parts.geometry[kept], poses[owner]),
    )


def _extents(parts: Parts, things: int) -> tuple[Float64Array, Float64Array]:
    low, high = np.full((things, 3), np.inf), np.full((things, 3), -np.inf)
    first = np.searchsorted(parts.owner, np.arange(things))
    low[:] = np.minimum.reduceat(parts.geometry[:, :3] - parts.geometry[:, 3:], first, axis=0)
    high[:] = np.maximum.reduceat(parts.geometry[:, :3] + parts.geometry[:, 3:], first, axis=0)
    return low, high


def _place(geometry: Float64Array, poses: Float64Array) -> Float64Array:
    cosine, sine = np.cos(poses[:, 3]), np.sin(poses[:, 3])
    return np.column_stack(
        [
            poses[:, 0] + cosine * geometry[:, 0] - sine * geometry[:, 1],
            poses[:, 1] + sine * geometry[:, 0] + cosine * geometry[:, 1],
            poses[:, 2] + geometry[:, 2],
            geometry[:, 3:],
            cosine,
            sine,
        ]
    )
