"""How well the points fill the boxes as they are stated, and as they'd be under other conventions."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from detection3d.data.checking.alternatives import AXES_COUNT, HEADINGS, LIFTS, alternatives, axes
from detection3d.geometry.host.boxes import count_points_in_boxes, points_in_boxes
from detection3d.types.scene import Float32Array, Float64Array, Frame

FEWEST_POINTS = 5  # in the best of the boxes; fewer say nothing of its place
ELONGATED = 1.5  # length to width, or width to length, from which on points tell the heading

_SHAPE = (AXES_COUNT, len(HEADINGS), len(LIFTS))
_CELL = 4.0  # metres
_GROUND = 0.3  # metres above the lowest of a cell that still count as ground


@dataclass(frozen=True)
class Tally:
    """Votes of boxes for the alternatives; A are the axes, H the headings, L the lifts.

    Attributes:
        boxes: number that had a say.
        score: float64 [A, H, L], sum over boxes of the points inside, as a share of the best alternative's.
        better: int64 [A, H, L], boxes with more points inside than as stated.
        worse: likewise, with fewer.
    """

    boxes: int
    score: Float64Array
    better: npt.NDArray[np.int64]
    worse: npt.NDArray[np.int64]

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(
            self.boxes + other.boxes, self.score + other.score, self.better + other.better, self.worse + other.worse
        )


def tally(counts: npt.NDArray[np.int32]) -> Tally:
    """Turn counts, int32 [A, H, L, M], into votes; boxes that hold few points whatever the alternative have none."""
    most = counts.max(axis=(0, 1, 2))
    counts = counts[..., most >= FEWEST_POINTS]
    share = counts / most[most >= FEWEST_POINTS]
    stated = counts[0, 0, 0]
    return Tally(counts.shape[-1], share.sum(axis=-1), (counts > stated).sum(axis=-1), (counts < stated).sum(axis=-1))


def no_votes() -> Tally:
    """Return the tally of no boxes."""
    return Tally(0, np.zeros(_SHAPE), np.zeros(_SHAPE, np.int64), np.zeros(_SHAPE, np.int64))


@dataclass(frozen=True)
class Fit:
    """What the boxes of some frames say.

    Attributes:
        everything: votes of all boxes.
        elongated: votes of those whose heading matters.
        boxes: labelled boxes that were looked at.
        filled: those with at least one point, ground included.
        miscounted: those whose stated number of points is far from the recount.
        stated_points: sum of the stated numbers.
        found_points: sum of the recounts.
    """

    everything: Tally
    elongated: Tally
    boxes: int = 0
    filled: int = 0
    miscounted: int = 0
    stated_points: int = 0
    found_points: int = 0

    def __add__(self, other: "Fit") -> "Fit":
        return Fit(
            self.everything + other.everything,
            self.elongated + other.elongated,
            self.boxes + other.boxes,
            self.filled + other.filled,
            self.miscounted + other.miscounted,
            self.stated_points + other.stated_points,
            self.found_points + other.found_points,
        )


def no_fit() -> Fit:
    """Return what no frames say."""
    return Fit(no_votes(), no_votes())


def fit(frame: Frame) -> Fit:
    """Count the points of a frame in its boxes, as stated and under every alternative."""
    labels = frame.labels
    if labels is None or len(labels) == 0:
        return no_fit()
    boxes = labels.boxes.astype(np.float64)
    points = frame.points[np.isfinite(frame.points).all(axis=1), :3]
    recount = count_points_in_boxes(points, boxes)
    wrong = np.abs(recount - labels.num_points) > np.maximum(3, 0.1 * np.maximum(recount, labels.num_points))
    counts = _counts(points[above_ground(points)], boxes, frame.pose)
    long = np.maximum(boxes[:, 3], boxes[:, 4]) >= ELONGATED * np.minimum(boxes[:, 3], boxes[:, 4])
    return Fit(
        tally(counts),
        tally(counts[..., long]),
        len(boxes),
        int((recount > 0).sum()),
        int(wrong.sum()),
        int(labels.num_points.sum()),
        int(recount.sum()),
    )


def _counts(points: Float32Array, boxes: Float64Array, pose: Float64Array) -> npt.NDArray[np.int32]:
    counts = np.zeros((*_SHAPE, len(boxes)), np.int32)
    for index, frame in enumerate(axes(pose)):
        if frame is None:
            counts[index] = counts[0]
            continue
        readings = alternatives(boxes, frame)
        # Upright cylinders around all readings of a box first: few points lie in any of them.
        around = readings[0, 0].copy()
        around[:, 3:5] = np.hypot(boxes[:, 3], boxes[:, 4])[:, None]
        around[:, 5] *= 2
        near = points[points_in_boxes(points, around).any(axis=1)] if len(points) else points
        counts[index] = count_points_in_boxes(near, readings.reshape(-1, 7)).reshape(counts.shape[1:])
    return counts


def above_ground(points: Float32Array) -> npt.NDArray[np.bool_]:
    """Tell which points stand out of the ground: ground in a box would speak for every box that reaches into it.

    Args:
        points: float32 [N, 3 or more].

    Returns:
        bool [N].
    """
    cell, low = cell_floors(points)
    return points[:, 2] > low[cell] + _GROUND


def cell_floors(points: Float32Array) -> tuple[npt.NDArray[np.int64], Float64Array]:
    """Return each point's cell of the ground, int64 [N], and the cells' floors, float64 [cells]: z's 5th percentile."""
    if len(points) == 0:
        return np.zeros(0, np.int64), np.zeros(0)
    places = np.clip(np.floor(points[:, :2].astype(np.float64) / _CELL), -(2**30), 2**30).astype(np.int64)
    _, cell, sizes = np.unique(places[:, 0] * 2**31 + places[:, 1], return_inverse=True, return_counts=True)
    order = np.lexsort((points[:, 2], cell))
    starts = np.cumsum(sizes) - sizes
    return cell, points[order[starts + sizes // 20], 2].astype(np.float64)
