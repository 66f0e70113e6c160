"""Each error of a frame is told, with the value, and a sound frame has none."""

from dataclasses import replace

import numpy as np
import pytest

from detection3d.data.checking import check
from detection3d.data.checking.frame_errors import Sequence, frame_faults
from detection3d.data.label_check import unusable_label
from detection3d.geometry.host.poses import pose_from_angles
from detection3d.types.scene import Boxes, Frame
from tests.data.made_frames import make_frame
from tests.data.made_scenes import as_source


def boxes_of(frame: Frame) -> Boxes:
    assert frame.labels is not None
    return frame.labels


def with_labels(frame: Frame, **change: object) -> Frame:
    return replace(frame, labels=replace(boxes_of(frame), **change))


def entry(values: np.ndarray, row: int, column: int, value: float) -> np.ndarray:
    changed = values.copy()
    changed[row, column] = value
    return changed


FRAME = make_frame("a", 5)
LABELS = boxes_of(FRAME)
POSE = pose_from_angles([0.1, -0.2, 2.0], [10.0, -20.0, 3.0])

BROKEN: list[tuple[Frame, str, str]] = [
    (replace(FRAME, points=FRAME.points[:, :4]), "form", r"points are float32 \[200, 4\]; give float32 \[N, 5\]"),
    (replace(FRAME, points=FRAME.points.astype(np.float64)), "form", "points are float64; give float32"),
    (replace(FRAME, points=None), "form", "points are NoneType; give float32"),
    (replace(FRAME, lidar=FRAME.lidar[:3]), "form", r"lidar is uint8 \[3\]; give uint8 \(200,\), one value for each"),
    (replace(FRAME, in_no_label_zone=FRAME.lidar), "form", r"in_no_label_zone is uint8 \[200\]; give bool"),
    (with_labels(FRAME, boxes=LABELS.boxes[:, :6]), "form", r"boxes are float32 \[3, 6\]; give float32 \[M, 7\]"),
    (with_labels(FRAME, types=LABELS.types.astype(int)), "form", r"types is int64 \[3\]; give uint8 \(3,\)"),
    (
        with_labels(FRAME, velocity=LABELS.velocity[:, :2]),
        "form",
        r"velocity is float32 \[3, 2\]; give float32 \(3, 3\)",
    ),
    (with_labels(FRAME, ids=LABELS.ids[:2]), "form", "2 ids for 3 boxes"),
    (with_labels(FRAME, ids=("a", "", "b")), "form", "give a string for each box, not empty"),
    (replace(FRAME, timestamp_micros=0.5), "timestamp", "the timestamp is 0.5; give whole microseconds"),
    (replace(FRAME, pose=np.eye(3)), "pose", r"the pose is float64 \[3, 3\]; give float64 \[4, 4\]"),
    (replace(FRAME, pose=entry(POSE, 0, 3, np.nan)), "pose", "the pose isn't finite"),
    (replace(FRAME, pose=entry(POSE, 0, 0, 0.5)), "pose", "the pose is no rigid motion"),
    (replace(FRAME, pose=POSE @ np.diag([1, -1, 1, 1.0])), "pose", r"the pose mirrors \(its determinant is -1\)"),
    (replace(FRAME, pose=entry(POSE, 3, 0, 1.0)), "pose", r"last row is \[1.0, 0.0, 0.0, 1.0\], not 0, 0, 0, 1"),
    (replace(FRAME, points=entry(FRAME.points, 7, 2, np.inf)), "not finite", r"1 points aren't finite, such as 7: \["),
    (replace(FRAME, lidar=FRAME.lidar + np.uint8(7)), "lidar", "lidar number 12; the store has room for 0 to 7"),
    (replace(FRAME, return_number=FRAME.return_number + np.uint8(1)), "return", "return number 3; a point belongs"),
    (with_labels(FRAME, boxes=entry(LABELS.boxes, 1, 6, np.nan)), "not finite", "box of object 'objet-é5-1' isn't fin"),
    (
        with_labels(FRAME, velocity=entry(LABELS.velocity, 2, 0, np.inf)),
        "not finite",
        "velocity of object 'objet-é5-2'",
    ),
    (
        with_labels(FRAME, boxes=entry(LABELS.boxes, 1, 4, 0.0)),
        "size",
        r"objet-é5-1' has length, width, height \(.*, 0,",
    ),
    (with_labels(FRAME, boxes=entry(LABELS.boxes, 0, 3, -1)), "size", "sizes must be above 0"),
    (
        with_labels(FRAME, types=np.array([1, 9, 2], np.uint8)),
        "type",
        "object 'objet-é5-1' has type 9; there are UNKNOWN",
    ),
    (with_labels(FRAME, difficulty=np.array([0, 3, 2], np.uint8)), "difficulty", "difficulty 3; give 0"),
    (with_labels(FRAME, num_points=np.array([0, -1, 2], np.int32)), "count", "num_points is -1; count the points"),
    (with_labels(FRAME, ids=("a", "b", "a")), "id", "id 'a' occurs 2 times; an id is one object's in a frame"),
]


@pytest.mark.parametrize(
    ("frame", "kind", "message"), BROKEN, ids=lambda value: value if isinstance(value, str) else ""
)
def test_each_error_is_told_alone(frame: Frame, kind: str, message: str) -> None:
    (fault,) = frame_faults(frame)
    assert fault.kind == kind
    with pytest.raises(ValueError, match=message):
        raise ValueError(fault.message)


@pytest.mark.parametrize("boxes", [None, 0, 3])
def test_sound_frames_have_no_errors(boxes: int | None) -> None:
    frame = replace(make_frame("a", 5, boxes=boxes), pose=POSE.astype(np.float32).astype(np.float64))
    assert list(frame_faults(frame)) == []
    assert list(frame_faults(replace(make_frame("a", 5, points=0, boxes=boxes)))) == []


def test_what_contradicts_the_frames_before() -> None:
    sequence = Sequence()

    def kinds(number: int, stamp: int, types: tuple[int, ...] = (1, 1)) -> list[str]:
        frame = make_frame("a", stamp, boxes=2)
        frame = with_labels(frame, ids=("x", "y"), types=np.array(types, np.uint8))
        return [fault.message for fault in sequence.faults(number, frame)]

    assert kinds(0, 100) == []
    assert kinds(1, 200) == []
    (twice,) = kinds(2, 100)
    assert twice.startswith("timestamp 100 is that of frame 0 too")
    (late,) = kinds(3, 150)
    assert late == "timestamp 150 comes after 200; sort the frames by time"
    (changed,) = kinds(4, 300, (1, 2))
    assert changed.startswith("object 'y' is PEDESTRIAN here and VEHICLE in frame 0;")


def test_errors_are_counted_and_what_is_broken_is_not_judged() -> None:
    frames = [replace(make_frame("a", stamp), pose=np.eye(3)) for stamp in range(8)]
    report = check([as_source("a", frames), as_source("b", [])])
    assert report.counts == {"pose": 8, "empty": 1}
    assert report.errors == 9
    assert [(problem.recording, problem.frame) for problem in report.problems] == [
        *(("a", number) for number in range(5)),
        ("b", None),
    ]
    assert [suspicion.name for suspicion in report.suspicions] == ["points"]


SPOILED = {
    "box": lambda labels: {"boxes": labels.boxes * np.float32([1, 1, np.nan, 1, 1, 1, 1])},
    "size": lambda labels: {"boxes": labels.boxes * np.float32([1, 1, 1, 1, 0, 1, 1])},
    "velocity": lambda labels: {"velocity": np.full_like(labels.velocity, np.inf)},
    "acceleration": lambda labels: {"acceleration": np.full_like(labels.acceleration, np.nan)},
    "type": lambda labels: {"types": np.full(len(labels), 5, np.uint8)},
    "difficulty": lambda labels: {"difficulty": np.full(len(labels), 3, np.uint8)},
    "count": lambda labels: {"num_points": np.full(len(labels), -1, np.int32)},
    "ids": lambda labels: {"ids": ("a",) * len(labels)},
    "fewer": lambda labels: {"types": labels.types[1:]},
}


@pytest.mark.parametrize("kind", SPOILED)
def test_what_a_check_calls_an_error_in_labels_the_store_refuses(kind: str) -> None:
    """The check explains each fault, the store names the first: their rules must not drift apart."""
    sound = make_frame("a", 1)
    assert sound.labels is not None
    assert not list(frame_faults(sound))
    assert unusable_label(sound.labels) is None
    spoiled = replace(sound.labels, **SPOILED[kind](sound.labels))
    assert list(frame_faults(replace(sound, labels=spoiled)))
    assert unusable_label(spoiled) is not None
