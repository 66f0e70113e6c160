"""Every suspicion fires on data damaged exactly so, and nothing does on sound data."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numba
import numpy as np
import pytest

from detection3d.cli import prepare_argoverse, prepare_kitti, prepare_waymo
from detection3d.data.checking import Report, check, examine
from detection3d.data.store_manifest import StoreSettings
from detection3d.data.synthetic import tiny_rig, write_segments
from detection3d.geometry.host.boxes import wrap_angle
from detection3d.geometry.host.poses import invert_pose, transform_points
from detection3d.types.scene import Boxes, Frame
from tests.data.made_frames import write_recipe
from tests.data.made_scenes import as_source, make_drive

Damage = Callable[[Frame], Frame]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Frames this small are done sooner than threads that wait for a busy core."""
    threads = numba.get_num_threads()
    numba.set_num_threads(1)
    yield
    numba.set_num_threads(threads)


@pytest.fixture(scope="module")
def drives() -> dict[str, list[Frame]]:
    return {name: make_drive(name, seed=seed) for seed, name in enumerate(("first", "second"))}


def report_on(drives: dict[str, list[Frame]], damage: Damage = lambda frame: frame) -> Report:
    return check([as_source(name, [damage(frame) for frame in frames]) for name, frames in drives.items()])


def with_labels(change: Callable[[Boxes, Frame], dict[str, object]]) -> Damage:
    def damage(frame: Frame) -> Frame:
        assert frame.labels is not None
        return replace(frame, labels=replace(frame.labels, **change(frame.labels, frame)))

    return damage


def with_boxes(change: Callable[[np.ndarray], np.ndarray]) -> Damage:
    return with_labels(lambda labels, frame: {"boxes": change(labels.boxes.astype(np.float64)).astype(np.float32)})


def with_heading(change: Callable[[np.ndarray], np.ndarray]) -> Damage:
    return with_boxes(lambda boxes: np.column_stack([boxes[:, :6], change(boxes[:, 6])]))


def with_points(change: Callable[[np.ndarray], np.ndarray]) -> Damage:
    return lambda frame: replace(frame, points=change(frame.points.astype(np.float64)).astype(np.float32))


def with_pose(change: Callable[[np.ndarray], np.ndarray]) -> Damage:
    return lambda frame: replace(frame, pose=change(frame.pose))


def turned(x: str, y: str, heading: Callable[[np.ndarray], np.ndarray]) -> Damage:
    """Give boxes in other axes: x and y name what stands in the columns, as "-y"."""

    def change(boxes: np.ndarray) -> np.ndarray:
        columns = {"x": boxes[:, 0], "y": boxes[:, 1], "-x": -boxes[:, 0], "-y": -boxes[:, 1]}
        return np.column_stack([columns[x], columns[y], boxes[:, 2:6], wrap_angle(heading(boxes[:, 6]))])

    return with_boxes(change)


def to_camera(boxes: np.ndarray) -> np.ndarray:
    """As KITTI's, but with the centre in the middle: x right, y down, z forward, rotation about y."""
    return np.column_stack(
        [-boxes[:, 1], -boxes[:, 2], boxes[:, 0], boxes[:, 3:6], wrap_angle(-boxes[:, 6] - np.pi / 2)]
    )


def to_kitti(boxes: np.ndarray) -> np.ndarray:
    camera = to_camera(boxes)
    camera[:, 1] += boxes[:, 5] / 2
    return camera


def to_kitti_rows(boxes: np.ndarray) -> np.ndarray:
    """As the columns of KITTI's label files follow each other, but with the place in front."""
    return to_kitti(boxes)[:, [0, 1, 2, 5, 4, 3, 6]]


def to_nuscenes(labels: Boxes, frame: Frame) -> dict[str, object]:
    boxes = np.asarray(to_global(labels, frame)["boxes"])
    return {"boxes": boxes[:, [0, 1, 2, 4, 3, 5, 6]]}


def to_global(labels: Boxes, frame: Frame) -> dict[str, object]:
    boxes = labels.boxes.astype(np.float64)
    boxes[:, :3] = transform_points(frame.pose, boxes[:, :3])
    boxes[:, 6] = wrap_angle(boxes[:, 6] + np.arctan2(frame.pose[1, 0], frame.pose[0, 0]))
    return {"boxes": boxes.astype(np.float32)}


def points_to_global(frame: Frame) -> Frame:
    points = frame.points.copy()
    points[:, :3] = transform_points(frame.pose, points[:, :3].astype(np.float64))
    return replace(frame, points=points)


def near_zero(damage: Damage) -> Damage:
    """First bring the global zero near, so that the points stay within the store's reach."""

    def both(frame: Frame) -> Frame:
        pose = frame.pose.copy()
        pose[:3, 3] -= (3000 - 60, -2000 + 40, 30)
        return damage(replace(frame, pose=pose))

    return both


def rolled(frame: Frame) -> Frame:
    """Points and boxes together with y up: x right would be z."""
    points = frame.points.copy()
    points[:, 1], points[:, 2] = frame.points[:, 2], -frame.points[:, 1]
    return replace(frame, points=points)


def upside_down(frame: Frame) -> Frame:
    assert frame.labels is not None
    points, boxes = frame.points.copy(), frame.labels.boxes.copy()
    points[:, 1:3] *= -1
    boxes[:, 1:3] *= -1
    boxes[:, 6] = wrap_angle(-boxes[:, 6])
    return replace(frame, points=points, labels=replace(frame.labels, boxes=boxes))


def y_forward(frame: Frame) -> Frame:
    """All of it as in nuScenes' lidar frame: x right, y forward."""
    assert frame.labels is not None
    quarter = np.eye(4)
    quarter[:2, :2] = (0, -1), (1, 0)
    points, boxes, velocity = frame.points.copy(), frame.labels.boxes.copy(), frame.labels.velocity.copy()
    points[:, :3] = transform_points(quarter, points[:, :3])
    boxes[:, :3] = transform_points(quarter, boxes[:, :3])
    boxes[:, 6] = wrap_angle(boxes[:, 6] + np.pi / 2)
    velocity = transform_points(quarter, velocity).astype(np.float32)
    pose = frame.pose @ invert_pose(quarter)
    return replace(frame, points=points, pose=pose, labels=replace(frame.labels, boxes=boxes, velocity=velocity))


def raised(metres: float) -> Damage:
    def damage(frame: Frame) -> Frame:
        assert frame.labels is not None
        points, boxes = frame.points.copy(), frame.labels.boxes.copy()
        points[:, 2] += metres
        boxes[:, 2] += metres
        return replace(frame, points=points, labels=replace(frame.labels, boxes=boxes))

    return damage


def vary_ids(labels: Boxes, frame: Frame) -> dict[str, object]:
    return {"ids": tuple(f"{frame.timestamp_micros} {name}" for name in labels.ids)}


def velocity_of(change: Callable[[np.ndarray, Frame], np.ndarray]) -> Damage:
    return with_labels(lambda labels, frame: {"velocity": change(labels.velocity, frame).astype(np.float32)})


DAMAGES: dict[str, tuple[Damage, list[tuple[str, str]]]] = {
    "degrees": (with_heading(np.degrees), [("heading", "headings are in degrees; use np.radians(stated)")]),
    "clockwise": (with_heading(lambda h: -h), [("heading", "headings are clockwise; use -stated")]),
    "quarter": (
        with_heading(lambda h: wrap_angle(h - np.pi / 2)),
        [("heading", "headings are off by 90 degrees; use stated + pi / 2")],
    ),
    "reversed": (
        with_heading(lambda h: wrap_angle(h + np.pi)),
        [("heading", "headings are reversed; use stated + pi")],
    ),
    "from the y axis, clockwise": (
        with_heading(lambda h: wrap_angle(np.pi / 2 - h)),
        [("heading", "headings are clockwise; off by 90 degrees; use -stated + pi / 2")],
    ),
    "unwrapped": (
        with_heading(lambda h: np.where(h < 0, h + 2 * np.pi, h)),
        [("wrapping", "headings aren't wrapped")],
    ),
    "length and width": (
        with_boxes(lambda boxes: boxes[:, [0, 1, 2, 4, 3, 5, 6]]),
        [("size", "length and width are swapped")],
    ),
    "half sizes": (
        with_boxes(lambda boxes: boxes * (1, 1, 1, 0.5, 0.5, 0.5, 1)),
        [("size", "sizes of VEHICLE, PEDESTRIAN, CYCLIST are unusual, on average by a factor of 0.4")],
    ),
    "bottom": (
        with_boxes(lambda boxes: boxes - boxes[:, 5:6] * (0, 0, 0.5, 0, 0, 0, 0)),
        [("centre", "box centres lie at the bottom, not in the middle; use z + height / 2")],
    ),
    "top": (
        with_boxes(lambda boxes: boxes + boxes[:, 5:6] * (0, 0, 0.5, 0, 0, 0, 0)),
        [("centre", "box centres lie at the top, not in the middle; use z - height / 2")],
    ),
    "y right": (turned("x", "-y", lambda h: -h), [("axes", "the boxes' y points to the right of the points'")]),
    "x backwards": (turned("-x", "y", lambda h: np.pi - h), [("axes", "the boxes' x points backwards")]),
    "quarter left": (turned("y", "-x", lambda h: h - np.pi / 2), [("axes", "boxes are turned by -90 degrees")]),
    "quarter right": (turned("-y", "x", lambda h: h + np.pi / 2), [("axes", "boxes are turned by 90 degrees")]),
    "half turn": (turned("-x", "-y", lambda h: h + np.pi), [("axes", "boxes are turned by 180 degrees")]),
    "camera": (with_boxes(to_camera), [("axes", "boxes are in camera axes")]),
    "KITTI": (
        with_boxes(to_kitti),
        [("axes", "boxes are in camera axes"), ("centre", "box centres lie at the bottom")],
    ),
    "KITTI's rows": (
        with_boxes(to_kitti_rows),
        [("axes", "boxes are in camera axes"), ("size", "sizes seem to be in the order height, width, length")],
    ),
    "nuScenes": (
        with_labels(to_nuscenes),
        [("axes", "boxes are in the global frame, points"), ("size", "length and width are swapped")],
    ),
    "global boxes": (with_labels(to_global), [("axes", "boxes are in the global frame, points in the vehicle's")]),
    "global points": (
        near_zero(points_to_global),
        [("axes", "points are in the global frame, boxes in the vehicle's")],
    ),
    "elsewhere": (
        with_boxes(lambda boxes: boxes + np.array([17.0, 4, 0, 0, 0, 0, 0])),
        [("empty", "most boxes hold no points")],
    ),
    "y up": (rolled, [("up", "+y seems to point up, not +z")]),
    "upside down": (upside_down, [("up", "z seems to point down")]),
    "y forward": (y_forward, [("forward", "the vehicle drives along its +y, not +x")]),
    "inverse pose": (with_pose(invert_pose), [("pose", "poses are inverted")]),
    "nanoseconds": (
        lambda frame: replace(frame, timestamp_micros=frame.timestamp_micros * 1000),
        [("timestamps", "timestamps seem to be in nanoseconds; give microseconds")],
    ),
    "milliseconds": (
        lambda frame: replace(frame, timestamp_micros=frame.timestamp_micros // 1000),
        [("timestamps", "timestamps seem to be in milliseconds; give microseconds")],
    ),
    "global velocity": (
        velocity_of(lambda v, frame: v @ frame.pose[:3, :3].T),
        [("velocity", "velocities are wrong: they are in the axes of the global frame")],
    ),
    "backward velocity": (
        velocity_of(lambda v, frame: -v),
        [("velocity", "velocities are wrong: they have the opposite")],
    ),
    "relative velocity": (
        velocity_of(lambda v, frame: v - (9.0, 0.0, 0.0)),
        [("velocity", "velocities are wrong: they are relative to the vehicle")],
    ),
    "km/h": (velocity_of(lambda v, frame: v * 3.6), [("velocity", "velocities are wrong: they are in km/h")]),
    "velocity to the right": (
        velocity_of(lambda v, frame: v * (1, -1, 1)),
        [("velocity", "velocities are wrong: y points to the right")],
    ),
    "no velocity": (velocity_of(lambda v, frame: 0 * v), [("velocity", "velocities are all 0, yet objects move")]),
    "random velocity": (
        velocity_of(lambda v, frame: np.random.default_rng(0).normal(0, 9, v.shape)),
        [("velocity", "velocities disagree with the tracks' motion, and nothing that was tried helps")],
    ),
    "num_points": (
        with_labels(lambda labels, frame: {"num_points": labels.num_points // 2}),
        [("num_points", "num_points isn't the number of points in the box")],
    ),
    "no num_points": (
        with_labels(lambda labels, frame: {"num_points": 0 * labels.num_points}),
        [("num_points", "num_points isn't the number of points in the box (it is always 0")],
    ),
    "bright": (
        with_points(lambda points: points * (1, 1, 1, 255, 1)),
        [("intensity", "intensities seem to go from 0 to 255, and the network")],
    ),
    "dark": (with_points(lambda points: points * (1, 1, 1, 0, 1)), [("intensity", "intensities are all 0")]),
    "on the roof": (raised(-1.73), [("ground", "the ground lies at z = -1.7")]),
    "vanishing ids": (with_labels(vary_ids), [("tracks", "no id occurs in two frames")]),
}


def test_sound_drives_are_not_suspected(drives: dict[str, list[Frame]]) -> None:
    report = report_on(drives)
    assert (report.recordings, report.frames, report.boxes) == (2, 12, 12 * 36)
    assert report.suspicions == ()
    assert report.errors == 0


@pytest.mark.parametrize("name", DAMAGES)
def test_each_damage_is_named_and_nothing_else(drives: dict[str, list[Frame]], name: str) -> None:
    damage, expected = DAMAGES[name]
    report = report_on(drives, damage)
    assert report.errors == 0
    assert [suspicion.name for suspicion in report.suspicions] == [kind for kind, _ in expected], report.suspicions
    for suspicion, (_, start) in zip(report.suspicions, expected, strict=True):
        assert suspicion.message.startswith(start)
        assert suspicion.evidence


def test_whole_seconds_are_named() -> None:
    frames = make_drive("slow", frames=5, interval=1.0)
    assert report_on({"slow": frames}).suspicions == ()
    report = report_on({"slow": frames}, lambda frame: replace(frame, timestamp_micros=frame.timestamp_micros // 10**6))
    assert [suspicion.name for suspicion in report.suspicions] == ["timestamps"]
    assert report.suspicions[0].message.startswith("timestamps seem to be in seconds; give microseconds")
    assert report.suspicions[0].evidence == (
        "the median step is 1, which is 1e-06 s if these are microseconds, and 1 s if they are seconds"
    )


def test_points_beyond_the_reach() -> None:
    far = {"far": make_drive("far", frames=5)}
    report = report_on(far, with_points(lambda points: points * (1000, 1000, 1000, 1, 1)))
    names = [suspicion.name for suspicion in report.suspicions]
    assert names == ["empty", "reach"]
    assert "beyond the store's reach of 256.0 m" in report.suspicions[1].message


def test_frames_without_points() -> None:
    def bare(frame: Frame) -> Frame:
        arrays = {name: getattr(frame, name)[:0] for name in ("points", "lidar", "return_number", "in_no_label_zone")}
        return replace(frame, **arrays)

    report = report_on({"bare": make_drive("bare", frames=5)}, bare)
    assert report.errors == 0
    assert [suspicion.message for suspicion in report.suspicions] == [
        "no frame that was looked at holds 100 points; does the reader read the scans?"
    ]


def test_recordings_are_examined_in_processes(tmp_path: Path) -> None:
    sources = [write_recipe(tmp_path / name, frames=2) for name in ("a", "b")]
    seen: list[str] = []
    report = check(sources, workers=2, progress=lambda evidence: seen.append(evidence.recording))
    assert sorted(seen) == ["a", "b"]
    assert (report.recordings, report.frames, report.boxes) == (2, 4, 12)


def test_real_argoverse_is_sound(shared: Path) -> None:
    report = check(prepare_argoverse.find_sources(shared / "real" / "argoverse2"))
    assert (report.frames, report.errors, report.suspicions) == (3, 0, ())


def test_real_kitti_is_what_it_is(shared: Path) -> None:
    """Its scans are no sequences, and its lidar is 1.73 m above the ground: nothing else."""
    report = check(prepare_kitti.find_sources(shared / "real" / "kitti"))
    assert (report.frames, report.errors) == (4, 0)
    assert [suspicion.name for suspicion in report.suspicions] == ["timestamps", "tracks", "ground"]
    assert "z = -1.8" in report.suspicions[2].message


@pytest.mark.slow
def test_synthetic_lidar_is_sound(tmp_path: Path) -> None:
    write_segments(tmp_path, 2, 8, 5, tiny_rig(), interval=0.2, workers=1)
    report = check(prepare_waymo.find_sources(tmp_path))
    assert (report.frames, report.errors, report.suspicions) == (16, 0, ())


def test_frames_are_numbered_as_in_the_recording_and_looked_at_beyond_the_first() -> None:
    frames = make_drive("first", 8, seed=0)
    assert frames[6].labels is not None
    broken = frames[6].labels.boxes.copy()
    broken[0, 0] = np.nan
    frames[6] = replace(frames[6], labels=replace(frames[6].labels, boxes=broken))
    (problem,) = check([as_source("first", frames)], StoreSettings(every=3)).problems
    assert problem.frame == 6
    many = make_drive("long", 24, seed=3)
    fits = [examine(as_source("long", many[:count]), StoreSettings()).fit.boxes for count in (5, 10, 11, 20, 21)]
    assert fits[0] == fits[1] < fits[2] == fits[3] < fits[4]
