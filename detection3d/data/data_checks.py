"""What is probably wrong with a data set, each with the figure that says so.

The checks compare the boxes with the points, so they hold for any sensor. Their limits lie between what sound data
show and what the usual mistakes of a conversion do: docs/synthetic.md has the figures of both.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from detection3d.config import ModelConfig
from detection3d.data.frame_summary import FrameSummary, ObjectSummary
from detection3d.types.scene import BoolArray, Float64Array, Int32Array, ObjectType

_ENOUGH_POINTS = 20  # in a box, or in one moved or turned, before its points say where it should be
_ENOUGH_BOXES = 5  # before a share of them means anything
_SATURATED = 2.65  # tanh of it is 0.99: the model sees no difference beyond
_FASTEST = 60.0  # m/s
_GROUND_LIMIT = 0.7  # metres; Argoverse 2's ground is at -0.33 m and does no harm


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
    objects = [summary.objects for summary in summaries if summary.objects is not None]
    found = [*_check_points(summaries), *_check_labels(summaries)]
    boxes = _Boxes.of(objects)
    if len(boxes.points) >= _ENOUGH_BOXES:
        found += [*_check_places(boxes), *_check_motion(boxes), *_check_shapes(boxes, model)]
    return tuple(warning for warning in found if warning.value > warning.limit)


@dataclass(frozen=True)
class _Boxes:
    """The boxes of all frames; the attributes are those of `ObjectSummary` and its labels."""

    boxes: npt.NDArray[np.float32]
    vehicles: BoolArray
    labelled: Int32Array
    points: Int32Array
    turned: Int32Array
    raised: Int32Array
    lowered: Int32Array
    speed: Float64Array
    course: Float64Array

    @classmethod
    def of(cls, objects: Sequence[ObjectSummary]) -> "_Boxes":
        def join(pick: Callable[[ObjectSummary], npt.NDArray], empty: npt.NDArray) -> npt.NDArray:
            return np.concatenate([empty, *(pick(item) for item in objects)])

        counts, speeds = np.zeros(0, np.int32), np.zeros(0)
        return cls(
            boxes=join(lambda item: item.labels.boxes, np.zeros((0, 7), np.float32)),
            vehicles=join(lambda item: item.labels.types == ObjectType.VEHICLE, np.zeros(0, np.bool_)),
            labelled=join(lambda item: item.labels.num_points, counts),
            points=join(lambda item: item.points, counts),
            turned=join(lambda item: item.turned, counts),
            raised=join(lambda item: item.raised, counts),
            lowered=join(lambda item: item.lowered, counts),
            speed=join(lambda item: item.speed, speeds),
            course=join(lambda item: item.course, speeds),
        )


def _check_points(summaries: Sequence[FrameSummary]) -> Iterator[DataWarning]:
    counts = np.array([summary.points for summary in summaries])
    sparse = _share(counts < 0.1 * np.median(counts)) if counts.any() else 1.0
    yield DataWarning(
        "sparse frames",
        sparse,
        0.0,
        f"{_percent(sparse)} of the frames have under a tenth of the median's points, or none: a lidar may be missing",
    )
    intensity = np.concatenate([summary.sample[:, 2] for summary in summaries])
    if len(intensity):
        constant = float(intensity.max() == intensity.min())
        yield DataWarning(
            "constant intensity",
            constant,
            0.0,
            f"the intensity is {intensity[0]:g} at every point: it was lost on the way, or the sensor has none",
        )
        saturated = _share(intensity > _SATURATED)
        yield DataWarning(
            "saturated intensity",
            saturated,
            0.3,
            f"{_percent(saturated)} of the intensities exceed {_SATURATED}, where the model's tanh is at its end: they"
            " may be of 0 to 255; divide them",
        )
    total = counts.sum()
    outside = 1 - sum(summary.in_range for summary in summaries) / float(total) if total else 0.0
    yield DataWarning(
        "points out of range",
        outside,
        0.3,
        f"{_percent(outside)} of the points lie outside the model's point_range",
    )
    grounds = [summary.ground for summary in summaries if np.isfinite(summary.ground)]
    height = float(np.median(grounds)) if grounds else 0.0
    yield DataWarning(
        "height of the ground",
        abs(height),
        _GROUND_LIMIT,
        f"the ground is at z = {height:.2f} m: the frame's origin isn't on the ground, as Waymo's is; fit point_range"
        " to it, and don't train on both together",
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
    repeated = sum(len(item.labels.ids) - len(set(item.labels.ids)) for item in objects)
    yield DataWarning(
        "repeated ids", float(repeated), 0.0, f"{repeated} boxes share their id with another one of their frame"
    )
    keys = [summary.key for summary in summaries]
    again = len(keys) - len(set(keys))
    yield DataWarning("repeated frames", float(again), 0.0, f"{again} frames share segment and timestamp with another")


def _check_places(all_boxes: _Boxes) -> Iterator[DataWarning]:
    """Check whether the boxes are where the points are."""
    empty = _share(all_boxes.points == 0)
    yield DataWarning(
        "boxes without points",
        empty,
        0.3,
        f"{_percent(empty)} of the boxes hold no point: boxes and points may be of different frames or moments",
    )
    better = {
        "boxes too low": (
            all_boxes.raised,
            "hold more points when moved up by half their height: z may be that of the bottom, not of the centre",
        ),
        "boxes too high": (
            all_boxes.lowered,
            "hold more points when moved down by half their height: z may be that of the top, not of the centre",
        ),
    }
    for kind, (moved, meaning) in better.items():
        enough = np.maximum(moved, all_boxes.points) >= _ENOUGH_POINTS
        yield from _share_warning(kind, (moved > all_boxes.points)[enough], f"boxes of at least 20 points {meaning}")
    long = all_boxes.vehicles & (np.abs(all_boxes.boxes[:, 3] / all_boxes.boxes[:, 4] - 1) > 0.3)
    enough = long & (np.maximum(all_boxes.turned, all_boxes.points) >= _ENOUGH_POINTS)
    yield from _share_warning(
        "headings a right angle off",
        (all_boxes.turned > all_boxes.points)[enough],
        "vehicles of at least 20 points hold more of them when turned by 90 degrees: the heading may be measured from"
        " another axis",
    )
    counted = all_boxes.labelled >= _ENOUGH_POINTS
    ratio = all_boxes.points[counted] / all_boxes.labelled[counted]
    yield from _share_warning(
        "counts that disagree",
        np.abs(ratio - 1) > 0.3,
        "boxes labelled with at least 20 points hold a number that differs by over 30 %: points were left out, or boxes"
        " moved",
        limit=0.2,
    )


def _check_motion(all_boxes: _Boxes) -> Iterator[DataWarning]:
    """Check headings against velocities, which come from the tracks and so know the direction."""
    course = all_boxes.course[np.isfinite(all_boxes.course) & all_boxes.vehicles]
    meaning = "vehicles that move faster than 1 m/s"
    sideways = (course > np.pi / 4) & (course < 3 * np.pi / 4)
    yield from _share_warning(
        "motion across the heading", sideways, f"{meaning} go across their heading: it may be a right angle off", 0.3
    )
    yield from _share_warning(
        "motion against the heading",
        course >= 3 * np.pi / 4,
        f"{meaning} go against their heading: it may be turned round",
        0.3,
    )
    fast = _share(all_boxes.speed > _FASTEST)
    yield DataWarning(
        "speeds", fast, 0.0, f"{_percent(fast)} of the objects are faster than {_FASTEST:g} m/s, or their track jumps"
    )
    still = float(not all_boxes.speed.any())
    yield DataWarning(
        "no velocities", still, 0.0, "every velocity is 0: they are not known, or everything stands in these frames"
    )


def _check_shapes(all_boxes: _Boxes, model: ModelConfig) -> Iterator[DataWarning]:
    boxes = all_boxes.boxes
    swapped = boxes[:, 4] > boxes[:, 3]
    yield from _share_warning(
        "vehicles wider than long",
        swapped[all_boxes.vehicles],
        "vehicles are wider than long: length and width may be swapped",
        0.2,
    )
    flat = _share((boxes[:, 3:6] <= 0).any(axis=1))
    yield DataWarning("boxes without volume", flat, 0.0, f"{_percent(flat)} of the boxes have a side of 0 or less")
    low, high = np.array(model.point_range[:3]), np.array(model.point_range[3:])
    outside = ((boxes[:, :3] < low) | (boxes[:, :3] >= high)).any(axis=1)
    yield from _share_warning("boxes out of range", outside, "boxes have their centre outside the point_range", 0.3)


def _share_warning(
    kind: str, wrong: npt.NDArray[np.bool_] | np.bool_, meaning: str, limit: float = 0.5
) -> Iterator[DataWarning]:
    """Yield a warning about the share of those that are wrong, if there are enough to speak of a share."""
    count = np.size(wrong)
    if count >= _ENOUGH_BOXES:
        yield DataWarning(kind, _share(wrong), limit, f"{_percent(_share(wrong))} of {count} {meaning}")


def _share(wrong: npt.ArrayLike) -> float:
    values = np.asarray(wrong)
    return float(values.mean()) if values.size else 0.0


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"
