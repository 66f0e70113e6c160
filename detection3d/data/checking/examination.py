"""Read a recording and gather what speaks for or against it."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from detection3d.data.checking.clouds import Cloud, describe
from detection3d.data.checking.fitting import Fit, fit, no_fit
from detection3d.data.checking.frame_errors import Fault, Sequence, frame_faults
from detection3d.data.checking.motion import Moment, Motion, follow
from detection3d.data.preparation_task import Source
from detection3d.data.store_manifest import StoreSettings
from detection3d.errors import DataError, UserError, one_line
from detection3d.types.scene import Float64Array, Frame

_MOST_PROBLEMS = 5  # of a kind and recording, that are told one by one
_MOST_BOXES = 4000  # of a recording, whose sizes are kept
_FIRST, _EVERY = 5, 10  # the first frames, and then every so many, are looked at closely


@dataclass(frozen=True)
class Problem:
    """An error in the data.

    Attributes:
        recording: its name.
        frame: the frame's number in the recording; None for the recording as a whole.
        timestamp: the frame's, as stated.
        kind: a word to count by.
        message: what is wrong, and what to do.
    """

    recording: str
    frame: int | None
    timestamp: int | None
    kind: str
    message: str


@dataclass(frozen=True)
class Evidence:
    """What was seen of a recording.

    Attributes:
        recording: its name.
        frames: number of frames read.
        boxes: labelled objects in them.
        problems: errors, the first ones of each kind.
        counts: how many errors of each kind there are.
        clouds: of the frames that were looked at closely.
        fit: of the boxes in those.
        labels: float64 [K, 5], type, length, width, height and heading of boxes, as stated.
        motion: from frame to frame.
    """

    recording: str
    frames: int
    boxes: int
    problems: tuple[Problem, ...]
    counts: Counter[str]
    clouds: tuple[Cloud, ...]
    fit: Fit
    labels: Float64Array
    motion: Motion


def examine(source: Source, settings: StoreSettings) -> Evidence:
    """Read all frames of a source; what can't be read becomes a problem."""
    examiner = _Examiner(source.name, settings.every)
    try:
        for frame in source.frames(settings):
            examiner.look_at(frame)
    except DataError as error:
        where = "" if str(error.path) in (str(source.path), source.name) else f"{error.path}: "
        examiner.note(error.record, None, Fault("unreadable", f"{where}{error.reason}"))
    except (UserError, OSError) as error:
        examiner.note(None, None, Fault("unreadable", one_line(error)))
    if examiner.frames == 0 and not examiner.counts:
        examiner.note(None, None, Fault("empty", "it holds no frames; leave it out"))
    return examiner.evidence()


def examine_frame(frame: Frame) -> Evidence:
    """Look at one frame by itself, so that nothing is said of motion, times and tracks."""
    examiner = _Examiner(frame.context_name, 1)
    examiner.look_at(frame)
    return examiner.evidence()


class _Examiner:
    """Gathers evidence frame by frame."""

    def __init__(self, recording: str, every: int) -> None:
        self._recording = recording
        self._every = every
        self._sequence = Sequence()
        self.frames = 0
        self.counts: Counter[str] = Counter()
        self._boxes = 0
        self._problems: list[Problem] = []
        self._clouds: list[Cloud] = []
        self._fit = no_fit()
        self._labels: list[Float64Array] = []
        self._moments: list[Moment] = []

    def look_at(self, frame: Frame) -> None:
        """Take the next frame into account."""
        count, self.frames = self.frames, self.frames + 1
        number = count * self._every  # as the recording counts
        usable = True
        for fault in self._faults(number, frame):
            self.note(number, frame.timestamp_micros, fault)
            usable &= fault.usable
        if not usable:
            return
        self._moments.append(Moment.of(frame))
        labels = frame.labels
        if labels is not None:
            self._boxes += len(labels)
            self._labels.append(np.column_stack([labels.types, labels.boxes[:, 3:7]]).astype(np.float64))
        if count < _FIRST or count % _EVERY == 0:
            cloud = describe(frame.points)
            if cloud is not None:
                self._clouds.append(cloud)
            self._fit += fit(frame)

    def _faults(self, number: int, frame: Frame) -> Iterator[Fault]:
        usable = True
        for fault in frame_faults(frame):
            usable &= fault.kind not in ("form", "timestamp")
            yield fault
        if usable:
            yield from self._sequence.faults(number, frame)

    def note(self, frame: int | None, timestamp: int | None, fault: Fault) -> None:
        """Write an error down."""
        self.counts[fault.kind] += 1
        if self.counts[fault.kind] <= _MOST_PROBLEMS:
            self._problems.append(Problem(self._recording, frame, timestamp, fault.kind, fault.message))

    def evidence(self) -> Evidence:
        """Return what was gathered."""
        labels = np.concatenate([np.zeros((0, 5)), *self._labels])
        return Evidence(
            self._recording,
            self.frames,
            self._boxes,
            tuple(self._problems),
            self.counts,
            tuple(self._clouds),
            self._fit,
            labels[:: max(1, -(-len(labels) // _MOST_BOXES))],
            follow(self._moments),
        )
