"""Pairs detections with ground truth frame by frame, and refuses what would make the metrics meaningless."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from detection3d.errors import UserError
from detection3d.evaluation.ground_truth import GroundTruth
from detection3d.types.scene import Detections, ObjectType

MAX_BOXES_PER_FRAME = 10_000
"""The matcher's time grows with the cube of the boxes in a frame; a detector that keeps more has lost its NMS."""

_LABELLED_LEVELS = (0, 1, 2)


@dataclass(frozen=True)
class FramePair:
    """Detections and ground truth of one frame.

    Attributes:
        key: `(context_name, timestamp_micros)`.
        detections: None where the frame has ground truth alone.
        truth: None where the frame has detections alone.
    """

    key: tuple[str, int]
    detections: Detections | None
    truth: GroundTruth | None


def pair_frames(predictions: Sequence[Detections], ground_truth: Sequence[GroundTruth]) -> list[FramePair]:
    """Pair by frame key, in ascending order of the key: the order in which float32 sums are merged.

    Args:
        predictions: at most one for each frame.
        ground_truth: likewise.

    Returns:
        A pair for each frame that occurs on either side.

    Raises:
        UserError: a frame occurs twice on one side, or holds unusable numbers; it is named.
    """
    for item in (*predictions[:1], *ground_truth[:1]):
        expected = Detections if item is next(iter(predictions), None) else GroundTruth
        if not isinstance(item, expected):
            raise UserError(
                f"{type(item).__name__} where {expected.__name__} was expected; the detections come first, then the"
                " ground truth"
            )
    detections = _by_key(predictions, "detections")
    truths = _by_key(ground_truth, "ground truth")
    for item in predictions:
        check_detections(item)
    for item in ground_truth:
        check_ground_truth(item)
    return [FramePair(key, detections.get(key), truths.get(key)) for key in sorted(detections.keys() | truths.keys())]


def no_detections(context_name: str, timestamp_micros: int) -> Detections:
    """Return the detections of a frame in which nothing was found."""
    return Detections(
        context_name=context_name,
        timestamp_micros=timestamp_micros,
        boxes=np.zeros((0, 7), np.float32),
        types=np.zeros(0, np.uint8),
        scores=np.zeros(0, np.float32),
        overlaps_no_label_zone=np.zeros(0, np.bool_),
    )


def check_detections(item: Detections) -> None:
    """Check one frame's detections.

    Args:
        item: the detections.

    Raises:
        UserError: lengths that differ, too many boxes, a score outside [0, 1], an unknown type.
    """
    count = _check_boxes(item, "detections")
    _check_lengths(
        item,
        "detections",
        count,
        {"types": item.types, "scores": item.scores, "overlaps_no_label_zone": item.overlaps_no_label_zone},
    )
    if item.velocity is not None and item.velocity.shape != (count, 2):
        raise UserError(
            f"{_where(item)}: there are {count} detections, but velocity has shape {item.velocity.shape}; it must be"
            f" ({count}, 2)"
        )
    for index in np.flatnonzero(~((item.scores >= 0) & (item.scores <= 1))):
        raise UserError(f"{_where(item)}: detection {index} has score {item.scores[index]}; scores must lie in [0, 1]")


def check_ground_truth(item: GroundTruth) -> None:
    """Check one frame's ground truth.

    Args:
        item: the ground truth.

    Raises:
        UserError: as in `check_detections`, or a level other than 0, 1 and 2.
    """
    count = _check_boxes(item, "ground truth")
    columns = {"types": item.types, "levels": item.levels, "num_points": item.num_points}
    _check_lengths(item, "ground truth", count, columns)
    if item.velocity is not None and item.velocity.shape != (count, 3):
        raise UserError(
            f"{_where(item)}: the ground truth has {count} boxes, but velocity has shape {item.velocity.shape}; it must"
            f" be ({count}, 3)"
        )
    for index in np.flatnonzero(~np.isin(item.levels, _LABELLED_LEVELS)):
        raise UserError(
            f"{_where(item)}: ground-truth box {index} has difficulty level {item.levels[index]}; levels are 1 and 2"
        )


def refuse_not_finite(item: Detections | GroundTruth) -> None:
    """Check that a frame's boxes are numbers, before they are given to others; the metrics themselves take any.

    Raises:
        UserError: a box holds NaN or an infinite number.
    """
    for index in np.flatnonzero(~np.isfinite(item.boxes).all(axis=1)):
        found = isinstance(item, Detections)
        side = "detections" if found else "ground truth"
        advice = "look at the detector's weights and inputs" if found else "correct the label or leave it out"
        raise UserError(
            f"{_where(item)}: box {index} of the {side} is not finite: {item.boxes[index].tolist()}; {advice}"
        )


def count_not_finite(items: Sequence[Detections] | Sequence[GroundTruth]) -> int:
    """Return how many boxes hold NaN or an infinite number; such a box overlaps no other."""
    return sum(int((~np.isfinite(item.boxes).all(axis=1)).sum()) for item in items)


AnyBoxes = TypeVar("AnyBoxes", Detections, GroundTruth)


def _by_key(items: Sequence[AnyBoxes], side: str) -> dict[tuple[str, int], AnyBoxes]:
    by_key: dict[tuple[str, int], AnyBoxes] = {}
    for item in items:
        if item.key in by_key:
            raise UserError(f"{_where(item)}: occurs twice in the {side}; give each frame once, with all of its boxes")
        by_key[item.key] = item
    return by_key


def _check_boxes(item: Detections | GroundTruth, side: str) -> int:
    if item.boxes.ndim != 2 or item.boxes.shape[1] != 7:
        raise UserError(f"{_where(item)}: boxes of the {side} must be [M, 7], got shape {item.boxes.shape}")
    count = len(item.boxes)
    if count > MAX_BOXES_PER_FRAME:
        raise UserError(
            f"{_where(item)}: {count} boxes in the {side}, more than {MAX_BOXES_PER_FRAME}, which would take the "
            "matcher hours; raise the detector's score threshold or tighten its NMS"
        )
    types = np.asarray(item.types)
    for index in np.flatnonzero(~np.isin(types, list(ObjectType))):
        raise UserError(
            f"{_where(item)}: box {index} of the {side} has type {item.types[index]}; Waymo's types are 0 to 4"
        )
    return count


def _check_lengths(item: Detections | GroundTruth, side: str, count: int, columns: dict[str, np.ndarray]) -> None:
    for name, column in columns.items():
        if column.shape != (count,):
            raise UserError(
                f"{_where(item)}: the {side} have {count} boxes, but {name} has shape {column.shape}; "
                f"it must be ({count},)"
            )


def _where(item: Detections | GroundTruth) -> str:
    return f"frame {item.context_name} at {item.timestamp_micros}"
