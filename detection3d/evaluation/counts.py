"""True positives, false positives and false negatives of some frames, at every score cutoff.

Follows `ComputeDetectionMeasurementFromMatchingResult` in metrics/detection_metrics.cc of the Waymo Open Dataset.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from detection3d.compiled_code import numba
from detection3d.evaluation.matching import match_rows, weight_of
from detection3d.types.scene import BoolArray, Float32Array, Float64Array, UInt8Array

Int64Array = npt.NDArray[np.int64]
Count = int | np.int64

HIGHEST_LEVEL = 2
_SOME_OVERLAP = 0.01  # with an object of another shard: the detection isn't false in this one


@dataclass(frozen=True)
class Counts:
    """Counts over some frames, F of them: S shards, C score cutoffs, 3 difficulty levels (0 where there is none).

    Attributes:
        true_positives: int64 [S, C]: matched detections, whatever the level of their object.
        false_positives: int64 [S, C].
        missed: int64 [S, 3, C], objects of exactly that level without a match.
        heading_accuracy: float32 [F, S, C], sum over the true positives of each frame.
    """

    true_positives: Int64Array
    false_positives: Int64Array
    missed: Int64Array
    heading_accuracy: Float32Array

    @classmethod
    def zeros(cls, frames: int, shards: int, cutoffs: int) -> "Counts":
        """Return counts to be filled in."""
        return cls(
            true_positives=np.zeros((shards, cutoffs), np.int64),
            false_positives=np.zeros((shards, cutoffs), np.int64),
            missed=np.zeros((shards, HIGHEST_LEVEL + 1, cutoffs), np.int64),
            heading_accuracy=np.zeros((frames, shards, cutoffs), np.float32),
        )

    def plus(self, other: "Counts") -> "Counts":
        """Add the counts of more frames, which come after these: heading accuracy is a float32 sum, frame by frame."""
        assert len(self.heading_accuracy) == 1, "the counts so far are summed over their frames"
        heading = self.heading_accuracy.copy()
        for frame in other.heading_accuracy:
            heading[0] += frame
        return Counts(
            true_positives=self.true_positives + other.true_positives,
            false_positives=self.false_positives + other.false_positives,
            missed=self.missed + other.missed,
            heading_accuracy=heading,
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
def count_frames(
    overlaps: Float32Array,
    prediction_ends: Int64Array,
    prediction_headings: Float64Array,
    scores: Float32Array,
    in_no_label_zone: BoolArray,
    thresholds: Float32Array,
    prediction_pools: Int64Array,
    truth_ends: Int64Array,
    truth_headings: Float64Array,
    truth_levels: UInt8Array,
    truth_shards: Int64Array,
    parts: int,
    score_cutoffs: Float32Array,
    min_heading_accuracy: np.float32,
    true_positives: Int64Array,
    false_positives: Int64Array,
    missed: Int64Array,
    heading_accuracy_sums: Float32Array,
) -> None:
    """Count some frames for all shards of a breakdown: F frames with P detections and G objects in all.

    The shards are in pools of `parts` each. Detections match the objects of their pool; a match counts in the object's
    shard. Where parts is 1, pools and shards are the same.

    Args:
        overlaps: float32, 3D IoU of each detection with each object of its frame, frame after frame, row by row.
        prediction_ends: int64 [F], place after the last detection of each frame.
        prediction_headings: float64 [P].
        scores: float32 [P].
        in_no_label_zone: bool [P]; an unmatched detection there is no false positive.
        thresholds: float32 [P], least overlap of a match.
        prediction_pools: int64 [P], -1 for none.
        truth_ends: int64 [F].
        truth_headings: float64 [G].
        truth_levels: uint8 [G], 0 to 2.
        truth_shards: int64 [G], -1 for none.
        parts: shards in a pool.
        score_cutoffs: float32 [C].
        min_heading_accuracy: a match must have more to count as found.
        true_positives: int64 [S, C]; added to.
        false_positives: int64 [S, C]; added to.
        missed: int64 [S, 3, C]; added to.
        heading_accuracy_sums: float32 [F, S, C], zeros; filled in, summed in the order of the detections.
    """
    rows = np.empty(len(scores), np.int64)
    columns = np.empty(len(truth_levels), np.int64)
    # Typed, as are other counters: a function is compiled once more for an argument that begins as a plain 0.
    start = np.int64(0)
    first_row = np.int64(0)
    first_column = np.int64(0)
    for frame in range(len(prediction_ends)):
        last_row, last_column = prediction_ends[frame], truth_ends[frame]
        for pool in range(len(true_positives) // parts):
            height = _members(prediction_pools, first_row, last_row, pool, np.int64(1), rows)
            width = _members(truth_shards, first_column, last_column, pool, parts, columns)
            if height == 0 and width == 0:
                continue
            of_pool = np.empty((height, width), np.float32)
            for i in range(height):
                place = start + (rows[i] - first_row) * (last_column - first_column) - first_column
                for j in range(width):
                    of_pool[i, j] = overlaps[place + columns[j]]
            _count_pool(
                of_pool,
                rows,
                columns,
                prediction_headings,
                scores,
                in_no_label_zone,
                thresholds,
                truth_headings,
                truth_levels,
                truth_shards,
                pool * parts,
                parts,
                score_cutoffs,
                min_heading_accuracy,
                true_positives,
                false_positives,
                missed,
                heading_accuracy_sums,
                frame,
            )
        start += (last_row - first_row) * (last_column - first_column)
        first_row, first_column = last_row, last_column


@numba.njit(cache=True, nogil=True)
def _members(groups: Int64Array, first: Count, last: Count, group: Count, width: Count, members: Int64Array) -> Count:
    """Find those between first and last whose group // width is the group; returns how many, -1 being in none."""
    count = 0
    for index in range(first, last):
        if groups[index] >= 0 and groups[index] // width == group:
            members[count] = index
            count += 1
    return count


@numba.njit(cache=True, nogil=True)
def _count_pool(
    overlaps: Float32Array,
    rows: Int64Array,
    columns: Int64Array,
    prediction_headings: Float64Array,
    scores: Float32Array,
    in_no_label_zone: BoolArray,
    thresholds: Float32Array,
    truth_headings: Float64Array,
    truth_levels: UInt8Array,
    truth_shards: Int64Array,
    first_shard: int,
    parts: int,
    score_cutoffs: Float32Array,
    min_heading_accuracy: np.float32,
    true_positives: Int64Array,
    false_positives: Int64Array,
    missed: Int64Array,
    heading_sums: Float32Array,
    frame: int,
) -> None:
    """Count those detections and objects of one frame that may match each other: their [p, g] overlaps.

    At each cutoff the detections that are left are matched again from scratch. Scores decide which detections take
    part, and nothing else. `rows` and `columns` hold the places of the p detections and g objects; all else is as in
    `count_frames`.
    """
    height, width = overlaps.shape
    allowed = np.empty((height, width), np.bool_)
    weights = np.zeros((height, width), np.int32)
    greatest = np.full(height, -1, np.int64)
    accuracies = np.empty((height, width), np.float32)
    neighbours = np.empty(height, np.int64)  # the shard in which a detection without a match is false; -1 for all
    for i in range(height):
        best = _SOME_OVERLAP
        neighbours[i] = first_shard if parts == 1 else -1
        for j in range(width):
            allowed[i, j] = overlaps[i, j] >= thresholds[rows[i]]
            if allowed[i, j]:
                weights[i, j] = weight_of(overlaps[i, j])
                greatest[i] = max(greatest[i], np.int64(weights[i, j]))
                accuracies[i, j] = heading_accuracy(
                    float(prediction_headings[rows[i]]), float(truth_headings[columns[j]])
                )
            if parts > 1 and np.float64(overlaps[i, j]) >= best:  # of equal ones the last
                best = np.float64(overlaps[i, j])
                neighbours[i] = truth_shards[columns[j]]
    subset = np.empty(height, np.int64)
    partners = np.empty(height, np.int64)
    found = np.empty(width, np.bool_)
    previous_size = -1
    for c in range(len(score_cutoffs)):
        size = np.int64(0)
        for i in range(height):
            if scores[rows[i]] >= score_cutoffs[c]:
                subset[size] = i
                size += 1
        # Subsets of ascending cutoffs are nested, so one of the same size is the same one.
        if size != previous_size:
            match_rows(weights, greatest, allowed, subset, size, partners)
            previous_size = size
            for j in range(width):
                found[j] = False
            for i in range(size):
                if partners[i] >= 0:
                    found[partners[i]] = True
        for i in range(size):
            row = rows[subset[i]]
            if partners[i] >= 0:
                shard = truth_shards[columns[partners[i]]]
                accuracy = accuracies[subset[i], partners[i]]
                if accuracy > min_heading_accuracy:
                    true_positives[shard, c] += 1
                    heading_sums[frame, shard, c] += accuracy
            elif not in_no_label_zone[row]:
                for shard in range(first_shard, first_shard + parts):
                    if neighbours[subset[i]] < 0 or neighbours[subset[i]] == shard:
                        false_positives[shard, c] += 1
        for j in range(width):
            if not found[j]:
                missed[truth_shards[columns[j]], truth_levels[columns[j]], c] += 1
