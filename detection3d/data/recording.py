"""One's own data set: what to write so that it is prepared and checked like the others.

A function takes the data set's folder and returns `Recording`s; each names itself, the files it comes from, and yields
its frames. `tools/prepare_dataset.py` does the rest. `ScanRecording` and `make_frame` are there to be used, and may be
left aside: any object of this form is a recording. docs/own_data.md has an example.
"""

import difflib
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from detection3d.errors import DataError, UserError, one_line
from detection3d.geometry.host.boxes import count_points_in_boxes, wrap_angle
from detection3d.types.scene import BoolArray, Boxes, Frame, Lidar, ObjectType, UInt8Array


class Recording(Protocol):
    """Frames that follow one another; it becomes a segment of the store."""

    @property
    def name(self) -> str:
        """Unique in the data set and the same in every run; becomes the name of the segment and of its folder."""
        ...

    @property
    def files(self) -> Sequence[Path]:
        """What the frames are read from; a folder stands for all it holds. If any changes, all is prepared anew."""
        ...

    def frames(self, every: int) -> Iterable[Frame]:
        """Yield every so many frames, from the first on, in the order of time.

        A frame's `context_name` is the recording's name; where it is empty, it is filled in.
        """
        ...


@dataclass(frozen=True)
class ScanRecording:
    """A recording whose frames are read one by one.

    Attributes:
        name: see `Recording`.
        scans: the files of the frames, in the order of time.
        read: makes a frame of one of them.
        others: further files that `read` looks at, such as labels and poses.
    """

    name: str
    scans: Sequence[Path]
    read: Callable[[Path], Frame]
    others: Sequence[Path] = ()

    @property
    def files(self) -> Sequence[Path]:
        """The scans and the others."""
        return (*self.scans, *self.others)

    def frames(self, every: int) -> Iterator[Frame]:
        """Yield every so many frames.

        Raises:
            DataError: a scan can't be used.
        """
        for number in range(0, len(self.scans), every):
            try:
                yield self.read(self.scans[number])
            except DataError:
                raise
            except UserError as error:  # `make_frame` can't know where its values come from
                raise DataError(self.scans[number], str(error)) from error


def read_recording(recording: Recording, every: int = 1) -> Iterator[Frame]:
    """Yield a recording's frames; errors of its reader say where they happened.

    Raises:
        DataError: its reader failed, or a frame says that it belongs to another recording.
    """
    for number, frame in enumerate(_guarded(recording, every)):
        if not isinstance(frame, Frame):
            reason = f"its reader yields {type(frame).__name__}; yield detection3d.types.scene.Frame, see make_frame"
            raise DataError(recording.name, reason, number * every)
        if frame.context_name not in ("", recording.name):
            reason = f"the frame's context name is {frame.context_name!r}; leave it empty, or give the recording's name"
            raise DataError(recording.name, reason, number * every)
        yield replace(frame, context_name=recording.name)


def _guarded(recording: Recording, every: int) -> Iterator[Frame]:
    """Turn the mistakes of somebody's reader into errors that name the line."""
    try:
        frames = recording.frames(every)
        if not isinstance(frames, Iterable):
            raise DataError(
                recording.name, f"frames({every}) returned {type(frames).__name__}; return an iterator of frames"
            )
        yield from frames
    except (UserError, OSError, MemoryError):
        raise
    except Exception as error:
        raise DataError(recording.name, f"its reader failed: {describe_failure(error)}") from error


def describe_failure(error: Exception) -> str:
    """Say what was raised, and the last line that is not an installed library's."""
    if isinstance(error, SyntaxError):
        return f"SyntaxError at {error.filename}:{error.lineno}: {error.msg}"
    places = [place for place in traceback.extract_tb(error.__traceback__) if "site-packages" not in place.filename]
    where = f" at {places[-1].filename}:{places[-1].lineno}" if places else ""
    return f"{type(error).__name__}{where}: {one_line(error)}"


def make_frame(
    timestamp_micros: int,
    points: npt.ArrayLike,
    boxes: npt.ArrayLike | None = None,
    types: Sequence[str | int] = (),
    ids: Sequence[str] | None = None,
    *,
    pose: npt.ArrayLike | None = None,
    velocity: npt.ArrayLike | None = None,
    acceleration: npt.ArrayLike | None = None,
    num_points: npt.ArrayLike | None = None,
    difficulty: npt.ArrayLike | None = None,
    lidar: npt.ArrayLike | None = None,
    return_number: npt.ArrayLike | None = None,
    in_no_label_zone: npt.ArrayLike | None = None,
) -> Frame:
    """Build a frame, with the usual values for what isn't given, and check that everything belongs together.

    Args:
        timestamp_micros: microseconds, a whole number.
        points: [N, 3 to 5], x, y, z in metres, vehicle frame, then intensity and elongation, 0 where left out.
        boxes: [M, 7], see `detection3d`; headings are wrapped here. None: the data set has no labels.
        types: M names or numbers of `ObjectType`.
        ids: M strings, the same for an object through the recording. None: objects aren't followed, each gets its own.
        pose: [4, 4], vehicle to global. None: the identity, good for single scans, wrong for joining several.
        velocity: [M, 2 or 3], m/s, motion over the ground in the axes of the vehicle frame. None: 0.
        acceleration: likewise, m/s^2.
        num_points: [M]. None: counted here.
        difficulty: [M], 0, or 1 or 2 where a person said so. None: 0.
        lidar: [N], 0 to 7, see `Lidar`. None: `Lidar.TOP`.
        return_number: [N], 1 or 2. None: 1.
        in_no_label_zone: [N], true where objects would not have been labelled. None: false.

    Raises:
        UserError: a shape, a type or a number can't be used.
    """
    cloud = _array("points", points, np.float64)
    if cloud.ndim != 2 or not 3 <= cloud.shape[1] <= 5:
        raise UserError(f"points have the shape {cloud.shape}; give [N, 3 to 5]: x, y, z, intensity, elongation")
    count = len(cloud)
    full = np.zeros((count, 5), np.float32)
    full[:, : cloud.shape[1]] = cloud
    stamp = _whole(timestamp_micros)
    labels = None
    if boxes is not None:
        labels = _labels(full, boxes, types, ids, stamp, velocity, acceleration, num_points, difficulty)
    elif len(types) or ids:
        raise UserError(f"{len(types)} types and {len(ids or ())} ids, but no boxes; give boxes, [M, 7]")
    matrix = np.eye(4) if pose is None else _array("pose", pose, np.float64)
    if matrix.shape != (4, 4):
        raise UserError(f"the pose has the shape {matrix.shape}; give [4, 4], vehicle to global")
    return Frame(
        context_name="",
        timestamp_micros=stamp,
        pose=matrix,
        points=full,
        lidar=_bytes("lidar", lidar, count, range(8), Lidar.TOP),
        return_number=_bytes("return_number", return_number, count, (1, 2), 1),
        in_no_label_zone=_flags(in_no_label_zone, count),
        labels=labels,
    )


def _labels(
    points: npt.NDArray[np.float32],
    boxes: npt.ArrayLike,
    types: Sequence[str | int],
    ids: Sequence[str] | None,
    stamp: int,
    velocity: npt.ArrayLike | None,
    acceleration: npt.ArrayLike | None,
    num_points: npt.ArrayLike | None,
    difficulty: npt.ArrayLike | None,
) -> Boxes:
    values = _array("boxes", boxes, np.float64)
    values = values.reshape(-1, 7) if values.size == 0 else values
    if values.ndim != 2 or values.shape[1] != 7:
        raise UserError(f"boxes have the shape {values.shape}; give [M, 7]: x, y, z, length, width, height, heading")
    count = len(values)
    names = [f"{stamp}-{row}" for row in range(count)] if ids is None else list(ids)
    for what, given in (("types", len(types)), ("ids", len(names))):
        if given != count:
            raise UserError(f"{given} {what} for {count} boxes; give one for each")
    finite = values.astype(np.float32)
    if len(bad := np.flatnonzero(~np.isfinite(finite).all(axis=1))):
        raise UserError(f"box {bad[0]} ({names[bad[0]]!r}) isn't finite: {values[bad[0]].tolist()}; leave it out")
    # Wrapped in float32, as rounding a heading just below pi would lead out of [-pi, pi) again.
    finite[:, 6] = wrap_angle(finite[:, 6])
    counts = count_points_in_boxes(points, finite) if num_points is None else _array("num_points", num_points, np.int32)
    if counts.shape != (count,):
        raise UserError(f"num_points has the shape {counts.shape}; give ({count},), one value for each box")
    return Boxes(
        boxes=finite,
        types=np.array([object_type(kind) for kind in types], np.uint8),
        ids=tuple(str(name) for name in names),
        difficulty=_bytes("difficulty", difficulty, count, (0, 1, 2), 0),
        num_points=counts,
        velocity=_vectors("velocity", velocity, count),
        acceleration=_vectors("acceleration", acceleration, count),
    )


def object_type(kind: str | int) -> ObjectType:
    """Return the type of a name, in any case, or of a number.

    Raises:
        UserError: there is no such type.
    """
    known = {kind.name: kind for kind in ObjectType}
    if isinstance(kind, str) and kind.upper() in known:
        return known[kind.upper()]
    if not isinstance(kind, str) and int(kind) in known.values():
        return ObjectType(int(kind))
    near = difflib.get_close_matches(kind.upper(), known, 1) if isinstance(kind, str) else []
    raise UserError(
        f"type {kind!r}{f': did you mean {near[0]}?' if near else ':'} there are {', '.join(known)}; map the data set's"
        " categories to them (cars, trucks, motorcyclists: VEHICLE; what isn't to be found: UNKNOWN)"
    )


def _whole(timestamp: int) -> int:
    if isinstance(timestamp, int | np.integer) and not isinstance(timestamp, bool):
        return int(timestamp)
    raise UserError(f"timestamp {timestamp!r} is no whole number; give microseconds, such as round(seconds * 1e6)")


def _array(name: str, values: npt.ArrayLike, dtype: npt.DTypeLike) -> npt.NDArray:
    try:
        return np.asarray(values).astype(dtype)
    except (TypeError, ValueError) as error:
        raise UserError(f"{name} can't be read as numbers ({error}); give an array") from error


def _vectors(name: str, values: npt.ArrayLike | None, count: int) -> npt.NDArray[np.float32]:
    full = np.zeros((count, 3), np.float32)
    if values is None:
        return full
    given = _array(name, values, np.float32)
    given = given.reshape(0, 3) if given.size == 0 else given
    if given.shape not in ((count, 2), (count, 3)):
        raise UserError(f"{name} has the shape {given.shape}; give [{count}, 2 or 3], one row for each box")
    full[:, : given.shape[1]] = given
    return full


def _bytes(name: str, values: npt.ArrayLike | None, count: int, allowed: Iterable[int], usual: int) -> UInt8Array:
    if values is None:
        return np.full(count, usual, np.uint8)
    given = _array(name, values, np.int64)
    if given.shape != (count,):
        raise UserError(f"{name} has the shape {given.shape}; give ({count},)")
    choices = list(allowed)
    if len(bad := np.setdiff1d(given, choices)):
        raise UserError(f"{name} is {int(bad[0])} somewhere; it may be {', '.join(map(str, choices))}")
    return given.astype(np.uint8)


def _flags(values: npt.ArrayLike | None, count: int) -> BoolArray:
    flags = np.zeros(count, np.bool_) if values is None else _array("in_no_label_zone", values, np.bool_)
    if flags.shape != (count,):
        raise UserError(f"in_no_label_zone has the shape {flags.shape}; give ({count},), one value for each point")
    return flags
