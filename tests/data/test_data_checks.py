"""A sound scene raises no warning; what is odd about frames raises its own."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from detection3d.config_file import load_config
from detection3d.data.data_checks import check_data
from detection3d.data.frame_summary import summarise_frame
from detection3d.geometry.host.boxes import count_points_in_boxes
from detection3d.types.scene import Boxes, Frame, ObjectType

MODEL = load_config("waymo_voxel").model


def sound_frame(timestamp: int = 0) -> Frame:
    """Twelve cars on flat ground, each a solid block of points, half of them driving ahead."""
    rng = np.random.default_rng(timestamp)
    count = 12
    heading = rng.uniform(-3, 3, count)
    boxes = np.zeros((count, 7), np.float32)
    boxes[:, 0], boxes[:, 1] = np.repeat([-12, 0, 12], 4), np.tile([-18, -6, 6, 18], 3)
    boxes[:, 2:] = np.column_stack([np.full((count, 4), (0.85, 4.5, 1.9, 1.7)), heading])
    inside = rng.uniform(-0.5, 0.5, (count, 80, 3)) * (4.4, 1.8, 1.6)
    turned = np.stack(
        [
            np.cos(heading)[:, None] * inside[..., 0] - np.sin(heading)[:, None] * inside[..., 1],
            np.sin(heading)[:, None] * inside[..., 0] + np.cos(heading)[:, None] * inside[..., 1],
            inside[..., 2],
        ],
        axis=-1,
    )
    cars = (turned + boxes[:, None, :3]).reshape(-1, 3)
    ground = np.column_stack([rng.uniform(-40, 40, (3000, 2)), np.full(3000, -0.02)])
    points = np.column_stack([np.concatenate([cars, ground]), rng.exponential(0.2, len(cars) + 3000)])
    points = np.column_stack([points, np.zeros(len(points))]).astype(np.float32)
    speed = np.where(np.arange(count) % 2, 8.0, 0.0)
    velocity = np.column_stack([speed * np.cos(heading), speed * np.sin(heading), np.zeros(count)])
    labels = Boxes(
        boxes=boxes,
        types=np.full(count, ObjectType.VEHICLE, np.uint8),
        ids=tuple(f"car-{k}" for k in range(count)),
        difficulty=np.zeros(count, np.uint8),
        num_points=count_points_in_boxes(points, boxes),
        velocity=velocity.astype(np.float32),
        acceleration=np.zeros((count, 3), np.float32),
    )
    return Frame(
        context_name="segment",
        timestamp_micros=timestamp,
        pose=np.eye(4),
        points=points,
        lidar=np.ones(len(points), np.uint8),
        return_number=np.ones(len(points), np.uint8),
        in_no_label_zone=np.zeros(len(points), np.bool_),
        labels=labels,
    )


def kinds(frames: list[Frame]) -> set[str]:
    return {warning.kind for warning in check_data([summarise_frame(frame, MODEL) for frame in frames], MODEL)}


def relabelled(change: Callable[[Boxes], Boxes]) -> Callable[[Frame], Frame]:
    def apply(frame: Frame) -> Frame:
        assert frame.labels is not None
        return replace(frame, labels=change(frame.labels))

    return apply


def moved(*change: float) -> Callable[[Frame], Frame]:
    return relabelled(lambda labels: replace(labels, boxes=labels.boxes + np.float32(change)))


def scaled(*factors: float) -> Callable[[Frame], Frame]:
    return lambda frame: replace(frame, points=frame.points * np.float32(factors))


MISTAKES = {
    "boxes without points": moved(30, 0, 30, 0, 0, 0, 0),
    "points out of range": scaled(4, 4, 1, 1, 1),
    "boxes out of range": moved(90, 0, 0, 0, 0, 0, 0),
}


def test_sound_frames_raise_nothing() -> None:
    assert kinds([sound_frame(number) for number in range(3)]) == set()


@pytest.mark.parametrize("kind", MISTAKES)
def test_each_mistake_raises_its_warning(kind: str) -> None:
    assert kind in kinds([MISTAKES[kind](sound_frame(number)) for number in range(3)])


def test_warnings_state_their_figure() -> None:
    frame = MISTAKES["boxes without points"](sound_frame())
    warnings = {item.kind: item for item in check_data([summarise_frame(frame, MODEL)], MODEL)}
    found = warnings["boxes without points"]
    assert (found.value, found.limit) == (1.0, 0.3)
    assert found.message == "100 % of the boxes hold no point"


def test_odd_frames_among_others() -> None:
    sound = [sound_frame(number) for number in range(4)]
    assert kinds([*sound, replace(sound_frame(9), labels=None)]) == {"frames without labels"}
    assert kinds([*sound, sound_frame(0)]) == {"repeated frames"}
    few = sound_frame(9)
    few = replace(few, points=few.points[:9], lidar=few.lidar[:9], return_number=few.return_number[:9])
    assert "sparse frames" in kinds([*sound, replace(few, in_no_label_zone=few.in_no_label_zone[:9])])


def test_four_boxes_are_too_few_for_a_share() -> None:
    frame = MISTAKES["boxes without points"](sound_frame())
    for count in (4, 5):
        few = relabelled(lambda labels, count=count: labels.select(np.arange(len(labels)) < count))(frame)
        assert ("boxes without points" in kinds([few])) == (count == 5)
