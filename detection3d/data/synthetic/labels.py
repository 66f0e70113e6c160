"""Label what stands near the vehicle, as Waymo's labels do."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from detection3d.data.synthetic.motion import velocity_and_acceleration
from detection3d.data.synthetic.noise import derive_key
from detection3d.data.synthetic.scene import Scene, SceneConfig
from detection3d.data.synthetic.sensor import Observation, in_zones
from detection3d.geometry.host.boxes import count_points_in_boxes, wrap_angle
from detection3d.geometry.host.poses import invert_pose, pose_from_angles, rotation_from_angles, transform_points
from detection3d.types.scene import BoolArray, Float64Array, Lidar, ObjectType

HARD_POINTS = 20  # an object with fewer points may be judged hard


@dataclass(frozen=True)
class LabelledObject:
    """One label.

    Attributes:
        thing: index into `Scene.things`.
        kind: its type.
        identity: its id, the same through a segment.
        box: float64 [7], vehicle frame.
        velocity: float64 [3], m/s, axes of the global frame.
        acceleration: float64 [3], m/s^2, likewise.
        points: lidar points in the box, all lidars and returns.
        top_points: those of TOP.
        hard: judged LEVEL_2.
    """

    thing: int
    kind: ObjectType
    identity: str
    box: Float64Array
    velocity: Float64Array
    acceleration: Float64Array
    points: int
    top_points: int
    hard: bool


def label_objects(
    scene: Scene,
    config: SceneConfig,
    poses: Float64Array,
    time: float,
    vehicle: Float64Array,
    lidars: Sequence[Lidar],
    observations: Sequence[Observation],
    reach: float,
    seen: BoolArray,
) -> list[LabelledObject]:
    """Label the things within reach that have points now or had some earlier, outside no-label zones.

    Args:
        scene: the scene.
        config: margin of the boxes and share of hard objects.
        poses: float64 [T, 4], of all things, from `scene.thing_poses`.
        time: seconds.
        vehicle: float64 [6], roll, pitch, yaw, x, y, z of the vehicle, scene frame.
        lidars: which lidar each observation is from.
        observations: what the lidars saw.
        reach: metres from the vehicle, in the ground plane.
        seen: bool [T], things that had points in an earlier frame of the segment.

    Returns:
        The labels; an object that went out of sight keeps its label, with no points.
    """
    distance = np.hypot(poses[:, 0] - vehicle[3], poses[:, 1] - vehicle[4])
    near = [i for i in np.flatnonzero(distance < reach).tolist() if scene.things[i].kind is not None]
    hidden = in_zones(poses[near, :2], scene.no_label_zones)
    near = [i for i, masked in zip(near, hidden, strict=True) if not masked]
    boxes = np.array([_box(scene, i, poses[i], vehicle, config.label_margin) for i in near]).reshape(-1, 7)
    counts = {
        lidar: count_points_in_boxes(observation.points, boxes)
        for lidar, observation in zip(lidars, observations, strict=True)
    }
    total = np.sum(list(counts.values()), axis=0)
    turn = rotation_from_angles(0.0, 0.0, scene.yaw)
    labels = []
    for row, index in enumerate(near):
        thing = scene.things[index]
        if thing.kind is None or (total[row] == 0 and not seen[index]):
            continue
        velocity, acceleration = velocity_and_acceleration(thing.motion, scene.ground, time)
        doubt = derive_key(index, int(thing.identity[:8], 16)) / 2.0**64
        labels.append(
            LabelledObject(
                thing=index,
                kind=thing.kind,
                identity=thing.identity,
                box=boxes[row],
                velocity=turn @ velocity,
                acceleration=turn @ acceleration,
                points=int(total[row]),
                top_points=int(counts[Lidar.TOP][row]),
                hard=bool(total[row] < HARD_POINTS and doubt < config.hard_share),
            )
        )
    return labels


def _box(scene: Scene, index: int, pose: Float64Array, vehicle: Float64Array, margin: float) -> Float64Array:
    """Return a thing's box in the vehicle frame."""
    shape = scene.things[index].shape
    bottom = min(part.low[2] for part in shape.parts)
    centre = np.array([[pose[0], pose[1], pose[2] + bottom + 0.5 * shape.size[2]]])
    place = transform_points(invert_pose(pose_from_angles(vehicle[:3], vehicle[3:])), centre)[0]
    heading = wrap_angle(pose[3] - vehicle[2])
    return np.array([*place, *(size + margin for size in shape.size), float(heading)])
