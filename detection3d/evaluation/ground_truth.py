"""The ground truth that the metrics are measured against, and how it comes from labels.

The official metric expects its caller to have done this preparation (tools/compute_detection_metrics_main.cc in the
Waymo Open Dataset); without it, numbers differ.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from detection3d.errors import UserError
from detection3d.types.scene import Boxes, Float32Array, Frame, Int32Array, UInt8Array

MAX_POINTS_LEVEL_2 = 5  # an object with at most this many points is LEVEL_2 unless a person said otherwise


@dataclass(frozen=True)
class GroundTruth:
    """Objects of one frame that a detector is expected to find, M of them.

    Attributes:
        context_name: the frame's segment.
        timestamp_micros: the frame's timestamp.
        boxes: float32 [M, 7], vehicle frame.
        types: uint8 [M], `ObjectType`.
        levels: uint8 [M], difficulty, 1 or 2. LEVEL_2 as a metric includes the objects of level 1.
        num_points: int32 [M], lidar points in each box.
        velocity: float32 [M, 3], m/s, axes of the vehicle frame; None where unknown.
        without_points: number of labels that were left out since no lidar point lies in them; not kept on disk.
    """

    context_name: str
    timestamp_micros: int
    boxes: Float32Array
    types: UInt8Array
    levels: UInt8Array
    num_points: Int32Array
    velocity: Float32Array | None = None
    without_points: int = 0

    @property
    def key(self) -> tuple[str, int]:
        """`(context_name, timestamp_micros)` of the frame."""
        return self.context_name, self.timestamp_micros

    def __len__(self) -> int:
        """Number of objects, M."""
        return len(self.boxes)


def no_ground_truth(context_name: str, timestamp_micros: int) -> GroundTruth:
    """Return the ground truth of a frame without objects."""
    return GroundTruth(
        context_name=context_name,
        timestamp_micros=timestamp_micros,
        boxes=np.zeros((0, 7), np.float32),
        types=np.zeros(0, np.uint8),
        levels=np.zeros(0, np.uint8),
        num_points=np.zeros(0, np.int32),
    )


def prepare_ground_truth(labels: Boxes, context_name: str, timestamp_micros: int) -> GroundTruth:
    """Turn the labels of a frame into ground truth.

    Objects without a lidar point are deleted, not ignored: a detection on one is a false positive. A level that a
    person gave stands; else an object with at most 5 points is LEVEL_2 and any other LEVEL_1.

    Args:
        labels: the frame's labels.
        context_name: the frame's segment.
        timestamp_micros: the frame's timestamp.

    Returns:
        The objects that are left, in the order of the labels.
    """
    kept = labels.select(labels.num_points > 0)
    by_points = np.where(kept.num_points <= MAX_POINTS_LEVEL_2, 2, 1)
    return GroundTruth(
        context_name=context_name,
        timestamp_micros=timestamp_micros,
        boxes=kept.boxes,
        types=kept.types,
        levels=np.where(kept.difficulty == 0, by_points, kept.difficulty).astype(np.uint8),
        num_points=kept.num_points,
        velocity=kept.velocity,
        without_points=len(labels) - len(kept),
    )


def ground_truth_of_frames(frames: Iterable[Frame]) -> tuple[GroundTruth, ...]:
    """Return the ground truth of labelled frames.

    Args:
        frames: frames with labels, of which there may be none.

    Returns:
        One for each frame, in the same order.

    Raises:
        UserError: a frame has no labels at all, as those of a test split.
    """
    result = []
    for frame in frames:
        if frame.labels is None:
            raise UserError(
                f"frame {frame.context_name} at {frame.timestamp_micros} has no labels, so it can't be evaluated; "
                "choose a labelled split"
            )
        result.append(prepare_ground_truth(frame.labels, frame.context_name, frame.timestamp_micros))
    return tuple(result)
