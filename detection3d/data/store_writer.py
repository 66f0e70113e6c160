"""Write one segment of a prepared store, whole or not at all.

The layout is described in `detection3d.data.store_manifest`.
"""

import contextlib
import os
import shutil
from pathlib import Path
from types import TracebackType
from typing import Self

import google_crc32c
import numpy as np

from detection3d.data import store_manifest as layout
from detection3d.data.label_check import unusable_label
from detection3d.data.packing import PackingLosses, pack
from detection3d.data.store_files import point_blocks, write_table
from detection3d.data.store_tables import box_table, frame_table
from detection3d.errors import DataError, UserError
from detection3d.files import flush_folder
from detection3d.geometry.host.poses import is_rigid
from detection3d.types.scene import Frame


def is_segment_name(name: object) -> bool:
    """Tell whether a segment may have this name: it becomes that of a folder."""
    return isinstance(name, str) and bool(name) and not name.startswith(".") and "/" not in name and "\0" not in name


class SegmentWriter:
    """Collects the frames of a segment and publishes them by one rename.

    Use it as a context manager: the segment appears when the block ends well, and nothing is left behind when it
    raises. A killed process leaves a hidden folder that no reader looks at; the next preparation removes it.

    Args:
        root: the store's folder; made if it is missing.
        context_name: the segment's name, which becomes a folder's name.
        source: where the frames come from, recorded so that a later preparation can skip them.
        settings: the choices of the whole store, such as which returns to keep.
        replace: whether a segment of this name may be there already.

    Raises:
        DataError: the name can't be that of a folder, or is taken.
    """

    def __init__(
        self,
        root: Path,
        context_name: str,
        source: layout.SourceRecord | None = None,
        settings: layout.StoreSettings | None = None,
        *,
        replace: bool = False,
    ) -> None:
        if not is_segment_name(context_name):
            raise DataError(root, f"context name {context_name!r} can't name a folder; it needs a character, no slash")
        self._context_name = context_name
        self._source = source
        self._settings = settings or layout.StoreSettings()
        self._replace = replace
        self._folder = root / layout.SEGMENTS
        self._final = self._folder / context_name
        self._refuse_existing()
        self._temporary = self._folder / f".{context_name}.{os.getpid()}"

        self._frames: list[Frame] = []  # without their points
        self._places: list[tuple[int, int]] = []  # byte offset and number of points
        self._checksums: list[int] = []
        self._losses = PackingLosses()
        self._size = 0
        self._checksum = 0

    def __enter__(self) -> Self:
        if self._temporary.exists():
            shutil.rmtree(self._temporary)
        self._temporary.mkdir(parents=True)
        # Unbuffered: a frame is one large write, and a full disk shows at the frame that it stopped.
        self._file = (self._temporary / layout.POINTS).open("wb", buffering=0)
        try:
            self._append(layout.POINTS_MAGIC)
        except BaseException:
            self._clean_up()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self._publish()
        finally:
            self._clean_up()

    @property
    def frames(self) -> int:
        """Number of frames added so far."""
        return len(self._frames)

    @property
    def points(self) -> int:
        """Number of points kept so far."""
        return sum(count for _, count in self._places)

    @property
    def losses(self) -> PackingLosses:
        """Points that could not be kept so far."""
        return self._losses

    def add(self, frame: Frame) -> None:
        """Append a frame; frames are numbered in the order of the calls.

        Args:
            frame: a frame of this segment, one of those that the settings want. It may have no points and no boxes;
                labels may be None.

        Raises:
            DataError: the frame belongs to another segment, is not later than the one before, or holds unusable values.
                The record is the frame's number in the segment.
            OSError: it can't be written.
        """
        record = len(self._frames) * self._settings.every
        try:
            self._check(frame)
            packed, losses = pack(frame, self._settings.returns, self._settings.reach)
        except UserError as error:
            raise DataError(self._name_of_source(), str(error), record) from error
        blocks = point_blocks(packed)
        self._checksums.append(google_crc32c.value(blocks))
        self._places.append((self._size, len(packed)))
        self._append(blocks)
        self._append(b"\0" * (-self._size % len(layout.POINTS_MAGIC)))
        self._frames.append(_without_points(frame))
        self._losses += losses

    def _check(self, frame: Frame) -> None:
        if frame.context_name != self._context_name:
            raise UserError(f"it belongs to segment {frame.context_name!r}, the ones before to {self._context_name!r}")
        latest = self._frames[-1].timestamp_micros if self._frames else None
        if frame.timestamp_micros == latest:
            raise UserError(f"timestamp {latest} occurs twice; the file is damaged")
        if latest is not None and frame.timestamp_micros < latest:
            raise UserError(f"timestamp {frame.timestamp_micros} comes after {latest}; frames must be in order of time")
        if frame.pose.shape != (4, 4) or not np.isfinite(frame.pose).all() or not is_rigid(frame.pose):
            raise UserError(f"the pose isn't a rotation and a translation, [4, 4]: {frame.pose.tolist()}")
        fault = None if frame.labels is None else unusable_label(frame.labels)
        if fault is not None:
            raise UserError(fault)

    def _append(self, content: bytes) -> None:
        view = memoryview(content)
        while view:
            view = view[self._file.write(view) :]
        self._size += len(content)
        self._checksum = google_crc32c.extend(self._checksum, content)

    def _publish(self) -> None:
        if not self._frames:
            raise DataError(self._name_of_source(), "it holds no frames")
        os.fsync(self._file.fileno())
        self._file.close()
        labels = [frame.labels for frame in self._frames]
        frames = frame_table(self._frames, self._places, self._checksums)
        record = layout.SegmentRecord(
            context_name=self._context_name,
            frames=len(self._frames),
            points=self.points,
            boxes=sum(len(boxes) for boxes in labels if boxes is not None),
            losses=layout.LossRecord(
                out_of_range=self._losses.out_of_range,
                not_finite=self._losses.not_finite,
                clipped=self._losses.clipped,
            ),
            source=self._source,
            settings=self._settings,
            files={
                layout.POINTS: layout.FileRecord(size=self._size, crc32c=self._checksum),
                layout.FRAMES: write_table(self._temporary / layout.FRAMES, frames),
                layout.BOXES: write_table(self._temporary / layout.BOXES, box_table(labels)),
            },
        )
        layout.write_record(self._temporary / layout.SEGMENT_RECORD, record)
        self._refuse_existing()
        outdated = self._temporary.with_name(f"{self._temporary.name}.outdated")
        if self._replace and self._final.exists():
            self._final.rename(outdated)
        self._temporary.rename(self._final)
        flush_folder(self._folder)
        shutil.rmtree(outdated, ignore_errors=True)

    def _clean_up(self) -> None:
        with contextlib.suppress(OSError):
            self._file.close()
        shutil.rmtree(self._temporary, ignore_errors=True)

    def _refuse_existing(self) -> None:
        if not self._replace and self._final.exists():
            reason = (
                f"segment {self._context_name!r} is in the store already, from another source; remove one of the two"
            )
            raise DataError(self._name_of_source(), reason)

    def _name_of_source(self) -> Path | str:
        return self._final if self._source is None else self._source.name


def _without_points(frame: Frame) -> Frame:
    """Return the frame without its point arrays, so that a segment's points don't pile up in memory."""
    return Frame(
        context_name=frame.context_name,
        timestamp_micros=frame.timestamp_micros,
        pose=frame.pose,
        points=np.zeros((0, 5), np.float32),
        lidar=np.zeros(0, np.uint8),
        return_number=np.zeros(0, np.uint8),
        in_no_label_zone=np.zeros(0, np.bool_),
        labels=frame.labels,
        no_label_zones=frame.no_label_zones,
        time_of_day=frame.time_of_day,
        location=frame.location,
        weather=frame.weather,
    )
