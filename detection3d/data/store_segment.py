"""One segment of a prepared store, memory-mapped."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from detection3d.data import store_manifest as layout
from detection3d.data.packing import BYTES_PER_POINT, PackedArrays
from detection3d.data.store_files import column_values, map_file, read_table, view_points
from detection3d.data.store_tables import BOX_SCHEMA, FRAME_SCHEMA
from detection3d.errors import DataError
from detection3d.types.scene import BoolArray, Boxes, Float64Array


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
        self._points = map_file(folder / layout.POINTS)
        self._frame_table = read_table(folder / layout.FRAMES, FRAME_SCHEMA, record.files.get(layout.FRAMES))
        self._box_table = read_table(folder / layout.BOXES, BOX_SCHEMA, record.files.get(layout.BOXES))
        self.timestamps = column_values(self._frame_table, "timestamp_micros")
        self._poses = column_values(self._frame_table, "pose").reshape(-1, 4, 4)
        self._offsets = column_values(self._frame_table, "points_offset")
        self._counts = column_values(self._frame_table, "points_count")
        self._box_offsets = column_values(self._frame_table, "boxes_offset")
        self._box_counts = column_values(self._frame_table, "boxes_count")
        self._has_labels = column_values(self._frame_table, "has_labels")
        self._boxes = column_values(self._box_table, "box").reshape(-1, 7)
        self._types = column_values(self._box_table, "type")
        self._difficulty = column_values(self._box_table, "difficulty")
        self._num_points = column_values(self._box_table, "num_points")
        self._velocity = column_values(self._box_table, "velocity").reshape(-1, 3)
        self._acceleration = column_values(self._box_table, "acceleration").reshape(-1, 3)
        self._check(folder)

    def __len__(self) -> int:
        """Number of frames."""
        return len(self.timestamps)

    def packed(self, frame: int) -> PackedArrays:
        """Return read-only views of a frame's points."""
        offset, count = int(self._offsets[frame]), int(self._counts[frame])
        return view_points(self._points, offset, count)

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

    def has_no_poses(self) -> bool:
        """Tell whether every pose is the identity, which stands for one that isn't known."""
        return bool((self._poses == np.eye(4)).all())

    def holds(self, types: Collection[int], min_points: int) -> BoolArray:
        """Tell which frames have an object of one of these types with `min_points` or more."""
        suitable = np.isin(self._types, list(types)) & (self._num_points >= min_points)
        up_to = np.concatenate([[0], np.cumsum(suitable)])
        return up_to[self._box_offsets + self._box_counts] > up_to[self._box_offsets]

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
