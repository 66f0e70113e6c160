"""Agreement with the official code's points, and real frames as Waymo wrote them."""

from pathlib import Path

import numpy as np
import pytest

from detection3d.data.waymo import read_component_segment, read_segment
from detection3d.types.scene import Frame
from tests.data.waymo.made_components import assert_same

TOP = 1
# The official code computes in float32 with global coordinates of 10 km, whose steps are 1 mm.
TOP_TOLERANCE, OTHER_TOLERANCE = 5e-3, 1e-4


def frames_of(shared: Path, version: str) -> list[Frame]:
    encoded = shared / "waymo" / "encoded"
    (segment,) = (encoded / "v1").glob("*.tfrecord") if version == "v1" else (encoded / "v2/lidar").glob("*.parquet")
    return list(read_segment(segment) if version == "v1" else read_component_segment(segment))


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_points_match_the_official_code(shared: Path, version: str) -> None:
    with np.load(shared / "waymo" / "encoded" / "official_points.npz") as official:
        expected = dict(official)
    compared = 0
    for number, frame in enumerate(frames_of(shared, version)):
        start = 0
        for return_number in (1, 2):
            for lidar in range(1, 6):
                points = expected[f"frame{number}_return{return_number}_lidar{lidar}"]
                end = start + len(points)
                assert np.all(frame.lidar[start:end] == lidar)
                assert np.all(frame.return_number[start:end] == return_number)
                tolerance = TOP_TOLERANCE if lidar == TOP else OTHER_TOLERANCE
                np.testing.assert_allclose(frame.points[start:end, :3], points, rtol=0, atol=tolerance)
                start, compared = end, compared + 1
        assert start == len(frame.points)
    assert compared == len(expected) == 30


def test_v1_and_v2_hold_the_same(shared: Path) -> None:
    pairs = list(zip(frames_of(shared, "v1"), frames_of(shared, "v2"), strict=True))
    assert len(pairs) == 3
    for one, other in pairs:
        assert_same(other, one)


@pytest.mark.parametrize(
    ("name", "frames", "labels", "zones"),
    [
        ("labels_18_one_frame", 1, 18, 0),
        ("labels_and_calibration_one_frame", 1, 75, 0),
        ("no_label_zones_two_frames", 2, 5, 2),
    ],
)
def test_real_frames_without_lidar(shared: Path, name: str, frames: int, labels: int, zones: int) -> None:
    read = list(read_segment(shared / "waymo" / "frames" / f"{name}.tfrecord"))
    assert len(read) == frames
    for frame in read:
        assert frame.points.shape == (0, 5)
        assert frame.labels is not None
        assert len(frame.labels) == labels
        assert len(frame.no_label_zones) == zones


def test_moving_vehicles_move_along_their_heading(shared: Path) -> None:
    """Speeds are global in the file; turned into the vehicle's axes they must agree with the boxes' headings."""
    fast = 0
    for path in sorted((shared / "waymo" / "frames").glob("*.tfrecord")):
        for frame in read_segment(path):
            assert frame.labels is not None
            speed = np.linalg.norm(frame.labels.velocity[:, :2], axis=1)
            moving = (frame.labels.types == 1) & (speed > 3)
            direction = np.arctan2(frame.labels.velocity[moving, 1], frame.labels.velocity[moving, 0])
            difference = np.angle(np.exp(1j * (direction - frame.labels.boxes[moving, 6])))
            assert np.all(np.abs(difference) < 0.2)
            fast += int(moving.sum())
    assert fast >= 10
