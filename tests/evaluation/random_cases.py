"""Random inputs of the metrics, made to be awkward: ties, degenerate geometry, values on every border.

It needs numpy and the package alone, so it runs in the evaluation environment as well.
"""

import hashlib
from dataclasses import dataclass

import numpy as np

from detection3d.evaluation.breakdowns import BREAKDOWNS, AllButSign, OneShard
from detection3d.evaluation.ground_truth import GroundTruth, prepare_ground_truth
from detection3d.evaluation.metric_config import MetricConfig
from detection3d.types.scene import Boxes, Detections

KINDS = (
    "ordinary",
    "ties",
    "duplicates",
    "one-sided frames",
    "borders",
    "headings",
    "nested",
    "degenerate sizes",
    "far away",
    "crowd",
    "settings",
    "quantile cutoffs",
    "no boxes",
    "not finite",
)
WITHOUT_UNKNOWN = tuple(split for split in BREAKDOWNS.values() if not isinstance(split, OneShard | AllButSign))


@dataclass(frozen=True)
class Case:
    kind: str
    predictions: tuple[Detections, ...]
    ground_truth: tuple[GroundTruth, ...]
    config: MetricConfig


def random_case(seed: int) -> Case:
    rng = np.random.default_rng(seed)
    kind = KINDS[seed % len(KINDS)]
    frames, objects, found = int(rng.integers(1, 7)), 12, 25
    if kind == "crowd":
        frames, objects, found = 1, int(rng.integers(20, 120)), int(rng.integers(50, 300))
    unknown = bool(rng.random() < 0.3)
    predictions, truths = [], []
    for index in range(frames):
        key = (f"segment-{index % 2}", 1000 + index)
        m, d = int(rng.integers(0, objects + 1)), int(rng.integers(0, found + 1))
        if kind == "one-sided frames":
            m, d = [(m, 0), (0, d), (0, 0), (m, d)][int(rng.integers(4))]
        elif kind == "crowd":
            m, d = objects, found
        elif kind == "no boxes":
            m = d = 0
        boxes = _objects(rng, kind, m)
        types = rng.choice([1, 1, 2, 3, 4] if rng.random() < 0.5 else [1], m).astype(np.uint8)
        if unknown:
            types[rng.random(m) < 0.1] = 0
        detections, kinds = _detections(rng, kind, boxes, types, d)
        if kind == "not finite":
            # The op ends its process on others: NaN of an object or of a detection's z and sides.
            _spoil(rng, detections, (0, 1, 6), (np.nan, np.inf, -np.inf))
            _spoil(rng, detections, (2, 3, 4, 5), (np.inf, -np.inf))
            _spoil(rng, boxes, (0, 1, 3, 4, 5), (np.inf, -np.inf))
        if not unknown:
            kinds = np.maximum(kinds, 1)
        velocity = rng.choice([0, 0.1, 0.2, _beside(0.2, 1), 0.6, 1, 2.4, 3, 8, 10, 15], (m, 3))
        labels = Boxes(
            boxes=boxes,
            types=types,
            ids=tuple(str(k) for k in range(m)),
            difficulty=rng.choice([0, 0, 0, 1, 2], m).astype(np.uint8),
            num_points=rng.choice([0, 1, 5, 6, 100], m, p=[0.1, 0.2, 0.2, 0.2, 0.3]).astype(np.int32),
            velocity=velocity.astype(np.float32),
            acceleration=np.zeros((m, 3), np.float32),
        )
        # A frame without labels isn't on record everywhere.
        if m or rng.random() < 0.5:
            truths.append(prepare_ground_truth(labels, *key))
        if len(detections) or rng.random() < 0.5:
            predictions.append(
                Detections(
                    context_name=key[0],
                    timestamp_micros=key[1],
                    boxes=detections,
                    types=kinds.astype(np.uint8),
                    scores=_scores(rng, kind, len(detections)),
                    overlaps_no_label_zone=rng.random(len(detections)) < rng.choice([0, 0.1, 0.5]),
                )
            )
    return Case(kind, tuple(predictions), tuple(truths), _config(rng, kind, unknown))


def _beside(value: float, towards: float) -> float:
    """The float32 number next to a value."""
    return float(np.nextafter(np.float32(value), np.float32(towards)))


def digest(case: Case) -> str:
    """Tells whether two machines made the same case."""
    content = hashlib.sha256(repr(case.config).encode())
    for item in case.predictions:
        content.update(repr(item.key).encode())
        for values in (item.boxes, item.types, item.scores, item.overlaps_no_label_zone):
            content.update(np.ascontiguousarray(values).tobytes())
    for item in case.ground_truth:
        assert item.velocity is not None
        content.update(repr(item.key).encode())
        for values in (item.boxes, item.types, item.levels, item.velocity):
            content.update(np.ascontiguousarray(values).tobytes())
    return content.hexdigest()


def _objects(rng: np.random.Generator, kind: str, count: int) -> np.ndarray:
    spread = 1.0 if kind == "crowd" else 12.0
    centre = np.column_stack([rng.normal(0, spread, (count, 2)), rng.normal(1, 0.3, count)])
    size = rng.uniform([1.5, 0.8, 1.2], [5, 2.2, 2], (count, 3))
    heading = rng.uniform(-np.pi, np.pi, count)
    if kind in ("ties", "nested") or (kind == "crowd" and rng.random() < 0.5):
        # On a coarse grid, so that overlaps tie and sides lie on each other.
        centre, size = np.round(centre), np.round(size * 2) / 2
        heading = rng.choice([0, np.pi / 2, np.pi / 4, -np.pi], count)
    if kind == "borders":
        limits = [30, 50, _beside(30, 0), _beside(50, 99), 29.9, 50.1]
        far = rng.choice(limits, count).astype(np.float32)
        turned = rng.random(count) < 0.5
        centre = np.column_stack([np.where(turned, far * 0.6, far), np.where(turned, far * 0.8, 0), np.zeros(count)])
        size[:, 0] = rng.choice([7, _beside(7, 0), _beside(7, 9), 3], count)
    if kind == "degenerate sizes":
        some = rng.random((count, 3)) < 0.2
        size = np.where(some, rng.choice([0, 1e-6, 0.01, 0.0100001, 0.02, 1e6, 2e6, 3e5, -1], (count, 3)), size)
    if kind == "far away":
        centre[:, :2] += rng.choice([1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9], (count, 1)) * rng.choice([-1, 1], (count, 2))
    if kind == "headings":
        heading = np.where(rng.random(count) < 0.5, heading, rng.choice([np.pi, -np.pi, 0], count))
        heading = heading + 2 * np.pi * rng.integers(-50, 51, count)
    boxes = np.column_stack([centre, size, heading]).astype(np.float32)
    if kind in ("duplicates", "ties") and count:
        boxes = boxes[rng.integers(0, (count + 1) // 2, count)]
    return boxes


def _detections(
    rng: np.random.Generator, kind: str, objects: np.ndarray, types: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Most of them near objects: copies, moved, turned, cut in half, pushed along their axes until they touch."""
    if not len(objects) or rng.random() < 0.05:
        return _objects(rng, kind, count), rng.integers(0, 5, count).astype(np.uint8)
    which = rng.integers(0, len(objects), count)
    boxes, kinds = objects[which].astype(np.float64), types[which].copy()
    how = rng.integers(0, 7, count) if kind != "duplicates" else rng.integers(0, 2, count)
    if kind == "nested":
        how = rng.integers(2, 6, count)
    moved = how == 1
    noise = rng.choice([0.01, 0.1, 0.4])
    boxes[moved] += rng.normal(0, noise, (int(moved.sum()), 7)) * [1, 1, 0.3, 0.3, 0.3, 0.3, 0.3]
    quarter = how == 2
    boxes[quarter, 6] += np.pi / 2 * rng.integers(-4, 5, int(quarter.sum()))
    half = how == 3
    boxes[half, 3 + rng.integers(0, 2)] *= 0.5
    along = how == 4
    share = rng.choice([0.25, 0.5, 1 / 3, 1, -1, 1e-7], int(along.sum()))
    boxes[along, 0] += np.cos(boxes[along, 6]) * boxes[along, 3] * share
    boxes[along, 1] += np.sin(boxes[along, 6]) * boxes[along, 3] * share
    up = how == 5
    boxes[up, 2] += boxes[up, 5] * rng.choice([1, 0.5, 0.3, 1 / 3], int(up.sum()))
    if kind == "headings":
        boxes[:, 6] += rng.choice([0, np.pi, np.pi / 2, 1e-4], count) + 2 * np.pi * rng.integers(-9, 10, count)
    elsewhere = (how == 6) & (rng.random(count) < 0.7)
    boxes[elsewhere] = _objects(rng, kind, int(elsewhere.sum()))
    changed = rng.random(count) < 0.05
    kinds[changed] = rng.integers(0, 5, int(changed.sum()))
    return boxes.astype(np.float32), kinds


def _spoil(rng: np.random.Generator, boxes: np.ndarray, columns: tuple[int, ...], values: tuple[float, ...]) -> None:
    rows = np.flatnonzero(rng.random(len(boxes)) < 0.1)
    boxes[rows, rng.choice(columns, len(rows))] = rng.choice(values, len(rows))


def _scores(rng: np.random.Generator, kind: str, count: int) -> np.ndarray:
    if kind in ("ties", "crowd") or rng.random() < 0.3:
        return rng.choice([0.0, 0.1, 0.25, 0.3, 0.7, 0.57, 1.0], count).astype(np.float32)
    if rng.random() < 0.3:  # on the cutoffs themselves, in float32 and beside it
        scores = (rng.integers(0, 101, count) * 0.01).astype(np.float32)
        return np.where(rng.random(count) < 0.5, scores, np.nextafter(scores, np.float32(0.5)))
    return rng.random(count).astype(np.float32)


def _config(rng: np.random.Generator, kind: str, unknown: bool) -> MetricConfig:
    breakdowns = WITHOUT_UNKNOWN if unknown else tuple(BREAKDOWNS.values())
    if kind == "crowd":
        return MetricConfig(breakdowns=breakdowns, score_cutoffs=(0.0, 0.3, 0.5, 1.0))
    if kind == "quantile cutoffs":
        return MetricConfig(breakdowns=breakdowns, score_cutoffs=(), desired_cutoffs=int(rng.integers(1, 60)))
    if kind == "settings":
        return MetricConfig(
            breakdowns=breakdowns,
            iou_thresholds=tuple(float(v) for v in rng.choice([0, 1e-6, 0.3, 0.5, 0.7, 0.999, 1], 5)),
            score_cutoffs=tuple(sorted({float(v) for v in rng.random(int(rng.integers(1, 30)))})),
            recall_step=float(rng.choice([0.01, 0.05, 0.1, 0.5, 1])),
            min_precision=float(rng.choice([0, 0.1, 0.5, 1])),
            min_heading_accuracy=float(rng.choice([-1, 0, 0.5, 0.9, 1])),
            levels_by_breakdown=tuple([(1,), (2,), (1, 2), (2, 1)][k] for k in rng.integers(0, 4, len(breakdowns))),
        )
    return MetricConfig(breakdowns=breakdowns)
