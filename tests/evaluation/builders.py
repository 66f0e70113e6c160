"""Small frames for the tests of the metrics."""

from collections.abc import Sequence

import numpy as np

from detection3d.evaluation import GroundTruth
from detection3d.types.scene import Boxes, Detections, Frame


def box(x: float = 10.0, y: float = 0.0, heading: float = 0.0, z: float = 1.0) -> tuple[float, ...]:
    """Return a box of a car's size, 4 x 2 x 1.5 m."""
    return (x, y, z, 4.0, 2.0, 1.5, heading)


def found(
    boxes: Sequence[Sequence[float]],
    scores: Sequence[float] | float = 0.9,
    types: Sequence[int] | int = 1,
    in_zone: Sequence[bool] | bool = False,
    key: tuple[str, int] = ("segment", 0),
) -> Detections:
    """Return detections; single values hold for all."""
    count = len(boxes)
    return Detections(
        context_name=key[0],
        timestamp_micros=key[1],
        boxes=np.array(boxes, np.float32).reshape(-1, 7),
        types=np.broadcast_to(types, count).astype(np.uint8),
        scores=np.broadcast_to(scores, count).astype(np.float32),
        overlaps_no_label_zone=np.broadcast_to(in_zone, count).astype(np.bool_),
    )


def truth(
    boxes: Sequence[Sequence[float]],
    levels: Sequence[int] | int = 1,
    types: Sequence[int] | int = 1,
    key: tuple[str, int] = ("segment", 0),
) -> GroundTruth:
    """Return ground truth; single values hold for all."""
    count = len(boxes)
    return GroundTruth(
        context_name=key[0],
        timestamp_micros=key[1],
        boxes=np.array(boxes, np.float32).reshape(-1, 7),
        types=np.broadcast_to(types, count).astype(np.uint8),
        levels=np.broadcast_to(levels, count).astype(np.uint8),
        num_points=np.full(count, 20, np.int32),
        velocity=np.ones((count, 3), np.float32),
    )


def labels(
    boxes: Sequence[Sequence[float]], num_points: Sequence[int], difficulty: Sequence[int] | int = 0, types: int = 1
) -> Boxes:
    """Return labels as a data set has them."""
    count = len(boxes)
    return Boxes(
        boxes=np.array(boxes, np.float32).reshape(-1, 7),
        types=np.full(count, types, np.uint8),
        ids=tuple(f"object-{k}" for k in range(count)),
        difficulty=np.broadcast_to(difficulty, count).astype(np.uint8),
        num_points=np.array(num_points, np.int32),
        velocity=np.zeros((count, 3), np.float32),
        acceleration=np.zeros((count, 3), np.float32),
    )


def frame(labelled: Boxes | None, points: int = 500, key: tuple[str, int] = ("segment", 0)) -> Frame:
    """Return a frame with random points."""
    rng = np.random.default_rng(0)
    return Frame(
        context_name=key[0],
        timestamp_micros=key[1],
        pose=np.eye(4),
        points=rng.normal(0, 15, (points, 5)).astype(np.float32),
        lidar=np.ones(points, np.uint8),
        return_number=np.ones(points, np.uint8),
        in_no_label_zone=np.zeros(points, np.bool_),
        labels=labelled,
    )
