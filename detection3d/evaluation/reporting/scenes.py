"""Which detections of one frame are right, for people to look at.

The metrics match at a hundred score cutoffs; a picture needs one. It shows the detections above one score, matched by
the metrics' own matcher, and objects of every difficulty level.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np

from detection3d.evaluation.breakdowns import EVALUATED_TYPES
from detection3d.evaluation.frame_matching import match_frame
from detection3d.evaluation.ground_truth import GroundTruth, no_ground_truth, prepare_ground_truth
from detection3d.evaluation.inputs import no_detections
from detection3d.evaluation.metrics import MetricConfig, type_overlaps
from detection3d.evaluation.operating_point import DEFAULT_CUTOFF, best_cutoff
from detection3d.types.scene import BoolArray, Detections, Float32Array, Frame, ObjectType

__all__ = ["DEFAULT_CUTOFF", "JudgedScene", "Scene", "best_cutoff", "judge_scene", "scene_of_frame", "scenes_of_files"]


@dataclass(frozen=True)
class Scene:
    """A frame and what was found in it.

    Attributes:
        detections: the frame's.
        truth: its objects; None where there is no ground truth: then every detection is drawn as it is.
        points: float32 [N, 3 or more], vehicle frame; None where only files of boxes are at hand.
        circumstances: time of day, weather, place; empty where unknown.
    """

    detections: Detections
    truth: GroundTruth | None
    points: Float32Array | None = None
    circumstances: str = ""


@dataclass(frozen=True)
class JudgedScene:
    """A scene's detections above one score, against its ground truth.

    Attributes:
        scene: what was judged.
        boxes: float32 [D, 7], the detections above the score.
        scores: float32 [D].
        matched: bool [D], the detection found an object.
        excused: bool [D], unmatched in a no-label zone: not counted as false.
        truth: the objects, M of them.
        found: bool [M].
    """

    scene: Scene
    boxes: Float32Array
    scores: Float32Array
    matched: BoolArray
    excused: BoolArray
    truth: GroundTruth
    found: BoolArray

    @property
    def labelled(self) -> bool:
        """Whether there is a ground truth to judge by."""
        return self.scene.truth is not None

    @property
    def points(self) -> Float32Array:
        """The scene's points, [N, 3 or more]; none where they aren't at hand."""
        return np.zeros((0, 3), np.float32) if self.scene.points is None else self.scene.points


def scene_of_frame(frame: Frame, detections: Detections) -> Scene:
    """Return a scene with the points and the prepared labels of a frame; the detections are those of the same frame."""
    truth = None if frame.labels is None else prepare_ground_truth(frame.labels, *frame.key)
    extra = ", ".join(filter(None, (frame.time_of_day, frame.weather, frame.location)))
    return Scene(detections, truth, frame.points, extra)


def scenes_of_files(
    keys: Sequence[tuple[str, int]], predictions: Sequence[Detections], ground_truth: Sequence[GroundTruth]
) -> list[Scene]:
    """Return scenes without points, from what the metrics were computed from.

    Args:
        keys: the frames to show, such as `Analysis.shown`.
        predictions: the detections of all frames.
        ground_truth: likewise. Frames that it doesn't hold are shown as the metrics see them, without objects; where
            it holds none at all, there is nothing to judge by.
    """
    detections = {item.key: item for item in predictions}
    truths = {item.key: item for item in ground_truth}
    return [
        Scene(
            detections=detections[key] if key in detections else no_detections(*key),
            truth=(truths[key] if key in truths else no_ground_truth(*key)) if ground_truth else None,
        )
        for key in keys
    ]


def judge_scene(
    scene: Scene, cutoff: float, config: MetricConfig, types: Collection[ObjectType] = EVALUATED_TYPES
) -> JudgedScene:
    """Match the detections of a scene that have at least a score.

    Boxes that aren't finite have no place in a picture and are left out.

    Args:
        scene: the frame and its detections.
        cutoff: the least score.
        config: the metrics' configuration, for the least overlap of a match.
        types: of the objects to judge by; those of other types, which nobody looked for, are left out.

    Returns:
        What is right and what isn't.
    """
    detections = scene.detections
    truth = no_ground_truth(*detections.key) if scene.truth is None else _of_types(scene.truth, types)
    partners = match_frame(detections, truth, type_overlaps(detections, truth), config, cutoff)
    matched = partners >= 0
    found = np.zeros(len(truth), np.bool_)
    found[partners[matched]] = True
    shown = (detections.scores >= np.float32(cutoff)) & (detections.types != ObjectType.UNKNOWN)
    shown &= np.isfinite(detections.boxes).all(axis=1)
    return JudgedScene(
        scene=scene,
        boxes=detections.boxes[shown],
        scores=detections.scores[shown],
        matched=matched[shown],
        excused=(detections.overlaps_no_label_zone & ~matched)[shown],
        truth=truth,
        found=found,
    )


def _of_types(truth: GroundTruth, types: Collection[ObjectType]) -> GroundTruth:
    rows = np.isin(truth.types, list(types)) & np.isfinite(truth.boxes).all(axis=1)
    return replace(
        truth,
        boxes=truth.boxes[rows],
        types=truth.types[rows],
        levels=truth.levels[rows],
        num_points=truth.num_points[rows],
        velocity=None if truth.velocity is None else truth.velocity[rows],
    )
