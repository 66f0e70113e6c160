"""Counts of each segment by itself, for what resamples segments.

Counts add up over frames, so those of any selection of segments are sums of these. Frames of one segment are alike, and
segments are not: a difference between two detectors must hold over segments to mean anything.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from detection3d.evaluation.breakdowns import ByObjectType
from detection3d.evaluation.ground_truth import GroundTruth
from detection3d.evaluation.metrics import MetricConfig, MetricRow, evaluate
from detection3d.types.scene import Detections, Float64Array, ObjectType

Int64Array = npt.NDArray[np.int64]

RowName = tuple[ObjectType, int]
"""Type and difficulty level."""


@dataclass(frozen=True)
class SegmentCounts:
    """Counts of S segments, in R rows of the breakdown OBJECT_TYPE, at C score cutoffs.

    Attributes:
        segments: names, ascending.
        rows: type and level of each row.
        true_positives: int64 [S, R, C].
        false_positives: int64 [S, R, C].
        false_negatives: int64 [S, R, C].
        heading: float64 [S, R, C], sum of the heading accuracies of the true positives, to a float32's precision.
        ground_truth: int64 [S, R].
    """

    segments: tuple[str, ...]
    rows: tuple[RowName, ...]
    true_positives: Int64Array
    false_positives: Int64Array
    false_negatives: Int64Array
    heading: Float64Array
    ground_truth: Int64Array


def count_segments(
    predictions: Sequence[Detections],
    ground_truth: Sequence[GroundTruth],
    segments: Sequence[str],
    config: MetricConfig | None = None,
) -> SegmentCounts:
    """Count each segment by itself.

    Args:
        predictions: as for `evaluate`.
        ground_truth: likewise.
        segments: names, ascending, each once; one that has neither side counts nothing.
        config: the metrics' configuration; its breakdowns are not used. None takes the official one.

    Returns:
        The counts, a segment each.
    """
    config = replace(MetricConfig() if config is None else config, breakdowns=(ByObjectType(),))
    found: defaultdict[str, list[Detections]] = defaultdict(list)
    truth: defaultdict[str, list[GroundTruth]] = defaultdict(list)
    for item in predictions:
        found[item.context_name].append(item)
    for item in ground_truth:
        truth[item.context_name].append(item)
    parts = [evaluate(found[name], truth[name], config).rows for name in segments]
    rows = evaluate([], [], config).rows
    shape = (len(parts), len(rows), len(config.score_cutoffs))

    def stack(values: list[list[np.ndarray]], kind: type[np.generic]) -> np.ndarray:
        return np.array(values, kind).reshape(shape)

    return SegmentCounts(
        segments=tuple(segments),
        rows=tuple((row.shard.object_type, row.level) for row in rows),
        true_positives=stack([[row.curve.true_positives for row in part] for part in parts], np.int64),
        false_positives=stack([[row.curve.false_positives for row in part] for part in parts], np.int64),
        false_negatives=stack([[row.curve.false_negatives for row in part] for part in parts], np.int64),
        heading=stack([[_heading_sums(row) for row in part] for part in parts], np.float64),
        ground_truth=np.array([[row.ground_truth for row in part] for part in parts], np.int64).reshape(shape[:2]),
    )


def _heading_sums(row: MetricRow) -> Float64Array:
    """Return float64 [C]; the curve holds the sum divided by the claimed detections, and 1 where nothing is found."""
    curve = row.curve
    claimed = (curve.true_positives + curve.false_positives).astype(np.float64)
    return np.where(curve.true_positives > 0, curve.heading_precision.astype(np.float64) * claimed, 0.0)
