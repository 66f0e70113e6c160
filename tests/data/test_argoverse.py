from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import feather

from detection3d.cli.prepare_argoverse import find_sources
from detection3d.data.argoverse import CATEGORY_TYPES, read_log
from detection3d.data.argoverse_tracks import Poses, Tracks
from detection3d.errors import DataError
from detection3d.geometry.host.boxes import count_points_in_boxes
from detection3d.types.scene import Boxes, Lidar, ObjectType

FIRST, SECOND, THIRD = 315966265_259836_123, 315966265_359836_123, 315966265_459836_123
QUARTER_TURN = (np.sqrt(0.5), 0.0, 0.0, np.sqrt(0.5))  # +90 degrees about z


def write_log(folder: Path, *, poses: bool = True, annotations: bool = True) -> Path:
    """Two sweeps, three moments of annotations. The vehicle looks along the city's y and drives there at 10 m/s."""
    log = folder / "some-log"
    (log / "sensors" / "lidar").mkdir(parents=True)
    for timestamp in (SECOND, FIRST):
        columns = {
            "x": pa.array(np.array([1.5, -2, 60], np.float16)),
            "y": pa.array(np.array([0, 3, -4], np.float16)),
            "z": pa.array(np.array([-0.25, 0, 1], np.float16)),
            "intensity": pa.array(np.array([0, 51, 255], np.uint8)),
            "laser_number": pa.array(np.array([0, 31, 63], np.uint8)),
            "offset_ns": pa.array(np.array([0, 1, 2], np.int32)),
        }
        feather.write_feather(pa.table(columns), log / "sensors" / "lidar" / f"{timestamp}.feather")
    if poses:
        write_poses(log, [FIRST - 5_000_000, FIRST + 5_000_000, SECOND, THIRD])
    if annotations:
        write_annotations(log, ["REGULAR_VEHICLE", "BICYCLE", "BICYCLIST"])
    return log


def write_poses(log: Path, timestamps: list[int]) -> None:
    y = [10.0 * (timestamp - FIRST) * 1e-9 for timestamp in timestamps]
    quaternion = dict(zip(("qw", "qx", "qy", "qz"), QUARTER_TURN, strict=True))
    columns = {"timestamp_ns": timestamps} | {name: [value] * len(y) for name, value in quaternion.items()}
    columns |= {"tx_m": [100.0] * len(y), "ty_m": y, "tz_m": [5.0] * len(y)}
    feather.write_feather(pa.table(columns), log / "city_SE3_egovehicle.feather")


def write_annotations(log: Path, categories: list[str]) -> None:
    """A car that keeps its place ahead of the vehicle, a bicycle standing still, and a cyclist seen once."""
    rows = [
        *((time, "car", categories[0], 20.0) for time in (FIRST, SECOND, THIRD)),
        *((time, "bike", categories[1], 8.0 - 10e-9 * (time - FIRST)) for time in (FIRST, SECOND, THIRD)),
        (SECOND, "rider", categories[2], 30.0),
    ]
    times, ids, names, x = zip(*rows, strict=True)
    count = len(rows)
    columns = {"timestamp_ns": times, "track_uuid": ids, "category": names, "tx_m": x}
    columns |= {"length_m": [4.5] * count, "width_m": [1.9] * count, "height_m": [1.6] * count}
    columns |= {"qw": [0.0] * count, "qx": [0.0] * count, "qy": [0.0] * count, "qz": [1.0] * count}
    columns |= {"ty_m": [1.0] * count, "tz_m": [0.5] * count, "num_interior_pts": list(range(count))}
    feather.write_feather(pa.table(columns), log / "annotations.feather")


def labels_of(frame_labels: Boxes | None) -> Boxes:
    assert frame_labels is not None
    return frame_labels


def test_sweeps_become_frames(tmp_path: Path) -> None:
    first, second = read_log(write_log(tmp_path))
    assert first.key == ("some-log", 315966265_259836)  # cut, not rounded
    assert second.key == ("some-log", 315966265_359836)
    expected = [[1.5, 0, -0.25, 0, 0], [-2, 3, 0, 0.2, 0], [60, -4, 1, 1, 0]]
    np.testing.assert_allclose(first.points, expected, rtol=1e-7)
    assert first.points.dtype == np.float32
    assert first.lidar.tolist() == [Lidar.TOP] * 3
    assert first.return_number.tolist() == [1, 1, 1]
    assert not first.in_no_label_zone.any()
    # The first sweep lies halfway between two poses, the second on one.
    for frame, y in ((first, 0.0), (second, 1.0)):
        np.testing.assert_allclose(
            frame.pose, [[0, -1, 0, 100], [1, 0, 0, y], [0, 0, 1, 5], [0, 0, 0, 1]], rtol=0, atol=1e-6
        )


@pytest.mark.parametrize("given", [".", "..", "../../some-log"])
def test_a_log_has_its_folder_s_name_from_wherever_it_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str
) -> None:
    log = write_log(tmp_path)
    (tmp_path / "link").symlink_to(log)
    monkeypatch.chdir(log if given == "." else log / "sensors")
    assert next(read_log(given)).context_name == "some-log"
    assert [source.name for source in find_sources(Path(given))] == ["some-log"]
    (source,) = find_sources(tmp_path / "link")
    assert source.name == next(read_log(source.path)).context_name == "link"


def test_labels_are_those_of_the_sweep(tmp_path: Path) -> None:
    first, second = (labels_of(frame.labels) for frame in read_log(write_log(tmp_path)))
    assert first.ids == ("car", "bike")
    assert second.ids == ("car", "bike", "rider")
    assert second.types.tolist() == [ObjectType.VEHICLE, ObjectType.UNKNOWN, ObjectType.CYCLIST]
    assert second.num_points.tolist() == [1, 4, 6]
    np.testing.assert_allclose(second.boxes[0], [20, 1, 0.5, 4.5, 1.9, 1.6, -np.pi], rtol=1e-6)
    assert second.difficulty.tolist() == [0, 0, 0]
    # The car drives as fast as we do, straight ahead; the bicycle stands; the rider's speed can't be known.
    np.testing.assert_allclose(first.velocity, [[10, 0, 0], [0, 0, 0]], atol=1e-4)
    np.testing.assert_allclose(second.velocity, [[10, 0, 0], [0, 0, 0], [0, 0, 0]], atol=1e-4)
    assert not second.acceleration.any()


def test_without_poses_and_labels(tmp_path: Path) -> None:
    log = write_log(tmp_path, poses=False)
    frames = list(read_log(log))
    assert all(np.array_equal(frame.pose, np.eye(4)) for frame in frames)
    assert not labels_of(frames[0].labels).velocity.any()
    with pytest.raises(DataError, match=r"city_SE3_egovehicle.feather: is missing"):
        next(read_log(log, require_poses=True))
    (log / "annotations.feather").unlink()
    assert [frame.labels for frame in read_log(log)] == [None, None]


def test_what_cannot_be_used_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not an Argoverse 2 log"):
        next(read_log(tmp_path))
    log = write_log(tmp_path)
    write_annotations(log, ["REGULAR_VEHICLE", "HOVERCRAFT", "BICYCLIST"])
    with pytest.raises(DataError, match=r"categories HOVERCRAFT"):
        next(read_log(log))
    write_annotations(log, ["REGULAR_VEHICLE", "BICYCLE", "BICYCLIST"])
    write_poses(log, [FIRST - 5_000_000, FIRST + 5_000_000, SECOND])
    with pytest.raises(DataError, match=f"no pose near {THIRD} ns"):
        next(read_log(log))
    write_poses(log, [FIRST, SECOND, THIRD])
    sweep = log / "sensors" / "lidar" / f"{FIRST}.feather"
    feather.write_feather(pa.table({"x": [1.0], "y": [1.0], "z": [1.0]}), sweep)
    with pytest.raises(DataError, match=f"{FIRST}.feather: has no column intensity; it has x, y, z"):
        next(read_log(log))
    sweep.write_bytes(b"<html>not found</html>")
    with pytest.raises(DataError, match="can't be read as a feather file"):
        next(read_log(log))
    sweep.write_bytes((log / "city_SE3_egovehicle.feather").read_bytes()[:-40])
    with pytest.raises(DataError, match="can't be read as a feather file"):
        next(read_log(log))
    sweep.rename(sweep.with_name("first.feather"))
    with pytest.raises(DataError, match="named by its timestamp"):
        next(read_log(log))


def test_poses_between_quaternions_of_opposite_sign() -> None:
    quaternions = np.array([[1, 0, 0, 0], [-np.cos(0.01), 0, 0, -np.sin(0.01)]], np.float64)
    poses = Poses.from_quaternions(Path("p"), np.array([0, 100]), quaternions, np.zeros((2, 3)))
    yaw = np.arctan2(*poses.at(50)[[1, 0], 0])
    assert yaw == pytest.approx(0.01, abs=1e-9)
    with pytest.raises(DataError, match="p, record 1: isn't a rotation"):
        Poses.from_quaternions(Path("p"), np.array([0, 100]), quaternions * [[1], [2]], np.zeros((2, 3)))


@pytest.mark.parametrize(("gap_ns", "speed"), [(250_000_000, 4.0), (250_000_001, 0.0)])
def test_a_velocity_over_a_wide_gap_is_not_guessed(gap_ns: int, speed: float) -> None:
    times = np.array([0, gap_ns])
    poses = Poses.from_quaternions(Path("p"), times, np.array([[1.0, 0, 0, 0]] * 2), np.zeros((2, 3)))
    centres = np.array([[0.0, 0, 0], [1.0, 0, 0]])
    velocity = Tracks(times, ("car", "car"), centres).velocities(poses)
    np.testing.assert_allclose(velocity, [[speed, 0, 0]] * 2)


def test_all_categories_have_a_type() -> None:
    assert len(CATEGORY_TYPES) == 30
    vehicles = {name for name, kind in CATEGORY_TYPES.items() if kind == ObjectType.VEHICLE}
    assert {"MOTORCYCLE", "MOTORCYCLIST", "VEHICULAR_TRAILER"} <= vehicles
    assert not {"RAILED_VEHICLE", "BICYCLE", "BICYCLIST"} & vehicles
    cyclists = {name for name, kind in CATEGORY_TYPES.items() if kind == ObjectType.CYCLIST}
    pedestrians = {name for name, kind in CATEGORY_TYPES.items() if kind == ObjectType.PEDESTRIAN}
    assert cyclists == {"BICYCLIST"}
    assert pedestrians == {"PEDESTRIAN", "OFFICIAL_SIGNALER", "WHEELED_RIDER"}


@pytest.mark.parametrize(
    ("log", "sweeps"), [("7fab2350-7eaf-3b7e-a39d-6937a4c1bede", 2), ("adcf7d18-0510-35b0-a2fa-b4cea13a6d76", 1)]
)
def test_real_logs(shared: Path, log: str, sweeps: int) -> None:
    frames = list(read_log(shared / "real" / "argoverse2" / log))
    assert len(frames) == sweeps
    assert [frame.key for frame in read_log(shared / "real" / "argoverse2" / log, every=2)] == [
        frame.key for frame in frames[::2]
    ]
    for frame in frames:
        labels = labels_of(frame.labels)
        # The data set's own counts, from the same points and boxes: frame, headings and sizes are right. A point on a
        # face may fall to either side in float32.
        counts = count_points_in_boxes(frame.points, labels.boxes)
        assert np.mean(counts == labels.num_points) > 0.9
        np.testing.assert_allclose(counts, labels.num_points, atol=3)
        beside = (np.abs(frame.points[:, 0]) < 8) & (np.abs(frame.points[:, 1]) < 4) & (frame.points[:, 2] < 0.3)
        assert np.median(frame.points[beside, 2]) == pytest.approx(-0.33, abs=0.03)
        speed = np.linalg.norm(labels.velocity[labels.types == ObjectType.VEHICLE], axis=1)
        assert np.isfinite(speed).all()
        assert speed.max() < 20
