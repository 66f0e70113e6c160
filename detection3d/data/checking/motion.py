"""What changes from one frame to the next: the vehicle's place, and the objects' that are followed."""

from dataclasses import dataclass, fields
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from detection3d.geometry.host.poses import invert_pose, transform_points
from detection3d.types.scene import Float64Array, Frame

_MOST_STEPS = 4000  # of a recording


@dataclass(frozen=True)
class Moment:
    """What of a frame is needed to compare it with the next.

    Attributes:
        timestamp: as stated.
        pose: float64 [4, 4], as stated.
        ids: M.
        boxes: float64 [M, 7], as stated.
        velocity: float64 [M, 3], as stated.
    """

    timestamp: int
    pose: Float64Array
    ids: tuple[str, ...]
    boxes: Float64Array
    velocity: Float64Array

    @staticmethod
    def of(frame: Frame) -> "Moment":
        """Take it from a frame."""
        labels = frame.labels
        if labels is None:
            return Moment(frame.timestamp_micros, frame.pose, (), np.zeros((0, 7)), np.zeros((0, 3)))
        boxes, velocity = labels.boxes.astype(np.float64), labels.velocity.astype(np.float64)
        return Moment(frame.timestamp_micros, frame.pose, labels.ids, boxes, velocity)


@dataclass(frozen=True)
class Steps:
    """Objects that are in two successive frames, T of them; vectors have the axes of the vehicle in the first one.

    Attributes:
        micros: float64 [T], stated time between the frames.
        shift: float64 [T, 3], motion over the ground, given the poses.
        inverse_shift: float64 [T], metres, its length if the poses were the inverse ones.
        vehicle: float64 [T, 3], the vehicle's own motion.
        velocity: float64 [T, 3], as stated.
        turned: float64 [T, 3], the same if it were stated in the axes of the global frame.
        heading: float64 [T], as stated.
    """

    micros: Float64Array
    shift: Float64Array
    inverse_shift: Float64Array
    vehicle: Float64Array
    velocity: Float64Array
    turned: Float64Array
    heading: Float64Array

    def __len__(self) -> int:
        """Number of steps, T."""
        return len(self.micros)


@dataclass(frozen=True)
class Motion:
    """How a recording, or several, moved.

    Attributes:
        intervals: float64 [R], the median stated time between the frames of each recording.
        drives: float64 [D, 2], the vehicle's motion between frames, in its own axes, metres.
        steps: of the objects.
        repeated: objects that are in several frames.
        sequences: recordings with labels in several frames.
    """

    intervals: Float64Array
    drives: Float64Array
    steps: Steps
    repeated: int
    sequences: int


def follow(moments: list[Moment]) -> Motion:
    """Compare the frames of a recording."""
    steps, drives = [], []
    for first, second in pairwise(moments):
        back = first.pose[:3, :3].T
        drive = back @ (second.pose[:3, 3] - first.pose[:3, 3])
        drives.append(drive[:2])
        steps.append(_steps(first, second, drive))
    stamps = np.array([moment.timestamp for moment in moments], np.float64)
    seen: dict[str, int] = {}
    for moment in moments:
        for name in moment.ids:
            seen[name] = seen.get(name, 0) + 1
    return Motion(
        np.array([np.median(np.diff(stamps))]) if len(stamps) > 1 else np.zeros(0),
        np.array(drives).reshape(-1, 2),
        _thinned(_joined(steps)),
        sum(count > 1 for count in seen.values()),
        int(sum(len(moment.ids) > 0 for moment in moments) > 1),
    )


def join(motions: list[Motion]) -> Motion:
    """Put recordings together."""
    return Motion(
        np.concatenate([np.zeros(0), *(motion.intervals for motion in motions)]),
        np.concatenate([np.zeros((0, 2)), *(motion.drives for motion in motions)]),
        _joined([motion.steps for motion in motions]),
        sum(motion.repeated for motion in motions),
        sum(motion.sequences for motion in motions),
    )


def _steps(first: Moment, second: Moment, drive: Float64Array) -> Steps:
    later = {name: row for row, name in enumerate(second.ids)}
    pairs = [(row, later[name]) for row, name in enumerate(first.ids) if name in later]
    here = np.array([row for row, _ in pairs], np.int64)
    there = np.array([row for _, row in pairs], np.int64)
    start, end = first.boxes[here, :3], second.boxes[there, :3]
    shift = transform_points(second.pose, end) - transform_points(first.pose, start)
    inverse = transform_points(invert_pose(second.pose), end) - transform_points(invert_pose(first.pose), start)
    count = len(pairs)
    return Steps(
        np.full(count, float(second.timestamp - first.timestamp)),
        shift @ first.pose[:3, :3],
        np.linalg.norm(inverse, axis=1),
        np.tile(drive, (count, 1)),
        first.velocity[here],
        first.velocity[here] @ first.pose[:3, :3],
        first.boxes[here, 6],
    )


def _joined(parts: list[Steps]) -> Steps:
    empty = Steps(*(np.zeros((0, *shape)) for shape in ((), (3,), (), (3,), (3,), (3,), ())))
    columns = {}
    for field in fields(Steps):
        columns[field.name] = np.concatenate([getattr(part, field.name) for part in (empty, *parts)])
    return Steps(**columns)


def _thinned(steps: Steps) -> Steps:
    keep: npt.NDArray[np.int64] = np.arange(0, len(steps), max(1, -(-len(steps) // _MOST_STEPS)))
    return Steps(**{field.name: getattr(steps, field.name)[keep] for field in fields(Steps)})
