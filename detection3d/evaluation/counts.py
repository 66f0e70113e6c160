"""True positives, false positives and false negatives of one frame, at every score cutoff.

Follows `ComputeDetectionMeasurementFromMatchingResult` in metrics/detection_metrics.cc of the Waymo Open Dataset.
"""

import math
from dataclasses import dataclass

import numba
import numpy as np
import numpy.typing as npt

from detection3d.evaluation.matching import match_subset
from detection3d.types.scene import BoolArray, Float32Array, Float64Array, UInt8Array

Int64Array = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Counts:
    """Counts over some frames: S shards, C score cutoffs, L difficulty levels.

    Attributes:
        true_positives: int64 [S, C]: matched detections, whatever the level of their object.
        false_positives: int64 [S, C].
        false_negatives: int64 [S, L, C].
        heading_accuracy: float32 [S, C], sum over the true positives.
        ground_truth: int64 [S, L], objects of at most that level.
        predictions: int64 [S].
    """

    true_positives: Int64Array
    false_positives: Int64Array
    false_negatives: Int64Array
    heading_accuracy: Float32Array
    ground_truth: Int64Array
    predictions: Int64Array

    def plus(self, other: "Counts") -> "Counts":
        """Add the counts of more frames. The heading accuracy is a float32 sum, so the order of frames matters."""
        return Counts(
            true_positives=self.true_positives + other.true_positives,
            false_positives=self.false_positives + other.false_positives,
            false_negatives=self.false_negatives + other.false_negatives,
            heading_accuracy=self.heading_accuracy + other.heading_accuracy,
            ground_truth=self.ground_truth + other.ground_truth,
            predictions=self.predictions + other.predictions,
        )


def no_counts(shards: int, levels: int, cutoffs: int) -> Counts:
    """Return the counts of no frames."""
    return Counts(
        true_positives=np.zeros((shards, cutoffs), np.int64),
        false_positives=np.zeros((shards, cutoffs), np.int64),
        false_negatives=np.zeros((shards, levels, cutoffs), np.int64),
        heading_accuracy=np.zeros((shards, cutoffs), np.float32),
        ground_truth=np.zeros((shards, levels), np.int64),
        predictions=np.zeros(shards, np.int64),
    )


@numba.njit(cache=True, nogil=True)
def wrap_heading(heading: float) -> float:
    """Wrap an angle to [-pi, pi) in float64, rounding as the official metric does."""
    period = 2.0 * math.pi
    shifted = heading + math.pi
    rest = shifted - np.trunc(shifted * (1.0 / period)) * period
    if rest < 0.0:
        rest = rest + period
        if rest >= period:
            rest = 0.0
    return rest - math.pi


@numba.njit(cache=True, nogil=True)
def heading_accuracy(prediction: float, truth: float) -> np.float32:
    """Return 1 for equal headings, falling linearly to 0 for opposite ones.

    Args:
        prediction: radians, any number of turns.
        truth: likewise.

    Returns:
        1 - |difference| / pi, the difference in [0, pi]; float32 at the places where the official metric rounds.
    """
    error = np.float32(abs(np.float32(wrap_heading(prediction)) - np.float32(wrap_heading(truth))))
    if error > math.pi:
        error = np.float32(2.0 * math.pi - np.float64(error))
    return np.float32(min(1.0, max(0.0, 1.0 - np.float64(error) / math.pi)))


@numba.njit(cache=True, nogil=True)
def count_frame(
    overlaps: Float32Array,
    prediction_headings: Float64Array,
    scores: Float32Array,
    in_no_label_zone: BoolArray,
    prediction_shards: Int64Array,
    truth_headings: Float64Array,
    truth_levels: UInt8Array,
    truth_shards: Int64Array,
    thresholds: Float32Array,
    score_cutoffs: Float32Array,
    levels: Int64Array,
    true_positives: Int64Array,
    false_positives: Int64Array,
    false_negatives: Int64Array,
    heading_sums: Float32Array,
) -> None:
    """Count one frame for all shards of a breakdown, P detections against G objects.

    At each cutoff the detections that are left are matched again from scratch. Scores decide which detections take
    part, and nothing else.

    Args:
        overlaps: float32 [P, G], 3D IoU.
        prediction_headings: float64 [P].
        scores: float32 [P].
        in_no_label_zone: bool [P]; an unmatched detection there is no false positive.
        prediction_shards: int64 [P], -1 for none.
        truth_headings: float64 [G].
        truth_levels: uint8 [G].
        truth_shards: int64 [G].
        thresholds: float32 [S], least overlap of a match in each shard.
        score_cutoffs: float32 [C].
        levels: int64 [L], the difficulty levels asked for.
        true_positives: int64 [S, C], zeros; filled in.
        false_positives: int64 [S, C], zeros; filled in.
        false_negatives: int64 [S, L, C], zeros; filled in.
        heading_sums: float32 [S, C], zeros; filled in, summed in the order of the detections.
    """
    for shard in range(len(thresholds)):
        members = np.flatnonzero(prediction_shards == shard)
        columns = np.flatnonzero(truth_shards == shard)
        if len(members) == 0 and len(columns) == 0:
            continue
        previous_size = -1
        for c in range(len(score_cutoffs)):
            rows = members[scores[members] >= score_cutoffs[c]]
            if len(rows) == previous_size:
                # Subsets of ascending cutoffs are nested, so one of the same size is the same one.
                true_positives[shard, c] = true_positives[shard, c - 1]
                false_positives[shard, c] = false_positives[shard, c - 1]
                false_negatives[shard, :, c] = false_negatives[shard, :, c - 1]
                heading_sums[shard, c] = heading_sums[shard, c - 1]
                continue
            previous_size = len(rows)
            partners = match_subset(overlaps, rows, columns, thresholds[shard])
            found = np.zeros(len(columns), np.bool_)
            heading_sum = np.float32(0)
            for i in range(len(rows)):
                if partners[i] >= 0:
                    found[partners[i]] = True
                    true_positives[shard, c] += 1
                    truth = columns[partners[i]]
                    heading_sum += heading_accuracy(float(prediction_headings[rows[i]]), float(truth_headings[truth]))
                elif not in_no_label_zone[rows[i]]:
                    false_positives[shard, c] += 1
            heading_sums[shard, c] = heading_sum
            for j in range(len(columns)):
                if not found[j]:
                    for k in range(len(levels)):
                        if truth_levels[columns[j]] <= levels[k]:
                            false_negatives[shard, k, c] += 1
