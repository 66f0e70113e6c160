"""What makes a frame, or a sequence of them, unusable."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from detection3d.types.scene import Boxes, Frame, ObjectType

_MOST_LIDAR = 7
_ORTHONORMAL = 1e-3  # largest entry of R^T R - 1; poses kept in float32 have 1e-6
_POINT_ARRAYS = (("lidar", np.uint8), ("return_number", np.uint8), ("in_no_label_zone", np.bool_))
_LABEL_ARRAYS = (
    ("types", np.uint8, ()),
    ("difficulty", np.uint8, ()),
    ("num_points", np.int32, ()),
    ("velocity", np.float32, (3,)),
    ("acceleration", np.float32, (3,)),
)


@dataclass(frozen=True)
class Fault:
    """Something that makes a frame unusable.

    Attributes:
        kind: a word for what is wrong, to count by.
        message: what it is, the value, and what to do.
        usable: whether the frame's arrays still have the form that other checks need.
    """

    kind: str
    message: str
    usable: bool = True


def frame_faults(frame: Frame) -> Iterator[Fault]:
    """Yield what is wrong with a frame by itself."""
    broken = [*_point_forms(frame), *_label_forms(frame.labels)]
    yield from broken
    yield from _pose_faults(frame)
    if isinstance(frame.timestamp_micros, bool) or not isinstance(frame.timestamp_micros, int):
        yield Fault("timestamp", f"the timestamp is {frame.timestamp_micros!r}; give whole microseconds, an int", False)
    if broken:
        return
    yield from _point_faults(frame)
    if frame.labels is not None:
        yield from _label_faults(frame.labels)


class Sequence:
    """Follows the frames of a recording and tells what contradicts the ones before."""

    def __init__(self) -> None:
        self._timestamps: dict[int, int] = {}
        self._latest: int | None = None
        self._types: dict[str, tuple[int, int]] = {}

    def faults(self, number: int, frame: Frame) -> Iterator[Fault]:
        """Yield what is wrong with frame `number`, given those before; its arrays must have the right form."""
        stamp = frame.timestamp_micros
        if stamp in self._timestamps:
            yield Fault(
                "timestamp",
                f"timestamp {stamp} is that of frame {self._timestamps[stamp]} too; give each frame its own, in"
                " microseconds (seconds cut to whole numbers repeat)",
            )
        elif self._latest is not None and stamp < self._latest:
            yield Fault("timestamp", f"timestamp {stamp} comes after {self._latest}; sort the frames by time")
        self._timestamps.setdefault(stamp, number)
        self._latest = stamp if self._latest is None else max(stamp, self._latest)
        if frame.labels is None:
            return
        for name, kind in zip(frame.labels.ids, frame.labels.types.tolist(), strict=True):
            first, known = self._types.setdefault(name, (number, kind))
            if kind != known:
                yield Fault(
                    "track",
                    f"object {name!r} is {_type_name(kind)} here and {_type_name(known)} in frame {first}; an object"
                    " keeps its type, and an id belongs to one object of the recording",
                )


def _point_forms(frame: Frame) -> Iterator[Fault]:
    points = frame.points
    if not isinstance(points, np.ndarray) or points.ndim != 2 or points.shape[1:] != (5,):
        yield Fault("form", f"points are {_form(points)}; give float32 [N, 5]: x, y, z, intensity, elongation", False)
        return
    if points.dtype != np.float32:
        yield Fault("form", f"points are {points.dtype}; give float32", False)
    for name, dtype in _POINT_ARRAYS:
        values = getattr(frame, name)
        if not isinstance(values, np.ndarray) or values.shape != (len(points),) or values.dtype != dtype:
            wanted = f"{np.dtype(dtype)} ({len(points)},), one value for each point"
            yield Fault("form", f"{name} is {_form(values)}; give {wanted}", False)


def _label_forms(labels: Boxes | None) -> Iterator[Fault]:
    if labels is None:
        return
    boxes = labels.boxes
    if not isinstance(boxes, np.ndarray) or boxes.ndim != 2 or boxes.shape[1:] != (7,) or boxes.dtype != np.float32:
        form = "float32 [M, 7]: x, y, z, length, width, height, heading"
        yield Fault("form", f"boxes are {_form(boxes)}; give {form}", False)
        return
    for name, dtype, more in _LABEL_ARRAYS:
        values = getattr(labels, name)
        shape = (len(boxes), *more)
        if not isinstance(values, np.ndarray) or values.shape != shape or values.dtype != dtype:
            yield Fault("form", f"{name} is {_form(values)}; give {np.dtype(dtype)} {shape}, as boxes are", False)
    if len(labels.ids) != len(boxes) or not all(isinstance(name, str) and name for name in labels.ids):
        what = f"{len(labels.ids)} ids for {len(boxes)} boxes, such as {labels.ids[:1]}"
        yield Fault("form", f"{what}; give a string for each box, not empty", False)


def _pose_faults(frame: Frame) -> Iterator[Fault]:
    pose = frame.pose
    if not isinstance(pose, np.ndarray) or pose.shape != (4, 4) or pose.dtype != np.float64:
        yield Fault("pose", f"the pose is {_form(pose)}; give float64 [4, 4], vehicle to global", False)
        return
    if not np.isfinite(pose).all():
        yield Fault("pose", f"the pose isn't finite: {pose.tolist()}; leave the frame out, or correct it", False)
        return
    rotation = pose[:3, :3]
    error = float(np.abs(rotation.T @ rotation - np.eye(3)).max())
    if error > _ORTHONORMAL:
        advice = "is it transposed into the last row, scaled, or are quaternion parts in another order (w, x, y, z)?"
        yield Fault("pose", f"the pose is no rigid motion: R^T R differs from 1 by {error:.3g}; {advice}", False)
    elif np.linalg.det(rotation) < 0:
        yield Fault("pose", "the pose mirrors (its determinant is -1); an axis has the wrong sign", False)
    if not np.array_equal(pose[3], (0, 0, 0, 1)):
        advice = "the translation belongs in the last column"
        yield Fault("pose", f"the pose's last row is {pose[3].tolist()}, not 0, 0, 0, 1; {advice}", False)


def _point_faults(frame: Frame) -> Iterator[Fault]:
    infinite = ~np.isfinite(frame.points).all(axis=1)
    if infinite.any():
        row = int(np.flatnonzero(infinite)[0])
        what = f"{int(infinite.sum())} points aren't finite, such as {row}: {frame.points[row].tolist()}"
        yield Fault("not finite", f"{what}; leave out what did not return")
    if (frame.lidar > _MOST_LIDAR).any():
        yield Fault("lidar", f"lidar number {int(frame.lidar.max())}; the store has room for 0 to {_MOST_LIDAR}")
    strange = np.setdiff1d(frame.return_number, (1, 2))
    if len(strange):
        yield Fault("return", f"return number {int(strange[0])}; a point belongs to return 1 or 2")


def _label_faults(labels: Boxes) -> Iterator[Fault]:
    for what, values in (("box", labels.boxes), ("velocity", labels.velocity), ("acceleration", labels.acceleration)):
        for row in np.flatnonzero(~np.isfinite(values).all(axis=1))[:1].tolist():
            found = ", ".join(f"{value:g}" for value in values[row])
            where = f"{what} of object {labels.ids[row]!r} isn't finite: ({found})"
            yield Fault("not finite", f"{where}; leave the object out, or give 0 where it isn't known", what != "box")
    for row in np.flatnonzero((labels.boxes[:, 3:6] <= 0).any(axis=1))[:1].tolist():
        found = ", ".join(f"{value:g}" for value in labels.boxes[row, 3:6])
        what = f"object {labels.ids[row]!r} has length, width, height ({found})"
        yield Fault("size", f"{what}; sizes must be above 0, so leave it out", False)
    unknown = np.setdiff1d(labels.types, [int(kind) for kind in ObjectType])
    if len(unknown):
        row = int(np.flatnonzero(labels.types == unknown[0])[0])
        known = ", ".join(f"{kind.name} {kind.value}" for kind in ObjectType)
        yield Fault("type", f"object {labels.ids[row]!r} has type {unknown[0]}; there are {known}; map it to one")
    if (labels.difficulty > 2).any():
        yield Fault("difficulty", f"difficulty {int(labels.difficulty.max())}; give 0 (not stated), 1 or 2")
    if (labels.num_points < 0).any():
        yield Fault("count", f"num_points is {int(labels.num_points.min())}; count the points, or use make_frame")
    if len(set(labels.ids)) < len(labels.ids):
        twice = next(name for name in labels.ids if labels.ids.count(name) > 1)
        yield Fault("id", f"id {twice!r} occurs {labels.ids.count(twice)} times; an id is one object's in a frame")


def _type_name(kind: int) -> str:
    return ObjectType(kind).name if kind in list(ObjectType) else str(kind)


def _form(values: object) -> str:
    if isinstance(values, np.ndarray):
        return f"{values.dtype} {list(values.shape)}"
    return type(values).__name__
