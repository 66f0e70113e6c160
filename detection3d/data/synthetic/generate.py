"""Drive through a scene and record it, frame by frame."""

import time as clock
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numba
import numpy as np

from detection3d.data.synthetic.encode import encode_context, encode_frame
from detection3d.data.synthetic.labels import label_objects
from detection3d.data.synthetic.layout import build_scene
from detection3d.data.synthetic.motion import vehicle_poses
from detection3d.data.synthetic.noise import derive_key
from detection3d.data.synthetic.rigs import RigConfig
from detection3d.data.synthetic.scene import Scene, SceneConfig, take_snapshot, thing_poses
from detection3d.data.synthetic.sensor import Observation, RoadProfile, observe, road_profile
from detection3d.data.synthetic.sweep import column_poses, make_sweep, to_global, to_scene
from detection3d.protos import waymo_pb2
from detection3d.types.scene import Float32Array, Float64Array, Lidar
from detection3d.types.segment_names import synthetic_name

FIRST_TIMESTAMP = 1_550_000_000_000_000


@dataclass(frozen=True)
class FrameReport:
    """What one frame holds and what it took.

    Attributes:
        points: over all lidars and returns.
        objects: labels.
        cast_seconds: scene, rays and responses.
        encode_seconds: labels, compression and message.
    """

    points: int
    objects: int
    cast_seconds: float
    encode_seconds: float


def generate_segment(
    seed: int, frames: int, rig: RigConfig, scene: SceneConfig | None = None, interval: float = 0.1
) -> Iterator[waymo_pb2.Frame]:
    """Record a drive.

    During a sweep the vehicle moves and everything else stands still, so boxes fit the points of moving objects too.

    Args:
        seed: everything follows from it, `frames` and `interval`, whatever the number of threads.
        frames: how many.
        rig: the lidars.
        scene: how busy the street is; None takes the usual.
        interval: seconds between frames.

    Yields:
        Waymo v1 frames, in order.
    """
    for frame, _ in record_segment(seed, frames, rig, scene or SceneConfig(), interval):
        yield frame


def record_segment(
    seed: int, frames: int, rig: RigConfig, config: SceneConfig, interval: float
) -> Iterator[tuple[waymo_pb2.Frame, FrameReport]]:
    """Record a drive as `generate_segment`, with a report beside each frame."""
    scene = build_scene(seed, frames * interval, config)
    road = road_profile(scene)
    context = encode_context(scene, rig, context_name(seed))
    lidars = [lidar.name for lidar in rig.lidars]
    seen = np.zeros(len(scene.things), np.bool_)
    start = FIRST_TIMESTAMP + derive_key(seed, 1) % 10**13
    with ThreadPoolExecutor(numba.get_num_threads()) as executor:
        for index in range(frames):
            begin = clock.perf_counter()
            time = index * interval
            vehicle = vehicle_poses(scene.ego, scene.ground, np.array([time]))[0]
            poses = thing_poses(scene, time)
            observations, columns = _look_around(scene, road, rig, poses, vehicle, time, (seed, index))
            middle = clock.perf_counter()
            labels = label_objects(
                *(scene, config, poses, time, vehicle, lidars, observations, rig.max_range, seen),
            )
            seen[[label.thing for label in labels]] = True
            stamp = start + round(time * 1e6)
            pose = to_global(scene, vehicle)
            frame = encode_frame(context, scene, stamp, pose, observations, columns, labels, executor)
            points = sum(len(observation.points) for observation in observations)
            end = clock.perf_counter()
            yield frame, FrameReport(points, len(labels), middle - begin, end - middle)


def context_name(seed: int) -> str:
    """Return a segment's name, which says that it is synthetic."""
    return synthetic_name(derive_key(seed, 2))


def _look_around(
    scene: Scene,
    road: RoadProfile,
    rig: RigConfig,
    poses: Float64Array,
    vehicle: Float64Array,
    time: float,
    address: tuple[int, int],
) -> tuple[list[Observation], Float32Array]:
    """Return each lidar's observation, and TOP's pose at each column in the global frame."""
    observations = []
    columns = np.zeros((0, 6), np.float32)
    for lidar in rig.lidars:
        stations = vehicle[None]
        if lidar.per_column_pose:
            columns = column_poses(scene, lidar, time)
            stations = to_scene(scene, columns)
        # A lidar stands up to four metres from the vehicle's origin, and moves with it during the turn.
        snapshot = take_snapshot(scene, poses, (vehicle[3], vehicle[4]), lidar.max_range + 6.0)
        sweep = make_sweep(lidar, stations, derive_key(*address, int(lidar.name)))
        observations.append(observe(scene, road, snapshot, lidar, sweep, vehicle))
    assert any(lidar.name == Lidar.TOP for lidar in rig.lidars)
    return observations, columns
