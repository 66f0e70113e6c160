"""What the official detection metrics let one choose."""

import math
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from detection3d.errors import UserError
from detection3d.evaluation.breakdowns import Breakdown, ByObjectType, ByRange
from detection3d.types.scene import Float32Array, ObjectType

LEVELS = (1, 2)


def _official_cutoffs() -> tuple[float, ...]:
    return tuple(index * 0.01 for index in range(101))


@dataclass(frozen=True)
class MetricConfig:
    """The metrics' configuration; the defaults are the official ones.

    Attributes:
        breakdowns: how to split the metrics, each at most once.
        levels: difficulty levels, in the order of the rows.
        iou_thresholds: least 3D IoU of a match for UNKNOWN, VEHICLE, PEDESTRIAN, SIGN and CYCLIST.
        score_cutoffs: ascending. Empty: `desired_cutoffs` of them, from the quantiles of the scores.
        recall_step: in (0, 1]; see `average_precision`.
        desired_cutoffs: how many where `score_cutoffs` is empty.
        min_precision: precision below it counts as 0.
        min_heading_accuracy: a match whose heading accuracy isn't above it is neither found nor false nor missed; -1
            takes every match.
        levels_by_breakdown: the levels of each breakdown, where they differ; empty: `levels` for all.

    Raises:
        UserError: a value that the official metrics don't accept, or that means nothing.
    """

    breakdowns: tuple[Breakdown, ...] = (ByObjectType(), ByRange())
    levels: tuple[int, ...] = (1, 2)
    iou_thresholds: tuple[float, ...] = (0.0, 0.7, 0.5, 0.5, 0.5)
    score_cutoffs: tuple[float, ...] = field(default_factory=_official_cutoffs)
    recall_step: float = 0.05
    desired_cutoffs: int = 0
    min_precision: float = 0.0
    min_heading_accuracy: float = -1.0
    levels_by_breakdown: tuple[tuple[int, ...], ...] = ()

    def __post_init__(self) -> None:
        if any(not later > earlier for earlier, later in pairwise(self.score_cutoffs)):
            raise UserError(f"score_cutoffs of the metrics must be ascending, got {self.score_cutoffs}")
        if not self.score_cutoffs and self.desired_cutoffs < 1:
            raise UserError(
                "score_cutoffs of the metrics must be ascending and not empty; or give the number of desired score "
                f"cutoffs, at least 1, got {self.desired_cutoffs}"
            )
        for levels in (self.levels, *self.levels_by_breakdown):
            if not levels or len(set(levels)) < len(levels) or not set(levels) <= set(LEVELS):
                raise UserError(f"levels of the metrics must be 1, 2 or both, each once and not empty, got {levels}")
        if self.levels_by_breakdown and len(self.levels_by_breakdown) != len(self.breakdowns):
            raise UserError(
                f"{len(self.breakdowns)} breakdowns need as many lists of levels, got {self.levels_by_breakdown}"
            )
        names = [split.name for split in self.breakdowns]
        if not names or len(set(names)) < len(names):
            raise UserError(f"breakdowns of the metrics must be given, each once, got {names}")
        if len(self.iou_thresholds) != len(ObjectType):
            raise UserError(f"iou_thresholds needs one for each of the {len(ObjectType)} types: {self.iou_thresholds}")
        if not all(0 <= threshold <= 1 for threshold in self.iou_thresholds):
            raise UserError(f"iou_thresholds must lie in [0, 1], got {self.iou_thresholds}")
        for name in ("min_precision", "min_heading_accuracy"):
            if not math.isfinite(getattr(self, name)):
                raise UserError(f"{name} of the metrics must be a number, got {getattr(self, name)}")
        if not 0 < self.recall_step <= 1:
            raise UserError(f"the recall step of the metrics must lie in (0, 1], got {self.recall_step}")

    def levels_of(self, index: int) -> tuple[int, ...]:
        """Return the levels of the breakdown with that index."""
        return self.levels_by_breakdown[index] if self.levels_by_breakdown else self.levels

    def cutoffs_for(self, scores: Float32Array) -> Float32Array:
        """Return the score cutoffs for detections with these scores.

        Args:
            scores: float32 [P], of all detections; they matter only where `score_cutoffs` is empty.

        Returns:
            float32 [C], ascending; equal ones may follow each other where scores are equal.
        """
        if self.score_cutoffs:
            cutoffs = np.array(self.score_cutoffs, np.float32)
        else:
            cutoffs = _quantile_cutoffs(np.sort(scores), self.desired_cutoffs)
        return without_denormals(cutoffs)


def without_denormals(values: Float32Array) -> Float32Array:
    """Take numbers below the least normal float32 for 0, as TensorFlow's threads do."""
    return np.where(np.abs(values) < np.finfo(np.float32).tiny, np.float32(0), values)


def _quantile_cutoffs(scores: Float32Array, count: int) -> Float32Array:
    """Choose cutoffs with equally many scores between them: `DecideScoreCutoffs` in metrics/metrics_utils.cc."""
    if count == 1:
        return np.zeros(1, np.float32)
    if count >= len(scores):
        step, at, cutoffs = np.float32(1.0 / (count - 1)), np.float32(0), []
        while at < 1:
            cutoffs.append(at)
            at = at + step
        if np.float64(np.float32(1) - cutoffs[-1]) > np.float64(step) * 0.5:
            cutoffs.append(np.float32(1))
        return np.array(cutoffs, np.float32)
    cutoffs, place, left = [scores[0]], 0, len(scores)
    for bucket in range(count - 2):
        size = left // (count - 1 - bucket)
        left -= size
        place += size
        cutoffs.append(min(max(scores[place], np.float32(0)), np.float32(1)))
    return np.array([*cutoffs, 1], np.float32)
