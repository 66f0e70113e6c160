"""What exactly was evaluated: frames, objects and detections, counted."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from detection3d.evaluation.inputs import FramePair
from detection3d.evaluation.metrics import MetricConfig, Metrics
from detection3d.types.scene import ObjectType
from detection3d.types.segment_names import synthetic_segments

LEVELS = (0, 1, 2)  # 0: no level was given, which counts in every level


@dataclass(frozen=True)
class Coverage:
    """Counts over all frames of an evaluation.

    Attributes:
        segments: number of segments.
        synthetic: how many of them are synthetic.
        frames: number of frames.
        without_objects: frames that have a ground truth without any object.
        only_detections: frames that the ground truth doesn't know.
        only_truth: frames that the detections don't know.
        objects: by type, then level (0 where a box has none), number of objects.
        detections: by type, number of detections.
        in_no_label_zone: of the detections, how many overlap a no-label zone.
        iou_thresholds: by type, the least overlap of a match.
        score_cutoffs: lowest, highest, and number of them; None where nothing was measured.
    """

    segments: int
    synthetic: int
    frames: int
    without_objects: int
    only_detections: int
    only_truth: int
    objects: dict[ObjectType, dict[int, int]] = field(default_factory=dict)
    detections: dict[ObjectType, int] = field(default_factory=dict)
    in_no_label_zone: int = 0
    iou_thresholds: dict[ObjectType, float] = field(default_factory=dict)
    score_cutoffs: tuple[float, float, int] | None = None

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "segments": self.segments,
            "synthetic_segments": self.synthetic,
            "frames": self.frames,
            "frames_without_objects": self.without_objects,
            "frames_only_in_detections": self.only_detections,
            "frames_only_in_ground_truth": self.only_truth,
            "objects": {
                kind.name: {
                    f"LEVEL_{level}" if level else "NO_LEVEL": count for level, count in levels.items() if count
                }
                for kind, levels in self.objects.items()
            },
            "detections": {kind.name: count for kind, count in self.detections.items()},
            "detections_in_no_label_zones": self.in_no_label_zone,
            "iou_thresholds": {kind.name: value for kind, value in self.iou_thresholds.items()},
            "score_cutoffs": None
            if self.score_cutoffs is None
            else dict(zip(("lowest", "highest", "number"), self.score_cutoffs, strict=True)),
        }


def count_coverage(pairs: Sequence[FramePair], metrics: Metrics, config: MetricConfig) -> Coverage:
    """Count what `pair_frames` returned; the metrics are those of the same frames."""
    cutoffs = metrics.rows[0].curve.score_cutoffs if metrics.rows else np.zeros(0, np.float32)
    objects = np.zeros((len(ObjectType), len(LEVELS)), np.int64)
    detections = np.zeros(len(ObjectType), np.int64)
    in_zone = 0
    for pair in pairs:
        if pair.truth is not None:
            np.add.at(objects, (pair.truth.types, pair.truth.levels), 1)
        if pair.detections is not None:
            detections += np.bincount(pair.detections.types, minlength=len(ObjectType))
            in_zone += int(pair.detections.overlaps_no_label_zone.sum())
    names = {pair.key[0] for pair in pairs}
    return Coverage(
        segments=len(names),
        synthetic=synthetic_segments(names),
        frames=len(pairs),
        without_objects=sum(pair.truth is not None and len(pair.truth) == 0 for pair in pairs),
        only_detections=sum(pair.truth is None for pair in pairs),
        only_truth=sum(pair.detections is None for pair in pairs),
        objects={
            kind: dict(zip(LEVELS, objects[kind].tolist(), strict=True)) for kind in _present(objects.sum(axis=1))
        },
        detections={kind: int(detections[kind]) for kind in _present(detections)},
        in_no_label_zone=in_zone,
        iou_thresholds={kind: config.iou_thresholds[kind] for kind in ObjectType if kind != ObjectType.UNKNOWN},
        # With the digits that a person wrote: 0.3, and not what float32 makes of it.
        score_cutoffs=(float(str(cutoffs[0])), float(str(cutoffs[-1])), len(cutoffs)) if len(cutoffs) else None,
    )


def _present(counts: np.ndarray) -> Collection[ObjectType]:
    return [kind for kind in ObjectType if counts[kind]]
