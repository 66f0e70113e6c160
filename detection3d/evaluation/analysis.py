"""What the metrics don't say: errors of the boxes that were found, meaning of the scores, and the frames to look at."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from detection3d.evaluation.breakdowns import EVALUATED_TYPES
from detection3d.evaluation.calibration import Calibration, calibrate
from detection3d.evaluation.coverage import Coverage, count_coverage
from detection3d.evaluation.frame_matching import match_frame
from detection3d.evaluation.ground_truth import GroundTruth, no_ground_truth
from detection3d.evaluation.head_errors import HeadErrors, MatchedBoxes, head_errors_by_type
from detection3d.evaluation.inputs import FramePair, no_detections, pair_frames
from detection3d.evaluation.matching import IndexArray
from detection3d.evaluation.metrics import MetricConfig, Metrics, type_overlaps
from detection3d.evaluation.operating_point import best_cutoff
from detection3d.evaluation.reporting.metrics_table import types_of_interest
from detection3d.types.scene import BoolArray, Detections, Float32Array, ObjectType, UInt8Array

WORST_FRAMES = 4
RANDOM_FRAMES = 4
RANDOM_SEED = 0  # of the frames that are drawn, so that two evaluations of the same data show the same ones

FrameKey = tuple[str, int]


@dataclass(frozen=True)
class FrameCount:
    """What became of one frame at the best cutoff.

    Attributes:
        key: `(context_name, timestamp_micros)`.
        missed: objects of any level that weren't found.
        false: detections that found nothing, outside no-label zones.
    """

    key: FrameKey
    missed: int
    false: int

    @property
    def wrong(self) -> int:
        """Misses and false detections together: the larger, the worse."""
        return self.missed + self.false


@dataclass(frozen=True)
class Analysis:
    """What was evaluated, and how the detector does apart from the metrics.

    Attributes:
        coverage: what was evaluated.
        cutoff: the score cutoff with the best F1, at which frames are judged and drawn.
        pairs: detections that found an object, all detections taking part.
        head_errors: their errors, for each type that was found at all.
        calibration: of the scores, for each type that was detected at all; all detections taking part.
        overall_calibration: of all types together.
        worst: frames with the most misses and false detections at the cutoff, ties by segment and time: first the worst
            of each segment, worst first, since neighbours in time look alike; more of a segment where segments are few.
        random: frames drawn with a fixed seed from the others, by segment and time.
    """

    coverage: Coverage
    cutoff: float
    pairs: MatchedBoxes
    head_errors: dict[ObjectType, HeadErrors]
    calibration: dict[ObjectType, Calibration]
    overall_calibration: Calibration
    worst: tuple[FrameCount, ...]
    random: tuple[FrameCount, ...]

    @property
    def shown(self) -> tuple[FrameKey, ...]:
        """The frames to draw, the worst first."""
        return tuple(frame.key for frame in (*self.worst, *self.random))

    def to_json(self) -> dict[str, Any]:
        """Return the sections that `metrics.json` takes from here, as plain values."""
        return {
            "evaluated": self.coverage.to_json(),
            "head_errors": {kind.name: errors.to_json() for kind, errors in self.head_errors.items()},
            "calibration": {
                "ALL": self.overall_calibration.to_json(),
                **{kind.name: found.to_json() for kind, found in self.calibration.items()},
            },
            "frames_shown": {
                "score_cutoff": self.cutoff,
                "worst": [_frame_json(frame) for frame in self.worst],
                "random": [_frame_json(frame) for frame in self.random],
            },
        }


def analyse(
    predictions: Sequence[Detections],
    ground_truth: Sequence[GroundTruth],
    metrics: Metrics,
    config: MetricConfig | None = None,
) -> Analysis:
    """Look at every frame once more.

    Args:
        predictions: as for `evaluate`.
        ground_truth: likewise.
        metrics: what `evaluate` returned for them.
        config: the metrics' configuration; None takes the official one.

    Returns:
        The analysis.
    """
    config = MetricConfig() if config is None else config
    pairs = pair_frames(predictions, ground_truth)
    cutoff, shown = best_cutoff(metrics), types_of_interest(metrics)
    looks = [_look(pair, config, cutoff, shown) for pair in pairs]
    matched = MatchedBoxes(
        detected=_join([look.detected for look in looks], (0, 7), np.float32),
        truth=_join([look.truth for look in looks], (0, 7), np.float32),
        types=_join([look.matched_types for look in looks], (0,), np.uint8),
        overlaps=_join([look.overlaps for look in looks], (0,), np.float32),
    )
    scores = _join([look.scores for look in looks], (0,), np.float32)
    types = _join([look.types for look in looks], (0,), np.uint8)
    right = _join([look.right for look in looks], (0,), np.bool_)
    worst, random = _choose([look.count for look in looks])
    return Analysis(
        coverage=count_coverage(pairs, metrics, config),
        cutoff=cutoff,
        pairs=matched,
        head_errors=head_errors_by_type(matched, EVALUATED_TYPES),
        calibration={
            kind: calibrate(scores[types == kind], right[types == kind])
            for kind in EVALUATED_TYPES
            if (types == kind).any()
        },
        overall_calibration=calibrate(scores, right),
        worst=worst,
        random=random,
    )


@dataclass(frozen=True)
class _Look:
    """One frame: the pairs of all detections, the judged detections, and the counts at the best cutoff."""

    detected: Float32Array
    truth: Float32Array
    matched_types: UInt8Array
    overlaps: Float32Array
    scores: Float32Array
    types: UInt8Array
    right: BoolArray
    count: FrameCount


def _look(pair: FramePair, config: MetricConfig, cutoff: float, shown: frozenset[ObjectType]) -> _Look:
    detections = no_detections(*pair.key) if pair.detections is None else pair.detections
    truth = no_ground_truth(*pair.key) if pair.truth is None else pair.truth
    overlaps = type_overlaps(detections, truth)
    partners = match_frame(detections, truth, overlaps, config)
    rows = np.flatnonzero(partners >= 0)
    evaluated = detections.types != ObjectType.UNKNOWN
    judged = evaluated & ((partners >= 0) | ~detections.overlaps_no_label_zone)
    return _Look(
        detected=detections.boxes[rows],
        truth=truth.boxes[partners[rows]],
        matched_types=detections.types[rows],
        overlaps=overlaps[rows, partners[rows]],
        scores=detections.scores[judged],
        types=detections.types[judged],
        right=partners[judged] >= 0,
        count=_count(detections, truth, match_frame(detections, truth, overlaps, config, cutoff), cutoff, shown),
    )


def _count(
    detections: Detections, truth: GroundTruth, partners: IndexArray, cutoff: float, shown: frozenset[ObjectType]
) -> FrameCount:
    expected = np.isin(truth.types, list(shown))
    expected[partners[partners >= 0]] = False
    claimed = (detections.scores >= np.float32(cutoff)) & (detections.types != ObjectType.UNKNOWN)
    false = claimed & (partners < 0) & ~detections.overlaps_no_label_zone
    return FrameCount(detections.key, int(expected.sum()), int(false.sum()))


def _choose(counts: Sequence[FrameCount]) -> tuple[tuple[FrameCount, ...], tuple[FrameCount, ...]]:
    ranked = [frame for frame in sorted(counts, key=lambda frame: (-frame.wrong, frame.key)) if frame.wrong]
    of_segments: dict[str, FrameCount] = {}
    for frame in ranked:
        of_segments.setdefault(frame.key[0], frame)
    leaders = list(of_segments.values())[:WORST_FRAMES]
    worst = [*leaders, *(frame for frame in ranked if frame not in leaders)][:WORST_FRAMES]
    others = [frame for frame in sorted(counts, key=lambda frame: frame.key) if frame not in worst]
    places = np.random.default_rng(RANDOM_SEED).permutation(len(others))[:RANDOM_FRAMES]
    return tuple(worst), tuple(others[place] for place in sorted(places))


def _join(parts: Sequence[np.ndarray], empty: tuple[int, ...], kind: type[np.generic]) -> np.ndarray:
    return np.concatenate(parts) if parts else np.zeros(empty, kind)


def _frame_json(frame: FrameCount) -> dict[str, Any]:
    return {
        "context_name": frame.key[0],
        "timestamp_micros": frame.key[1],
        "missed": frame.missed,
        "false": frame.false,
    }
