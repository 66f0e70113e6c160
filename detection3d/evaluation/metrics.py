"""Waymo's 3D detection metrics: AP and APH by breakdown and difficulty level, equal to the official ones to the bit.

Source: metrics/*.cc of the Waymo Open Dataset with the configuration of tools/compute_detection_metrics_main.cc. What
belongs to the caller there is done by `prepare_ground_truth` and `overlaps_no_label_zone`.
"""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from detection3d.evaluation.average_precision import PrecisionRecallCurve, average_precision, precision_recall_curve
from detection3d.evaluation.breakdowns import Breakdown, Shard
from detection3d.evaluation.counts import HIGHEST_LEVEL, Counts
from detection3d.evaluation.frame_block import FrameBlock, shards_in_pool
from detection3d.evaluation.ground_truth import GroundTruth
from detection3d.evaluation.inputs import FramePair, pair_frames
from detection3d.evaluation.metric_config import MetricConfig
from detection3d.evaluation.overlap import type_overlaps
from detection3d.types.scene import Detections, Float32Array

__all__ = ["MetricConfig", "MetricRow", "Metrics", "evaluate", "type_overlaps"]

_FRAMES_A_BLOCK = 128
_OVERLAPS_A_BLOCK = 4_000_000


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
    blocks = list(_blocks(pairs))
    cutoffs = config.cutoffs_for(np.concatenate([np.zeros(0, np.float32), *(item.scores for item in predictions)]))
    totals = [Counts.zeros(1, len(split.shards), len(cutoffs)) for split in config.breakdowns]
    numbers = [numbers_of_boxes((), split) for split in config.breakdowns]
    with ThreadPoolExecutor(workers or len(os.sched_getaffinity(0))) as pool:
        for counted, boxes in pool.map(lambda block: _count(block, config, cutoffs), blocks):
            # Merged in the order of the keys: float32 sums of heading accuracy depend on it.
            totals = [total.plus(more) for total, more in zip(totals, counted, strict=True)]
            numbers = [total.plus(more) for total, more in zip(numbers, boxes, strict=True)]
    curves = [_curves(counts, config.levels_of(index), cutoffs, config) for index, counts in enumerate(totals)]
    return assemble(config, curves, numbers, len(pairs))


def assemble(
    config: MetricConfig,
    curves: Sequence[Sequence[PrecisionRecallCurve]],
    numbers: Sequence["BoxNumbers"],
    frames: int,
    areas: Sequence[tuple[np.float32, np.float32]] | None = None,
) -> Metrics:
    """Make rows of curves.

    Args:
        config: the configuration.
        curves: for each breakdown, a curve for each shard and, within it, each level.
        numbers: of boxes, for each breakdown.
        frames: how many were evaluated.
        areas: AP and APH of each row; None computes them from the curves.

    Returns:
        The metrics.
    """
    rows: list[MetricRow] = []
    for index, split in enumerate(config.breakdowns):
        levels = config.levels_of(index)
        labels = [(s, shard, level) for s, shard in enumerate(split.shards) for level in levels]
        for (s, shard, level), curve in zip(labels, curves[index], strict=True):
            if areas is None:
                step = config.recall_step
                ap = average_precision(curve.precision, curve.recall, step)
                aph = average_precision(curve.heading_precision, curve.recall, step)
            else:
                ap, aph = areas[len(rows)]
            rows.append(
                MetricRow(
                    name=f"{shard.name}_LEVEL_{level}",
                    breakdown=split.name,
                    shard=shard,
                    level=level,
                    ap=ap,
                    aph=aph,
                    ground_truth=int(numbers[index].ground_truth[s, : level + 1].sum()),
                    predictions=int(numbers[index].predictions[s]),
                    true_positives=int(curve.true_positives[0]),
                    false_positives=int(curve.false_positives[0]),
                    false_negatives=int(curve.false_negatives[0]),
                    curve=curve,
                )
            )
    return Metrics(rows=tuple(rows), frames=frames)


@dataclass(frozen=True)
class BoxNumbers:
    """How many boxes take part in a breakdown of S shards.

    Attributes:
        ground_truth: int64 [S, 3], objects of exactly that level.
        predictions: int64 [S], detections that may match the shard's objects.
    """

    ground_truth: npt.NDArray[np.int64]
    predictions: npt.NDArray[np.int64]

    def plus(self, other: "BoxNumbers") -> "BoxNumbers":
        """Add those of other frames."""
        return BoxNumbers(self.ground_truth + other.ground_truth, self.predictions + other.predictions)


def numbers_of_boxes(pairs: Sequence[FramePair], split: Breakdown) -> BoxNumbers:
    """Count the boxes of each shard."""
    return _numbers(FrameBlock.of(pairs), split)


def _numbers(block: FrameBlock, split: Breakdown) -> BoxNumbers:
    count, levels = len(split.shards), HIGHEST_LEVEL + 1
    shards = block.truth_shards(split)
    present = shards >= 0
    cells = shards[present] * levels + block.truth_levels[present]
    pools = block.prediction_pools(split)
    parts = shards_in_pool(split)
    in_pools = np.bincount(pools[pools >= 0], minlength=count // parts)
    return BoxNumbers(np.bincount(cells, minlength=count * levels).reshape(count, levels), np.repeat(in_pools, parts))


def _blocks(pairs: Sequence[FramePair]) -> Iterator[Sequence[FramePair]]:
    """Cut frames into pieces of bounded size."""
    start = size = 0
    for index, pair in enumerate(pairs):
        if pair.detections is not None and pair.truth is not None:
            size += len(pair.detections.boxes) * len(pair.truth.boxes)
        if index + 1 - start == _FRAMES_A_BLOCK or size > _OVERLAPS_A_BLOCK:
            yield pairs[start : index + 1]
            start, size = index + 1, 0
    if start < len(pairs):
        yield pairs[start:]


def _count(
    pairs: Sequence[FramePair], config: MetricConfig, cutoffs: Float32Array
) -> tuple[list[Counts], list[BoxNumbers]]:
    """Count some frames for every breakdown."""
    block = FrameBlock.of(pairs)
    return block.count(config, cutoffs), [_numbers(block, split) for split in config.breakdowns]


def _curves(
    counts: Counts, levels: Sequence[int], cutoffs: Float32Array, config: MetricConfig
) -> list[PrecisionRecallCurve]:
    return [
        precision_recall_curve(
            cutoffs,
            counts.true_positives[s],
            counts.false_positives[s],
            counts.missed[s, : level + 1].sum(axis=0),
            counts.heading_accuracy[0, s],
            config.min_precision,
        )
        for s in range(len(counts.true_positives))
        for level in levels
    ]
