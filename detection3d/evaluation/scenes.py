"""Which detections of one frame are right, for people to look at.

The metrics match at a hundred score cutoffs; a picture needs one. It shows the detections above one score, matched by
the metrics' own matcher, and objects of every difficulty level.
"""

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from detection3d.evaluation.breakdowns import EVALUATED_TYPES
from detection3d.evaluation.ground_truth import GroundTruth, no_ground_truth, prepare_ground_truth
from detection3d.evaluation.matching import match_subset
from detection3d.evaluation.metrics import MetricConfig, Metrics, type_overlaps
from detection3d.evaluation.metrics_json import MEAN_TYPES
from detection3d.types.scene import BoolArray, Boxes, Detections, Float32Array, Frame, ObjectType

DEFAULT_CUTOFF = 0.3  # where there is no ground truth to choose one by


@dataclass(frozen=True)
class Scene:
    """A frame and what was found in it.

    Attributes:
        frame: the frame; without labels, every detection is drawn as it is.
        detections: those of the same frame.
    """

    frame: Frame
    detections: Detections


@dataclass(frozen=True)
class JudgedScene:
    """A scene's detections above one score, against its ground truth.

    Attributes:
        frame: the frame.
        labelled: whether there is a ground truth to judge by.
        boxes: float32 [D, 7], the detections above the score.
        scores: float32 [D].
        matched: bool [D], the detection found an object.
        excused: bool [D], unmatched in a no-label zone: not counted as false.
        truth: the objects, M of them.
        found: bool [M].
    """

    frame: Frame
    labelled: bool
    boxes: Float32Array
    scores: Float32Array
    matched: BoolArray
    excused: BoolArray
    truth: GroundTruth
    found: BoolArray


def judge_scene(
    scene: Scene, cutoff: float, config: MetricConfig, types: Collection[ObjectType] = EVALUATED_TYPES
) -> JudgedScene:
    """Match the detections of a scene that have at least a score.

    Args:
        scene: the frame and its detections.
        cutoff: the least score.
        config: the metrics' configuration, for the least overlap of a match.
        types: of the objects to judge by; those of other types, which nobody looked for, are left out.

    Returns:
        What is right and what isn't.
    """
    frame, detections = scene.frame, scene.detections
    labelled = frame.labels is not None
    truth = (
        no_ground_truth(*frame.key)
        if frame.labels is None
        else prepare_ground_truth(_of_types(frame.labels, types), *frame.key)
    )
    overlaps = type_overlaps(detections, truth)
    matched = np.zeros(len(detections.boxes), np.bool_)
    found = np.zeros(len(truth), np.bool_)
    shown = detections.scores >= np.float32(cutoff)
    for kind in EVALUATED_TYPES:
        rows = np.flatnonzero(shown & (detections.types == kind))
        columns = np.flatnonzero(truth.types == kind)
        partners = match_subset(overlaps, rows, columns, np.float32(config.iou_thresholds[kind]))
        matched[rows[partners >= 0]] = True
        found[columns[partners[partners >= 0]]] = True
    return JudgedScene(
        frame=frame,
        labelled=labelled,
        boxes=detections.boxes[shown],
        scores=detections.scores[shown],
        matched=matched[shown],
        excused=(detections.overlaps_no_label_zone & ~matched)[shown],
        truth=truth,
        found=found,
    )


def _of_types(labels: Boxes, types: Collection[ObjectType]) -> Boxes:
    return labels.select(np.isin(labels.types, list(types)))


def best_cutoff(metrics: Metrics) -> float:
    """Return the score cutoff with the best F1 over vehicles, pedestrians and cyclists at the hardest level.

    Args:
        metrics: the result of `evaluate`, with the OBJECT_TYPE breakdown.

    Returns:
        The lowest such cutoff; 0.3 where nothing was found.
    """
    rows = [row for row in metrics.rows if row.breakdown == "OBJECT_TYPE" and row.shard.object_type in MEAN_TYPES]
    hardest = max((row.level for row in rows), default=0)
    curves = [row.curve for row in rows if row.level == hardest and row.ground_truth]
    if not curves:
        return DEFAULT_CUTOFF
    found = np.sum([curve.true_positives for curve in curves], axis=0)
    wrong = np.sum([curve.false_positives + curve.false_negatives for curve in curves], axis=0)
    if not found.any():
        return DEFAULT_CUTOFF
    best = np.argmax(2 * found / np.maximum(2 * found + wrong, 1))
    return float(curves[0].score_cutoffs[best])
