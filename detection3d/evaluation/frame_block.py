"""Some frames in one piece, so that compiled code counts them in one call."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from detection3d.evaluation.breakdowns import Breakdown, ByVelocity
from detection3d.evaluation.counts import Counts, count_frames
from detection3d.evaluation.inputs import FramePair
from detection3d.evaluation.metric_config import MetricConfig, without_denormals
from detection3d.evaluation.overlap import fill_overlaps
from detection3d.types.scene import BoolArray, Float32Array, ObjectType, UInt8Array

Int64Array = npt.NDArray[np.int64]


@dataclass(frozen=True)
class FrameBlock:
    """Detections and objects of F frames, P and G of them.

    Attributes:
        prediction_ends: int64 [F], place after the last detection of each frame.
        prediction_boxes: float32 [P, 7].
        prediction_types: uint8 [P].
        scores: float32 [P].
        in_no_label_zone: bool [P].
        truth_ends: int64 [F].
        truth_boxes: float32 [G, 7].
        truth_types: uint8 [G].
        truth_levels: uint8 [G].
        truth_velocity: float32 [G, 3], NaN where unknown.
    """

    prediction_ends: Int64Array
    prediction_boxes: Float32Array
    prediction_types: UInt8Array
    scores: Float32Array
    in_no_label_zone: BoolArray
    truth_ends: Int64Array
    truth_boxes: Float32Array
    truth_types: UInt8Array
    truth_levels: UInt8Array
    truth_velocity: Float32Array

    @classmethod
    def of(cls, pairs: Sequence[FramePair]) -> "FrameBlock":
        """Put frames together, in their order."""
        detections = [pair.detections for pair in pairs if pair.detections is not None]
        truths = [pair.truth for pair in pairs if pair.truth is not None]
        return cls(
            prediction_ends=_ends([0 if pair.detections is None else len(pair.detections.boxes) for pair in pairs]),
            prediction_boxes=_join([item.boxes for item in detections], (7,), np.float32),
            prediction_types=_join([item.types for item in detections], (), np.uint8),
            scores=without_denormals(_join([item.scores for item in detections], (), np.float32)),
            in_no_label_zone=_join([item.overlaps_no_label_zone for item in detections], (), np.bool_),
            truth_ends=_ends([0 if pair.truth is None else len(pair.truth.boxes) for pair in pairs]),
            truth_boxes=_join([item.boxes for item in truths], (7,), np.float32),
            truth_types=_join([item.types for item in truths], (), np.uint8),
            truth_levels=_join([item.levels for item in truths], (), np.uint8),
            truth_velocity=_join(
                [np.full((len(item), 3), np.nan) if item.velocity is None else item.velocity for item in truths],
                (3,),
                np.float32,
            ),
        )

    def count(self, config: MetricConfig, score_cutoffs: Float32Array) -> list[Counts]:
        """Count for every breakdown of the configuration."""
        # UNKNOWN, which has a place in the breakdowns by no type alone, never matches: the official program refuses it.
        thresholds = np.array(config.iou_thresholds, np.float32)
        thresholds[ObjectType.UNKNOWN] = np.inf
        overlaps = self._overlaps()
        result = []
        for split in config.breakdowns:
            shards = len(split.shards)
            parts = shards_in_pool(split)
            counts = Counts.zeros(len(self.prediction_ends), shards, len(score_cutoffs))
            count_frames(
                overlaps,
                self.prediction_ends,
                self.prediction_boxes[:, 6].astype(np.float64),
                self.scores,
                self.in_no_label_zone,
                thresholds[self.prediction_types],
                self.prediction_pools(split),
                self.truth_ends,
                self.truth_boxes[:, 6].astype(np.float64),
                self.truth_levels,
                self.truth_shards(split),
                parts,
                score_cutoffs,
                np.float32(config.min_heading_accuracy),
                counts.true_positives,
                counts.false_positives,
                counts.missed,
                counts.heading_accuracy,
            )
            result.append(counts)
        return result

    def prediction_pools(self, split: Breakdown) -> Int64Array:
        """Return which objects each detection may match, int64 [P]: those of this pool of shards; -1 for none."""
        if isinstance(split, ByVelocity):
            return self.prediction_types.astype(np.int64) - 1
        nowhere = np.zeros((len(self.prediction_types), 3), np.float32)
        return split.assign(self.prediction_boxes, self.prediction_types, nowhere)

    def truth_shards(self, split: Breakdown) -> Int64Array:
        """Return the shard of each object, int64 [G], -1 for none."""
        return split.assign(self.truth_boxes, self.truth_types, self.truth_velocity)

    def _overlaps(self) -> Float32Array:
        """Return the overlaps of each frame's detections and objects, frame after frame, row by row."""
        heights = np.diff(self.prediction_ends, prepend=0)
        widths = np.diff(self.truth_ends, prepend=0)
        overlaps = np.empty(int(heights @ widths), np.float32)
        fill_overlaps(
            self.prediction_ends,
            self.prediction_boxes.astype(np.float64),
            self.prediction_types,
            self.truth_ends,
            self.truth_boxes.astype(np.float64),
            self.truth_types,
            overlaps,
        )
        return overlaps


def shards_in_pool(split: Breakdown) -> int:
    """Return how many shards share their detections: more than one where objects alone are split."""
    return len(split.shards) // (len(ObjectType) - 1) if isinstance(split, ByVelocity) else 1


def _ends(lengths: Sequence[int]) -> Int64Array:
    return np.cumsum(np.array(lengths, np.int64))


def _join(columns: Sequence[np.ndarray], shape: tuple[int, ...], dtype: npt.DTypeLike) -> np.ndarray:
    if not columns:
        return np.zeros((0, *shape), dtype)
    return np.concatenate(columns).astype(dtype, copy=False)
