"""Objects of any number of files, put together frame by frame."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from detection3d.evaluation.files.objects_stream import FrameKey, Piece
from detection3d.evaluation.files.wire_objects import ObjectRows

_COLUMNS = ("floats", "integers", "present")


@dataclass(frozen=True)
class ObjectTable:
    """Objects sorted by frame, F frames; within a frame they stand as they were read.

    Attributes:
        keys: `(context_name, timestamp_micros)` of the frames, in the order in which they first occur.
        offsets: int64 [F + 1], where each frame's objects begin.
        rows: all objects.
    """

    keys: list[FrameKey]
    offsets: npt.NDArray[np.int64]
    rows: ObjectRows

    def frames(self) -> Iterator[tuple[FrameKey, int, int]]:
        """Yield each frame's key and the bounds of its rows."""
        bounds = self.offsets.tolist()
        yield from zip(self.keys, bounds[:-1], bounds[1:], strict=True)


def collect(pieces: list[Piece]) -> ObjectTable:
    """Sort objects by frame.

    Args:
        pieces: at least one, in the order that is to count within a frame. The list is emptied, so that its memory can
            go.

    Returns:
        All of their objects.
    """
    index: dict[FrameKey, int] = {}
    runs = [[index.setdefault(key, len(index)) for key in piece.keys] for piece in pieces]
    frame_of = np.concatenate(
        [
            np.repeat(np.array(run, np.int32), np.diff(piece.starts, append=len(piece.rows.present)))
            for run, piece in zip(runs, pieces, strict=True)
        ]
    )
    floats, integers, present = ([getattr(piece.rows, name) for piece in pieces] for name in _COLUMNS)
    pieces.clear()
    order = None
    if np.any(frame_of[1:] < frame_of[:-1]):
        order = np.argsort(frame_of, kind="stable")
    offsets = np.zeros(len(index) + 1, np.int64)
    np.cumsum(np.bincount(frame_of, minlength=len(index)), out=offsets[1:])
    return ObjectTable(
        keys=list(index),
        offsets=offsets,
        rows=ObjectRows(_stack(floats, order), _stack(integers, order), _stack(present, order)),
    )


def _stack(parts: list[np.ndarray], order: np.ndarray | None) -> np.ndarray:
    stacked = np.concatenate(parts)
    parts.clear()
    return stacked if order is None else stacked[order]
