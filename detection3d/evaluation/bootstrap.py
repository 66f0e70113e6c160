"""Intervals for AP and APH by resampling segments: the percentile bootstrap of Efron and Tibshirani (1993, chapter 13).

Several detectors are evaluated on the same resamples, so what makes a segment hard for all of them cancels in their
difference.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from detection3d.compiled_code import numba
from detection3d.evaluation.segment_counts import SegmentCounts
from detection3d.types.scene import Float32Array, Float64Array

Int64Array = npt.NDArray[np.int64]
_Scalar = Any  # a float32; numpy's own types don't tell an element from an array here

RESAMPLES = 1000
SEED = 0
COVERAGE = 0.95
FEWEST_SEGMENTS = 10
"""With fewer, resamples hardly differ from one another, and intervals come out far too narrow."""


@dataclass(frozen=True)
class ResampledMetrics:
    """AP and APH of B resamples in R rows; NaN where a resample holds no object of the row.

    Attributes:
        ap: float64 [B, R].
        aph: float64 [B, R].
    """

    ap: Float64Array
    aph: Float64Array


def resample_segments(segments: int, resamples: int = RESAMPLES, seed: int = SEED) -> Int64Array:
    """Draw segments with replacement, as many as there are.

    Returns:
        int64 [B, S]: how often each segment is in each resample. The draws depend on the arguments alone.
    """
    if segments == 0:
        return np.zeros((resamples, 0), np.int64)
    return np.random.default_rng(seed).multinomial(segments, np.full(segments, 1 / segments), size=resamples)


def resampled_metrics(counts: SegmentCounts, weights: Int64Array, recall_step: float = 0.05) -> ResampledMetrics:
    """Compute the metrics of weighted sums of segments.

    Args:
        counts: of each segment.
        weights: int64 [B, S], from `resample_segments`; all ones give the metrics of the whole.
        recall_step: see `average_precision`.
    """
    segments, rows, cutoffs = counts.true_positives.shape

    def total(values: np.ndarray) -> Float64Array:
        flat = values.reshape(segments, rows * cutoffs).astype(np.float64)  # exact: counts stay far below 2^53
        return (weights.astype(np.float64) @ flat).reshape(len(weights), rows, cutoffs)

    ap, aph = _average_precisions(
        total(counts.true_positives),
        total(counts.false_positives),
        total(counts.false_negatives),
        total(counts.heading),
        np.float32(recall_step),
    )
    empty = weights @ counts.ground_truth == 0
    ap[empty] = np.nan
    aph[empty] = np.nan
    return ResampledMetrics(ap, aph)


def interval(values: Float64Array, coverage: float = COVERAGE) -> tuple[float, float] | None:
    """Return the quantiles that hold the middle of the resamples; None where no resample has a value.

    Args:
        values: float64 [B]; NaN values, of resamples without any object, are left out.
        coverage: share of the resamples inside.
    """
    values = values[np.isfinite(values)]
    if len(values) == 0:
        return None
    low, high = np.quantile(values, [(1 - coverage) / 2, (1 + coverage) / 2])
    return float(low), float(high)


@numba.njit(cache=True)
def _average_precisions(
    found: Float64Array, false: Float64Array, missed: Float64Array, heading: Float64Array, step: _Scalar
) -> tuple[Float64Array, Float64Array]:
    """Return AP and APH, float64 [B, R], from sums [B, R, C]; the arithmetic of `average_precision`, compiled."""
    resamples, rows, cutoffs = found.shape
    ap = np.zeros((resamples, rows))
    aph = np.zeros((resamples, rows))
    precision = np.zeros(cutoffs, np.float32)
    heading_precision = np.zeros(cutoffs, np.float32)
    recall = np.zeros(cutoffs, np.float32)
    for b in range(resamples):
        for r in range(rows):
            for c in range(cutoffs):
                claimed = np.float32(found[b, r, c] + false[b, r, c])
                wanted = np.float32(found[b, r, c] + missed[b, r, c])
                matched = np.float32(found[b, r, c])
                recall[c] = matched / wanted if wanted > 0 else np.float32(0)
                if recall[c] == 0:
                    precision[c] = np.float32(1)
                    heading_precision[c] = np.float32(1)
                else:
                    precision[c] = matched / claimed
                    heading_precision[c] = np.float32(heading[b, r, c]) / claimed
            order = np.argsort(-recall, kind="mergesort")
            ap[b, r] = _area(precision, recall, order, step)
            aph[b, r] = _area(heading_precision, recall, order, step)
    return ap, aph


@numba.njit(cache=True)
def _area(precision: Float32Array, recall: Float32Array, order: Int64Array, step: _Scalar) -> float:
    """Walk the points from the highest recall down; `order` holds them so."""
    tolerance = np.float32(1e-6)
    area: _Scalar = np.float32(0)
    last: _Scalar = np.float32(0)
    envelope: _Scalar = np.float32(0)
    started = False
    k = 0
    while k < len(order) and recall[order[k]] > 0:
        here = recall[order[k]]
        best: _Scalar = np.float32(0)
        while k < len(order) and recall[order[k]] == here:
            best = max(best, precision[order[k]])
            k += 1
        if started:
            area, last = _bridge(area, last, here, envelope, step, tolerance)
            raised = max(envelope, best)
            area = _trapezoid(area, last, here, envelope, raised)
            envelope = raised
        else:
            envelope = best
            started = True
        last = here
    if started:
        # Level to recall 0: the precision of 1 there is not a measurement.
        area, last = _bridge(area, last, np.float32(0), envelope, step, tolerance)
        area = _trapezoid(area, last, np.float32(0), envelope, envelope)
    return float(area)


@numba.njit(cache=True)
def _bridge(
    area: _Scalar,
    last: _Scalar,
    until: _Scalar,
    envelope: _Scalar,
    step: _Scalar,
    tolerance: _Scalar,
) -> tuple[_Scalar, _Scalar]:
    """Fill a gap with points of the precision known to be reachable; return the area and where the gap ends."""
    while last - until > step + tolerance:
        following = np.float32(last - step)
        area = _trapezoid(area, last, following, envelope, envelope)
        last = following
    return area, last


@numba.njit(cache=True)
def _trapezoid(area: _Scalar, r0: _Scalar, r1: _Scalar, p0: _Scalar, p1: _Scalar) -> _Scalar:
    width = np.float32(r0 - r1)
    height = np.float32(p0 + p1)
    return np.float32(np.float64(area) + 0.5 * np.float64(width) * np.float64(height))
