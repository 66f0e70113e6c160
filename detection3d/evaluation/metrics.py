"""Waymo's 3D detection metrics: AP and APH by breakdown and difficulty level, equal to the official ones to the bit.

Source: metrics/*.cc of the Waymo Open Dataset with the configuration of tools/compute_detection_metrics_main.cc. What
belongs to the caller there is done by `prepare_ground_truth` and `overlaps_no_label_zone`.
"""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import reduce
from itertools import pairwise

import numpy as np

from detection3d.errors import UserError
from detection3d.evaluation.average_precision import PrecisionRecallCurve, average_precision, precision_recall_curve
from detection3d.evaluation.breakdowns import Breakdown, ByObjectType, ByRange, Shard
from detection3d.evaluation.counts import Counts, count_frame, no_counts
from detection3d.evaluation.ground_truth import GroundTruth, no_ground_truth
from detection3d.evaluation.inputs import FramePair, no_detections, pair_frames
from detection3d.geometry.host.iou import iou_3d_matrix
from detection3d.types.scene import Detections, Float32Array, ObjectType

_FRAMES_PER_ROUND = 512  # bounds the memory for counts that wait to be summed


def _official_cutoffs() -> tuple[float, ...]:
    return tuple(index * 0.01 for index in range(101))


@dataclass(frozen=True)
class MetricConfig:
    """What the official metrics let one choose; the defaults are the official ones.

    Attributes:
        breakdowns: how to split the metrics.
        levels: difficulty levels, ascending.
        iou_thresholds: least 3D IoU of a match for UNKNOWN, VEHICLE, PEDESTRIAN, SIGN and CYCLIST.
        score_cutoffs: ascending.
        recall_step: see `average_precision`.

    Raises:
        UserError: levels or cutoffs are missing or not ascending, or there aren't five thresholds.
    """

    breakdowns: tuple[Breakdown, ...] = (ByObjectType(), ByRange())
    levels: tuple[int, ...] = (1, 2)
    iou_thresholds: tuple[float, ...] = (0.0, 0.7, 0.5, 0.5, 0.5)
    score_cutoffs: tuple[float, ...] = field(default_factory=_official_cutoffs)
    recall_step: float = 0.05

    def __post_init__(self) -> None:
        for name, values in (("levels", self.levels), ("score_cutoffs", self.score_cutoffs)):
            if not values or any(later <= earlier for earlier, later in pairwise(values)):
                raise UserError(f"{name} of the metrics must be ascending and not empty, got {values}")
        if len(self.iou_thresholds) != len(ObjectType):
            raise UserError(f"iou_thresholds needs one for each of the {len(ObjectType)} types: {self.iou_thresholds}")


@dataclass(frozen=True)
class MetricRow:
    """The metric of one shard at one difficulty level.

    The counts are those at the lowest score cutoff, with every detection taking part.

    Attributes:
        name: the official name, such as "OBJECT_TYPE_TYPE_VEHICLE_LEVEL_2".
        breakdown: name of the breakdown, such as "OBJECT_TYPE".
        shard: which part of it.
        level: the difficulty level, 1 or 2; 2 includes the objects of 1.
        ap: float32, average precision.
        aph: float32, likewise with each found object weighted by its heading accuracy.
        ground_truth: number of objects of at most this level.
        predictions: number of detections.
        true_positives: matched detections; objects above the level that were found count too, as they do officially.
        false_positives: unmatched detections outside no-label zones.
        false_negatives: objects of at most this level that weren't found.
        curve: precision and recall at every score cutoff.
    """

    name: str
    breakdown: str
    shard: Shard
    level: int
    ap: np.float32
    aph: np.float32
    ground_truth: int
    predictions: int
    true_positives: int
    false_positives: int
    false_negatives: int
    curve: PrecisionRecallCurve


@dataclass(frozen=True)
class Metrics:
    """The result of an evaluation.

    Attributes:
        rows: breakdown by breakdown, shard by shard, level by level, in the official order.
        frames: number of frames that have detections, ground truth or both on record.
    """

    rows: tuple[MetricRow, ...]
    frames: int

    def row(self, name: str) -> MetricRow:
        """Return the row with an official name; KeyError where there is none."""
        for row in self.rows:
            if row.name == name:
                return row
        raise KeyError(name)


def evaluate(
    predictions: Sequence[Detections],
    ground_truth: Sequence[GroundTruth],
    config: MetricConfig | None = None,
    workers: int | None = None,
) -> Metrics:
    """Measure detections against ground truth.

    Frames are matched by key. One that occurs on one side only counts: its detections are false positives, its objects
    are missed. The order of the frames is irrelevant; that of a frame's boxes decides ties, as it does officially.

    Args:
        predictions: at most one for each frame.
        ground_truth: likewise, from `prepare_ground_truth`.
        config: None takes the official configuration.
        workers: threads; None takes one for each core that the process may use. It doesn't change the result.

    Returns:
        AP and APH of every breakdown.

    Raises:
        UserError: a frame occurs twice on one side, or has numbers that can't be evaluated.
    """
    config = MetricConfig() if config is None else config
    pairs = pair_frames(predictions, ground_truth)
    totals = [
        no_counts(len(split.shards), len(config.levels), len(config.score_cutoffs)) for split in config.breakdowns
    ]
    with ThreadPoolExecutor(workers or len(os.sched_getaffinity(0))) as pool:
        for start in range(0, len(pairs), _FRAMES_PER_ROUND):
            counted = pool.map(lambda pair: _count(pair, config), pairs[start : start + _FRAMES_PER_ROUND])
            # Merged in the order of the keys: float32 sums of heading accuracy depend on it.
            totals = reduce(lambda sums, more: [a.plus(b) for a, b in zip(sums, more, strict=True)], counted, totals)
    rows = [row for split, total in zip(config.breakdowns, totals, strict=True) for row in _rows(split, total, config)]
    return Metrics(rows=tuple(rows), frames=len(pairs))


def type_overlaps(detections: Detections, truth: GroundTruth) -> Float32Array:
    """Return the 3D IoU of each detection with each object, float32 [D, M], 0 where the types differ."""
    overlaps = iou_3d_matrix(detections.boxes, truth.boxes).astype(np.float32)
    overlaps[detections.types[:, None] != truth.types[None, :]] = 0
    return overlaps


def _count(pair: FramePair, config: MetricConfig) -> list[Counts]:
    """Count one frame for every breakdown."""
    detections = no_detections(*pair.key) if pair.detections is None else pair.detections
    truth = no_ground_truth(*pair.key) if pair.truth is None else pair.truth
    overlaps = type_overlaps(detections, truth)
    cutoffs = np.array(config.score_cutoffs, np.float32)
    levels = np.array(config.levels, np.int64)
    result = []
    for split in config.breakdowns:
        shards = split.shards
        counts = no_counts(len(shards), len(levels), len(cutoffs))
        prediction_shards = split.assign(detections.boxes, detections.types)
        truth_shards = split.assign(truth.boxes, truth.types)
        count_frame(
            overlaps,
            detections.boxes[:, 6].astype(np.float64),
            detections.scores.astype(np.float32),
            detections.overlaps_no_label_zone.astype(np.bool_),
            prediction_shards,
            truth.boxes[:, 6].astype(np.float64),
            truth.levels.astype(np.uint8),
            truth_shards,
            np.array([config.iou_thresholds[shard.object_type] for shard in shards], np.float32),
            cutoffs,
            levels,
            counts.true_positives,
            counts.false_positives,
            counts.false_negatives,
            counts.heading_accuracy,
        )
        for index, level in enumerate(config.levels):
            in_level = truth_shards[(truth.levels <= level) & (truth_shards >= 0)]
            counts.ground_truth[:, index] = np.bincount(in_level, minlength=len(shards))
        counts.predictions[:] = np.bincount(prediction_shards[prediction_shards >= 0], minlength=len(shards))
        result.append(counts)
    return result


def _rows(split: Breakdown, total: Counts, config: MetricConfig) -> list[MetricRow]:
    rows = []
    for s, shard in enumerate(split.shards):
        for k, level in enumerate(config.levels):
            curve = precision_recall_curve(
                np.array(config.score_cutoffs, np.float32),
                total.true_positives[s],
                total.false_positives[s],
                total.false_negatives[s, k],
                total.heading_accuracy[s],
            )
            rows.append(
                MetricRow(
                    name=f"{shard.name}_LEVEL_{level}",
                    breakdown=split.name,
                    shard=shard,
                    level=level,
                    ap=average_precision(curve.precision, curve.recall, config.recall_step),
                    aph=average_precision(curve.heading_precision, curve.recall, config.recall_step),
                    ground_truth=int(total.ground_truth[s, k]),
                    predictions=int(total.predictions[s]),
                    true_positives=int(curve.true_positives[0]),
                    false_positives=int(curve.false_positives[0]),
                    false_negatives=int(curve.false_negatives[0]),
                    curve=curve,
                )
            )
    return rows
