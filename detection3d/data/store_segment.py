"""One segment of a prepared store, memory-mapped."""

from dataclasses import dataclass
from pathlib import Path

import google_crc32c
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from detection3d.data import store_manifest as layout
from detection3d.data.packing import BYTES_PER_POINT, PackedArrays
from detection3d.data.store_tables import BOX_SCHEMA, FRAME_SCHEMA
from detection3d.errors import DataError
from detection3d.types.scene import Boxes, Float64Array


@dataclass(frozen=True)
class FrameContext:
    """What a frame's row says besides points and boxes; the fields are those of `Frame`."""

    no_label_zones: tuple[Float64Array, ...]
    time_of_day: str
    location: str
    weather: str


class MappedSegment:
    """Views into a segment's files; reading a frame copies nothing and decodes nothing.

    The maps hold no file descriptor, so a store of a thousand segments doesn't run into the limit of open files. They
    are read-only and stay valid in a forked process.

    Args:
        folder: the segment's folder.

    Raises:
        DataError: a file is missing, cut or not what it should be, or the checksum of a table disagrees.
    """

    def __init__(self, folder: Path) -> None:
        record = _read_record(folder)
        self._points = _map(folder / layout.POINTS)
        self._frame_table = _read_table(folder / layout.FRAMES, FRAME_SCHEMA, record)
        self._box_table = _read_table(folder / layout.BOXES, BOX_SCHEMA, record)
        self.timestamps = _values(self._frame_table, "timestamp_micros")
        self._poses = _values(self._frame_table, "pose").reshape(-1, 4, 4)
        self._offsets = _values(self._frame_table, "points_offset")
        self._counts = _values(self._frame_table, "points_count")
        self._box_offsets = _values(self._frame_table, "boxes_offset")
        self._box_counts = _values(self._frame_table, "boxes_count")
        self._has_labels = _values(self._frame_table, "has_labels")
        self._boxes = _values(self._box_table, "box").reshape(-1, 7)
        self._types = _values(self._box_table, "type")
        self._difficulty = _values(self._box_table, "difficulty")
        self._num_points = _values(self._box_table, "num_points")
        self._velocity = _values(self._box_table, "velocity").reshape(-1, 3)
        self._acceleration = _values(self._box_table, "acceleration").reshape(-1, 3)
        self._check(folder)

    def __len__(self) -> int:
        """Number of frames."""
        return len(self.timestamps)

    def packed(self, frame: int) -> PackedArrays:
        """Return read-only views of a frame's points."""
        offset, count = int(self._offsets[frame]), int(self._counts[frame])
        return PackedArrays(
            xyz=np.frombuffer(self._points, np.int16, 3 * count, offset).reshape(count, 3),
            features=np.frombuffer(self._points, np.float16, 2 * count, offset + 6 * count).reshape(count, 2),
            flags=np.frombuffer(self._points, np.uint8, count, offset + 10 * count),
        )

    def pose(self, frame: int) -> Float64Array:
        """Return a read-only view of a frame's pose, [4, 4], vehicle to global."""
        return self._poses[frame]

    def labels(self, frame: int) -> Boxes | None:
        """Return read-only views of a frame's labels; None where it has none."""
        if not self._has_labels[frame]:
            return None
        start, count = int(self._box_offsets[frame]), int(self._box_counts[frame])
        rows = slice(start, start + count)
        return Boxes(
            boxes=self._boxes[rows],
            types=self._types[rows],
            ids=tuple(self._box_table["id"].slice(start, count).to_pylist()),
            difficulty=self._difficulty[rows],
            num_points=self._num_points[rows],
            velocity=self._velocity[rows],
            acceleration=self._acceleration[rows],
        )

    def context(self, frame: int) -> FrameContext:
        """Return a frame's no-label zones and circumstances."""
        row = self._frame_table.select(["no_label_zones", "time_of_day", "location", "weather"]).slice(frame, 1)
        values = row.to_pylist()[0]
        zones = tuple(np.array(zone, np.float64).reshape(-1, 2) for zone in values.pop("no_label_zones"))
        return FrameContext(no_label_zones=zones, **values)

    def _check(self, folder: Path) -> None:
        """Refuse a table that points outside the other files, which a read would turn into an obscure error."""
        ends = self._offsets + self._counts * BYTES_PER_POINT
        inside = (self._offsets >= 0) & (self._counts >= 0) & (ends <= self._points.size)
        box_ends = self._box_offsets + self._box_counts
        inside &= (self._box_offsets >= 0) & (self._box_counts >= 0) & (box_ends <= len(self._boxes))
        if not inside.all():
            reason = f"it points outside the segment's other files; delete {folder} and {layout.AGAIN}"
            raise DataError(folder / layout.FRAMES, reason, int(np.flatnonzero(~inside)[0]))


def _read_record(folder: Path) -> layout.SegmentRecord:
    path = folder / layout.SEGMENT_RECORD
    try:
        return layout.read_record(path, layout.SegmentRecord)
    except OSError as error:
        raise DataError(path, f"can't be read ({error.strerror}); delete {folder} and {layout.AGAIN}") from error


def _map(path: Path) -> pa.Buffer:
    try:
        # Closing the file gives its descriptor back; the map lives as long as the buffer.
        with pa.memory_map(str(path)) as file:
            return file.read_buffer()
    except (OSError, pa.ArrowException) as error:
        raise DataError(path, f"can't be mapped ({error}); delete {path.parent} and {layout.AGAIN}") from error


def _read_table(path: Path, schema: pa.Schema, record: layout.SegmentRecord) -> pa.RecordBatch:
    content = _map(path)
    # Arrow believes what a file says of itself: a flipped bit in it would end the process by a signal. The points have
    # no such numbers in them, and reading them all here would cost what mapping saves.
    expected = record.files.get(path.name)
    if expected is None or google_crc32c.value(content.to_pybytes()) != expected.crc32c:
        raise DataError(path, f"its checksum disagrees; delete {path.parent} and {layout.AGAIN}")
    try:
        # Without threads, so that a process that forks later has none of Arrow's.
        options = pa.ipc.IpcReadOptions(use_threads=False)
        reader = pa.ipc.open_file(content, options=options)
        batch = reader.get_batch(0) if reader.num_record_batches == 1 else None
        if reader.num_record_batches == 0:  # Arrow writes no batch for a segment without any box
            batch = pa.RecordBatch.from_pylist([], schema=reader.schema)
    except (OSError, pa.ArrowException) as error:
        raise DataError(path, f"not an Arrow file ({error}); delete {path.parent} and {layout.AGAIN}") from error
    if batch is None or batch.schema != schema:
        raise DataError(path, f"not a table of a prepared store; delete {path.parent} and {layout.AGAIN}")
    return batch


def _values(table: pa.RecordBatch, column: str) -> npt.NDArray:
    """View a column in place; that of a list of fixed size comes flat."""
    array = table[column]
    if pa.types.is_fixed_size_list(array.type):
        array = array.flatten()
    return array.to_numpy(zero_copy_only=True)
