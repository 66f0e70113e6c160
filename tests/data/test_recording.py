"""Frames made of one's own arrays, and what is said of arrays that don't fit."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from detection3d.data.checking.frame_errors import frame_faults
from detection3d.data.recording import Recording, ScanRecording, make_frame, object_type, read_recording
from detection3d.errors import DataError, UserError
from detection3d.types.scene import Frame, Lidar, ObjectType

POINTS = np.array([[1.0, 2.0, 3.0], [4.0, 0.5, -0.2], [9.0, 9.0, 9.0]])
BOX = [4.0, 0.0, 0.0, 4.0, 2.0, 1.5, 3.5]


def test_what_is_not_given_has_the_usual_value() -> None:
    frame = make_frame(7, POINTS.tolist(), [BOX], ["vehicle"])
    np.testing.assert_array_equal(frame.points, np.column_stack([POINTS, np.zeros((3, 2))]).astype(np.float32))
    assert frame.lidar.tolist() == [Lidar.TOP] * 3
    assert frame.return_number.tolist() == [1, 1, 1]
    assert not frame.in_no_label_zone.any()
    np.testing.assert_array_equal(frame.pose, np.eye(4))
    labels = frame.labels
    assert labels is not None
    np.testing.assert_allclose(labels.boxes, [[*BOX[:6], 3.5 - 2 * np.pi]], rtol=1e-6)
    assert labels.types.tolist() == [ObjectType.VEHICLE]
    assert labels.ids == ("7-0",)
    assert labels.num_points.tolist() == [1]
    assert not labels.velocity.any()
    assert not labels.acceleration.any()
    assert list(frame_faults(frame)) == []


def test_what_is_given_is_kept() -> None:
    frame = make_frame(
        np.int64(7),
        np.column_stack([POINTS, POINTS[:, :2]]),
        [BOX, BOX],
        [4, ObjectType.PEDESTRIAN],
        ["a", "b"],
        pose=2 * np.eye(4),
        velocity=[[1, 2], [3, 4]],
        acceleration=np.ones((2, 3)),
        num_points=[5, 6],
        difficulty=[0, 2],
        lidar=[1, 2, 5],
        return_number=[1, 2, 1],
        in_no_label_zone=[False, True, False],
    )
    assert frame.points[1].tolist() == np.float32([4.0, 0.5, -0.2, 4.0, 0.5]).tolist()
    labels = frame.labels
    assert labels is not None
    assert (labels.types.tolist(), labels.ids, labels.num_points.tolist()) == ([4, 2], ("a", "b"), [5, 6])
    assert labels.velocity.tolist() == [[1, 2, 0], [3, 4, 0]]
    assert labels.acceleration.tolist() == [[1, 1, 1]] * 2
    assert labels.difficulty.tolist() == [0, 2]
    assert (frame.lidar.tolist(), frame.return_number.tolist()) == ([1, 2, 5], [1, 2, 1])
    assert frame.in_no_label_zone.tolist() == [False, True, False]
    assert frame.pose[0, 0] == 2


def test_no_labels_and_no_objects() -> None:
    assert make_frame(7, POINTS).labels is None
    for empty in ([], np.zeros((0, 7))):
        labels = make_frame(7, POINTS, empty, velocity=[]).labels
        assert labels is not None
        assert labels.boxes.shape == (0, 7)
    assert make_frame(7, np.zeros((0, 3))).points.shape == (0, 5)


def test_headings_stay_below_pi_in_float32() -> None:
    labels = make_frame(7, POINTS, [[*BOX[:6], np.nextafter(np.pi, 0)]], ["VEHICLE"]).labels
    assert labels is not None
    assert -np.pi <= labels.boxes[0, 6].astype(np.float64) + 1e-6
    assert labels.boxes[0, 6] < np.float32(np.pi)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"points": POINTS[:, :2]}, r"points have the shape \(3, 2\); give \[N, 3 to 5\]"),
        ({"points": [["a", 1, 2]]}, "points can't be read as numbers"),
        ({"timestamp_micros": 1.5}, "timestamp 1.5 is no whole number; give microseconds"),
        ({"boxes": [BOX[:6]]}, r"boxes have the shape \(1, 6\); give \[M, 7\]"),
        ({"boxes": [BOX, BOX]}, "1 types for 2 boxes; give one for each"),
        ({"ids": ["a", "b"]}, "2 ids for 1 boxes; give one for each"),
        ({"boxes": None}, r"1 types and 0 ids, but no boxes; give boxes"),
        ({"boxes": [[*BOX[:6], np.nan]]}, r"box 0 \('7-0'\) isn't finite"),
        ({"types": ["VEHICEL"]}, r"type 'VEHICEL': did you mean VEHICLE\? there are UNKNOWN, VEHICLE, PEDE"),
        ({"types": ["tram"]}, "type 'tram': there are UNKNOWN, VEHICLE"),
        ({"types": [7]}, "type 7: there are"),
        ({"pose": np.eye(3)}, r"the pose has the shape \(3, 3\)"),
        ({"velocity": [[1, 2], [3, 4]]}, r"velocity has the shape \(2, 2\); give \[1, 2 or 3\]"),
        ({"num_points": [1, 2]}, r"num_points has the shape \(2,\); give \(1,\)"),
        ({"difficulty": [3]}, "difficulty is 3 somewhere; it may be 0, 1, 2"),
        ({"lidar": [1, 2]}, r"lidar has the shape \(2,\); give \(3,\)"),
        ({"lidar": [1, 2, 8]}, "lidar is 8 somewhere"),
        ({"return_number": [0, 1, 2]}, "return_number is 0 somewhere; it may be 1, 2"),
        ({"in_no_label_zone": [True]}, r"in_no_label_zone has the shape \(1,\)"),
    ],
)
def test_arrays_that_do_not_fit(arguments: dict, message: str) -> None:
    sound = {"timestamp_micros": 7, "points": POINTS, "boxes": [BOX], "types": ["VEHICLE"]}
    with pytest.raises(UserError, match=message):
        make_frame(**{**sound, **arguments})


def test_types_by_name_and_number() -> None:
    assert object_type("cyclist") is object_type(4) is object_type(np.uint8(4)) is ObjectType.CYCLIST


def test_a_scan_that_cannot_be_used_is_named() -> None:
    scans = [Path("1"), Path("2"), Path("3")]
    recording = ScanRecording("a", scans, lambda scan: make_frame(int(scan.name), POINTS[:, : 5 - int(scan.name)]))
    with pytest.raises(DataError, match=r"^3: points have the shape \(3, 2\)"):
        list(read_recording(recording))
    assert [frame.key for frame in read_recording(recording, every=3)] == [("a", 1)]


@dataclass(frozen=True)
class Other:
    """A recording of one's own form."""

    yields: object
    name: str = "mine"
    files: tuple[Path, ...] = (Path("bag"),)

    def frames(self, every: int) -> Iterator[Frame]:
        yield make_frame(1, POINTS)
        yield self.yields  # type: ignore[misc]


def test_any_object_of_the_form_is_a_recording() -> None:
    recording: Recording = Other(make_frame(2, POINTS))
    assert [frame.key for frame in read_recording(recording)] == [("mine", 1), ("mine", 2)]
    with pytest.raises(DataError, match=r"mine, record 1: its reader yields NoneType; yield .*Frame"):
        list(read_recording(Other(None)))
    other = next(read_recording(Other(None, name="yours")))
    with pytest.raises(DataError, match="mine, record 1: the frame's context name is 'yours'; leave it empty"):
        list(read_recording(Other(other)))
