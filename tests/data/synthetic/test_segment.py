"""A segment as a reader sees it, against the scene it was recorded in."""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path as FilePath

import numba
import numpy as np
import pytest
from matplotlib.path import Path as Outline

from detection3d.data.synthetic.generate import generate_segment
from detection3d.data.synthetic.layout import build_scene
from detection3d.data.synthetic.materials import Material
from detection3d.data.synthetic.raycast import Sweep, cast
from detection3d.data.synthetic.rigs import tiny_rig
from detection3d.data.synthetic.scene import Scene, SceneConfig, take_snapshot, thing_poses
from detection3d.data.synthetic.shapes import Solid
from detection3d.data.synthetic.sweep import make_sweep
from detection3d.data.waymo import RecordWriter, read_segment
from detection3d.geometry.host.boxes import points_in_boxes
from detection3d.geometry.host.poses import pose_from_angles, transform_points
from detection3d.protos import waymo_pb2
from detection3d.types.scene import Frame, Lidar, ObjectType

SEED, FRAMES, INTERVAL = 19, 6, 0.2
CONFIG = SceneConfig(zone_share=1.0)
NOISE = 0.012 * 3.47 + 2e-3  # the largest error of a range, and float32


@dataclass(frozen=True)
class Recorded:
    scene: Scene
    messages: list[waymo_pb2.Frame]
    frames: list[Frame]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    path: FilePath = tmp_path_factory.mktemp("synthetic") / "segment.tfrecord"
    messages = list(generate_segment(SEED, FRAMES, tiny_rig(), CONFIG, INTERVAL))
    with RecordWriter(path) as writer:
        for message in messages:
            writer.write(message.SerializeToString())
    scene = build_scene(SEED, FRAMES * INTERVAL, CONFIG)
    assert scene.no_label_zones
    assert scene.ego.progress.speed > 5
    return Recorded(scene, messages, list(read_segment(path)))


def _scene_points(scene: Scene, frame: Frame) -> np.ndarray:
    """Take a frame's points to the scene's own frame."""
    from_scene = pose_from_angles([0.0, 0.0, scene.yaw], scene.offset)
    return transform_points(np.linalg.inv(from_scene) @ frame.pose, frame.points[:, :3])


def _distance(scene: Scene, points: np.ndarray, time: float) -> np.ndarray:
    """Distance of each point to the nearest surface; 0 inside foliage."""
    waves = sum(a * np.sin(kx * points[:, 0] + ky * points[:, 1] + phase) for a, kx, ky, phase in scene.ground.waves)
    nearest = np.abs(points[:, 2] - waves - points[:, :2] @ scene.ground.slope)
    x, y, _ = scene.ego.at(time)
    snapshot = take_snapshot(scene, thing_poses(scene, time), (x, y), 45.0)
    for solid, material, part in zip(snapshot.solid, snapshot.material, snapshot.parts, strict=True):
        rest = np.flatnonzero(nearest > NOISE)
        rx, ry, rz = (points[rest] - part[:3]).T
        local = np.abs(np.column_stack([rx * part[6] + ry * part[7], ry * part[6] - rx * part[7], rz]))
        if solid == Solid.BOX:
            beyond = local - part[3:6]
            outside = np.linalg.norm(np.maximum(beyond, 0), axis=1)
            distance = np.where(outside > 0, outside, beyond.max(axis=1))
        else:
            flat = local[:, :2] / part[3:5] if solid == Solid.CYLINDER else local / part[3:6]
            radius = np.linalg.norm(flat, axis=1)
            distance = (radius - 1) * part[3 : 5 if solid == Solid.CYLINDER else 6].min()
            if solid == Solid.CYLINDER:
                distance = np.maximum(distance, local[:, 2] - part[5])
        inside = 0.0 if material == Material.LEAVES else -distance
        nearest[rest] = np.minimum(nearest[rest], np.where(distance > 0, distance, inside))
    return nearest


def test_points_lie_on_surfaces_though_the_vehicle_moves(recorded: Recorded) -> None:
    for index, frame in enumerate(recorded.frames[:2]):
        distance = _distance(recorded.scene, _scene_points(recorded.scene, frame), index * INTERVAL)
        assert len(distance) > 4_000
        assert (distance <= NOISE).mean() > 0.9999
    # The noise itself is there.
    assert np.median(distance[distance > 0]) > 1e-4


def test_the_vehicle_moves_during_the_sweep(recorded: Recorded) -> None:
    message = recorded.messages[0]
    top = next(laser for laser in message.lasers if laser.name == waymo_pb2.LaserName.TOP)
    matrix = waymo_pb2.MatrixFloat.FromString(zlib.decompress(top.ri_return1.range_image_pose_compressed))
    pose = np.array(matrix.data, np.float32).reshape(matrix.shape.dims)
    travelled = np.linalg.norm(pose[0, -1, 3:] - pose[0, 0, 3:])
    speed = np.linalg.norm(recorded.frames[1].pose[:3, 3] - recorded.frames[0].pose[:3, 3]) / INTERVAL
    assert travelled == pytest.approx(0.1 * speed, rel=0.1)
    middle = pose[0, pose.shape[1] // 2, 3:]
    np.testing.assert_allclose(middle, recorded.frames[0].pose[:3, 3], atol=5e-3)
    assert (pose == pose[:1]).all()


def test_every_range_image_has_camera_projections_that_name_no_camera(recorded: Recorded) -> None:
    for laser in recorded.messages[0].lasers:
        for image in (laser.ri_return1, laser.ri_return2):
            ranges = waymo_pb2.MatrixFloat.FromString(zlib.decompress(image.range_image_compressed))
            projections = waymo_pb2.MatrixInt32.FromString(zlib.decompress(image.camera_projection_compressed))
            assert list(projections.shape.dims) == [*ranges.shape.dims[:2], 6]
            assert np.array_equal(projections.data, np.zeros(np.prod(projections.shape.dims)))


def test_counts_are_those_of_the_points(recorded: Recorded) -> None:
    for message, frame in zip(recorded.messages, recorded.frames, strict=True):
        assert frame.labels is not None
        boxes = np.array([_box(label) for label in message.laser_labels])
        inside = points_in_boxes(frame.points, boxes)
        np.testing.assert_array_equal(inside.sum(axis=0), frame.labels.num_points)
        top = [label.num_top_lidar_points_in_box for label in message.laser_labels]
        np.testing.assert_array_equal(inside[frame.lidar == Lidar.TOP].sum(axis=0), top)
        assert (frame.labels.num_points > 0).mean() > 0.8


def _box(label: waymo_pb2.Label) -> list[float]:
    box = label.box
    return [box.center_x, box.center_y, box.center_z, box.length, box.width, box.height, box.heading]


def test_boxes_enclose_their_objects_closely(recorded: Recorded) -> None:
    scene, message, frame = recorded.scene, recorded.messages[0], recorded.frames[0]
    by_id = {thing.identity: thing for thing in scene.things}
    from_scene = pose_from_angles([0.0, 0.0, scene.yaw], scene.offset)
    checked = 0
    for label in message.laser_labels:
        thing = by_id[label.id]
        if thing.kind == ObjectType.SIGN:
            continue
        x, y, heading = thing.motion.at(0.0)
        place = np.array([x, y, scene.ground.height(x, y)])
        cloud = np.concatenate([[part.low, part.high] for part in thing.shape.parts])
        turned = transform_points(pose_from_angles([0.0, 0.0, heading], place), cloud)
        local = transform_points(np.linalg.inv(frame.pose) @ from_scene, turned)
        box = np.array(_box(label))
        cosine, sine = np.cos(box[6]), np.sin(box[6])
        dx, dy, dz = (local - box[:3]).T
        extent = np.abs([dx * cosine + dy * sine, dy * cosine - dx * sine, dz]).max(axis=1) - box[3:6] / 2
        assert (extent < 0.12).all()
        assert (extent > -0.12).all()
        checked += 1
    assert checked > 20


def test_ids_persist_and_speed_is_the_motion_of_the_centre(recorded: Recorded) -> None:
    tracks: dict[str, list[tuple[int, np.ndarray, waymo_pb2.Label]]] = {}
    for index, (message, frame) in enumerate(zip(recorded.messages, recorded.frames, strict=True)):
        for label in message.laser_labels:
            centre = transform_points(frame.pose, np.array([_box(label)[:3]]))[0]
            tracks.setdefault(label.id, []).append((index, centre, label))
    moving = 0
    for track in tracks.values():
        assert len({label.type for _, _, label in track}) == 1
        for (i, before, _), (j, _, label), (k, after, _) in zip(track, track[1:], track[2:], strict=False):
            if (j - i, k - j) != (1, 1):
                continue
            speed = np.array([label.metadata.speed_x, label.metadata.speed_y, label.metadata.speed_z])
            np.testing.assert_allclose((after - before) / (2 * INTERVAL), speed, atol=0.03)
            moving += np.linalg.norm(speed) > 1
    assert moving > 15
    assert np.mean([len(track) >= 4 for track in tracks.values()]) > 0.7


def test_zone_flags_are_those_of_the_polygons(recorded: Recorded) -> None:
    flagged = 0
    for frame in recorded.frames:
        there = transform_points(frame.pose, frame.points[:, :3])[:, :2]
        inside = np.zeros(len(there), bool)
        border = np.zeros(len(there), bool)
        for zone in frame.no_label_zones:
            outline = Outline(zone)
            inside |= outline.contains_points(there)
            border |= outline.contains_points(there, radius=1e-2) != outline.contains_points(there, radius=-1e-2)
        flagged += inside.sum()
        np.testing.assert_array_equal(frame.in_no_label_zone[~border], inside[~border])
        assert frame.labels is not None
        centres = transform_points(frame.pose, frame.labels.boxes[:, :3])[:, :2]
        assert not any(Outline(zone).contains_points(centres, radius=-1e-2).any() for zone in frame.no_label_zones)
    assert flagged > 100


def test_second_returns_are_behind_first_ones(recorded: Recorded) -> None:
    frame = recorded.frames[0]
    assert 0.01 < (frame.return_number == 2).mean() < 0.15
    assert set(np.unique(frame.lidar)) == {1, 2, 3, 4, 5}
    assert 4_000 < len(frame.points) < 9_000
    assert frame.points[:, 3].min() > 0
    assert frame.points[:, 3].max() > 2  # reflectors, so that tanh has something to do
    assert np.abs(frame.pose[:2, 3]).max() > 1000


def test_the_number_of_threads_changes_no_byte() -> None:
    def record() -> list[bytes]:
        frames = generate_segment(9, 2, tiny_rig(), interval=0.5)
        return [frame.SerializeToString(deterministic=True) for frame in frames]

    usual = record()
    threads = numba.get_num_threads()
    numba.set_num_threads(1)
    try:
        assert record() == usual
    finally:
        numba.set_num_threads(threads)
    other = next(generate_segment(10, 1, tiny_rig())).SerializeToString(deterministic=True)
    assert other != usual[0]


def _views(seeds: range) -> Iterator[tuple[Scene, np.ndarray, tuple[float, float, float]]]:
    for seed in seeds:
        scene = build_scene(seed, 10.0, SceneConfig())
        yield scene, thing_poses(scene, 5.0), scene.ego.at(5.0)


def test_vehicles_face_all_ways() -> None:
    headings = []
    for scene, poses, (x, y, heading) in _views(range(12)):
        for thing, pose in zip(scene.things, poses, strict=True):
            if thing.kind == ObjectType.VEHICLE and np.hypot(pose[0] - x, pose[1] - y) < 75:
                headings.append(pose[3] - heading)
    share = np.histogram(np.mod(headings, 2 * np.pi), 12, (0, 2 * np.pi))[0] / len(headings)
    assert (share > 0.015).all()


def test_things_stand_clear_of_each_other() -> None:
    pairs = overlapping = 0
    for scene, poses, (x, y, _) in _views(range(8)):
        near = np.hypot(poses[:, 0] - x, poses[:, 1] - y) < 60
        labelled = [i for i in np.flatnonzero(near) if scene.things[i].kind in (1, 2, 4)]
        sizes = np.array([scene.things[i].shape.size for i in labelled])
        boxes = np.column_stack([poses[labelled, :2], np.zeros(len(labelled)), sizes, poses[labelled, 3]])
        inside = points_in_boxes(boxes, boxes)
        pairs += len(labelled)
        overlapping += inside.sum() - len(labelled)
    assert pairs > 300
    assert overlapping <= 0.005 * pairs


def test_one_vehicle_in_ten_is_partly_hidden() -> None:
    lidar = tiny_rig().lidars[0]
    hidden: list[float] = []
    for scene, poses, (x, y, heading) in _views(range(2)):
        vehicle = np.array([[0.0, 0.0, heading, x, y, scene.ground.height(x, y)]])
        sweep: Sweep = make_sweep(lidar, vehicle, key=1)
        ground = scene.ground.parameters()
        snapshot = take_snapshot(scene, poses, (x, y), 35.0)
        owner = np.repeat(snapshot.thing, np.diff(snapshot.first_part))
        seen = cast(sweep, snapshot, ground, np.zeros(len(owner)))
        for index in snapshot.thing:
            if scene.things[index].kind != ObjectType.VEHICLE:
                continue
            alone_poses = np.where(np.arange(len(poses))[:, None] == index, poses, 1e6)
            alone = take_snapshot(scene, alone_poses, (x, y), 40.0)
            shots = (cast(sweep, alone, ground, np.zeros(len(alone.solid))).part >= 0).sum()
            if shots >= 20:
                hidden.append(1 - np.isin(seen.part, np.flatnonzero(owner == index)).sum() / shots)
    assert len(hidden) > 20
    assert 0.1 < np.mean(np.array(hidden) > 0.2) < 0.9
