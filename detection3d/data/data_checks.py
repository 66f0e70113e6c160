"""What a person should know of the frames at hand before training on them, each with the figure that says so.

What is wrong with the data themselves (axes, headings, centres, units) `data.checking` finds.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from detection3d.config import ModelConfig
from detection3d.data.frame_summary import FrameSummary

_ENOUGH_BOXES = 5  # before a share of them means anything


@dataclass(frozen=True)
class DataWarning:
    """Something that a person should look at.

    Attributes:
        kind: a name that stays the same.
        value: the figure.
        limit: what it should not pass.
        message: what was found, with the figure, and what it may come from.
    """

    kind: str
    value: float
    limit: float
    message: str


def check_data(summaries: Sequence[FrameSummary], model: ModelConfig) -> tuple[DataWarning, ...]:
    """Look for what a person would want to know before training.

    Args:
        summaries: of at least one frame.
        model: the one that `summarise_frame` was given.
    """
    found = [*_check_points(summaries), *_check_labels(summaries), *_check_boxes(summaries, model)]
    return tuple(warning for warning in found if warning.value > warning.limit)


def _check_points(summaries: Sequence[FrameSummary]) -> Iterator[DataWarning]:
    counts = np.array([summary.points for summary in summaries])
    sparse = _share(counts < 0.1 * np.median(counts)) if counts.any() else 1.0
    yield DataWarning(
        "sparse frames",
        sparse,
        0.0,
        f"{_percent(sparse)} of the frames have under a tenth of the median's points, or none: a lidar may be missing",
    )
    total = counts.sum()
    outside = 1 - sum(summary.in_range for summary in summaries) / float(total) if total else 0.0
    yield DataWarning(
        "points out of range",
        outside,
        0.3,
        f"{_percent(outside)} of the points lie outside the model's point_range",
    )


def _check_labels(summaries: Sequence[FrameSummary]) -> Iterator[DataWarning]:
    without = _share([summary.objects is None for summary in summaries])
    if 0 < without < 1:
        yield DataWarning(
            "frames without labels",
            without,
            0.0,
            f"{_percent(without)} of the frames have no labels, others have: training refuses them",
        )
    objects = [summary.objects for summary in summaries if summary.objects is not None]
    bare = _share([len(item.points) == 0 for item in objects])
    yield DataWarning(
        "labelled frames without objects", bare, 0.5, f"{_percent(bare)} of the labelled frames have no object"
    )
    keys = [summary.key for summary in summaries]
    again = len(keys) - len(set(keys))
    yield DataWarning("repeated frames", float(again), 0.0, f"{again} frames share segment and timestamp with another")


def _check_boxes(summaries: Sequence[FrameSummary], model: ModelConfig) -> Iterator[DataWarning]:
    objects = [summary.objects for summary in summaries if summary.objects is not None]
    points = np.concatenate([np.zeros(0, np.int32), *(item.points for item in objects)])
    boxes = np.concatenate([np.zeros((0, 7), np.float32), *(item.labels.boxes for item in objects)])
    if len(boxes) < _ENOUGH_BOXES:
        return
    empty = _share(points == 0)
    yield DataWarning("boxes without points", empty, 0.3, f"{_percent(empty)} of the boxes hold no point")
    low, high = np.array(model.point_range[:3]), np.array(model.point_range[3:])
    outside = _share(((boxes[:, :3] < low) | (boxes[:, :3] >= high)).any(axis=1))
    yield DataWarning(
        "boxes out of range",
        outside,
        0.3,
        f"{_percent(outside)} of the boxes have their centre outside the model's point_range",
    )


def _share(wrong: npt.ArrayLike) -> float:
    values = np.asarray(wrong)
    return float(values.mean()) if values.size else 0.0


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"
