"""From counts at each score cutoff to a precision-recall curve and the area under it.

The arithmetic is in float32, with the one product in float64, operation by operation as in `ToDetectionMetrics`
(metrics/detection_metrics.cc) and `ComputeMeanAveragePrecision` (metrics/metrics_utils.cc) of the Waymo Open Dataset:
the results are meant to be equal to the last bit.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from detection3d.types.scene import Float32Array

Int64Array = npt.NDArray[np.int64]

_RECALL_TOLERANCE = np.float32(1e-6)


@dataclass(frozen=True)
class PrecisionRecallCurve:
    """What the detector achieves at each score cutoff, C of them, in ascending order.

    Attributes:
        score_cutoffs: float32 [C]; detections with at least this score take part.
        true_positives: int64 [C], matched detections.
        false_positives: int64 [C].
        false_negatives: int64 [C].
        precision: float32 [C]; 1 where the recall is 0.
        heading_precision: float32 [C], likewise, with every matched detection weighted by its heading accuracy.
        recall: float32 [C].
    """

    score_cutoffs: Float32Array
    true_positives: Int64Array
    false_positives: Int64Array
    false_negatives: Int64Array
    precision: Float32Array
    heading_precision: Float32Array
    recall: Float32Array


def precision_recall_curve(
    score_cutoffs: Float32Array,
    true_positives: Int64Array,
    false_positives: Int64Array,
    false_negatives: Int64Array,
    heading_accuracy_sum: Float32Array,
    min_precision: float = 0.0,
) -> PrecisionRecallCurve:
    """Turn counts into precision and recall.

    Args:
        score_cutoffs: float32 [C].
        true_positives: int64 [C].
        false_positives: int64 [C].
        false_negatives: int64 [C].
        heading_accuracy_sum: float32 [C], sum of the heading accuracies of the true positives.
        min_precision: precision below it counts as 0.

    Returns:
        The curve; precision is 0 where no detection counts, then 1 wherever the recall is 0.
    """
    found = true_positives.astype(np.float32)
    claimed = true_positives + false_positives
    wanted = true_positives + false_negatives
    precision = _quotient(found, claimed)
    heading_precision = _quotient(heading_accuracy_sum, claimed)
    for values in (precision, heading_precision):
        values[values < np.float32(min_precision)] = 0
    recall = _quotient(found, wanted)
    nothing_found = recall == 0
    precision[nothing_found] = 1
    heading_precision[nothing_found] = 1
    return PrecisionRecallCurve(
        score_cutoffs=score_cutoffs,
        true_positives=true_positives,
        false_positives=false_positives,
        false_negatives=false_negatives,
        precision=precision,
        heading_precision=heading_precision,
        recall=recall,
    )


def average_precision(precision: Float32Array, recall: Float32Array, recall_step: float = 0.05) -> np.float32:
    """Return the area under the envelope of a precision-recall curve, by the trapezoidal rule.

    Recall is not extrapolated beyond the largest one reached. Where neighbouring recalls are further apart than
    `recall_step`, points are put in between that carry the best precision at any higher recall, so that a gap is filled
    with the precision known to be reachable.

    Args:
        precision: float32 [C].
        recall: float32 [C], in any order.
        recall_step: the widest gap that is bridged by a straight line.

    Returns:
        The area, in [0, 1] but for rounding.
    """
    best = {np.float32(0): np.float32(1)}
    for p, r in zip(precision.astype(np.float32), recall.astype(np.float32), strict=True):
        best[r] = max(best.get(r, np.float32(0)), p)

    step = np.float32(recall_step)
    points: list[tuple[np.float32, np.float32]] = []  # (recall, precision), recall descending
    last = np.float32(0)
    envelope = np.float32(0)
    for r in sorted(best, reverse=True):
        while last - r > step + _RECALL_TOLERANCE:
            last -= step
            points.append((last, envelope))
        envelope = max(envelope, best[r])
        points.append((r, envelope))
        last = r
    if len(points) >= 2:
        # The precision of 1 at recall 0 is not a measurement: the curve goes on level from the last real point.
        points[-1] = (points[-1][0], points[-2][1])

    area = np.float32(0)
    for (r0, p0), (r1, p1) in pairwise(points):
        area = np.float32(np.float64(area) + 0.5 * np.float64(r0 - r1) * np.float64(p0 + p1))
    return area


def _quotient(numerator: Float32Array, denominator: Int64Array) -> Float32Array:
    """Divide in float32; 0 where the denominator is."""
    result = np.zeros(len(numerator), np.float32)
    np.divide(numerator, denominator.astype(np.float32), out=result, where=denominator > 0)
    return result
