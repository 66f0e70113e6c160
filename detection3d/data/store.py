"""The prepared data set on disk, read frame by frame without decoding anything.

`Store` gives random access; `SegmentWriter` writes; `verify` re-reads everything against the checksums. The layout is
described in `detection3d.data.store_manifest`, the 11 bytes of a point in `detection3d.data.packing`. No torch here.
"""

from collections.abc import Collection, Sequence
from pathlib import Path

import google_crc32c
import numpy as np
import numpy.typing as npt

from detection3d.data import store_manifest as layout
from detection3d.data.packing import PackedArrays, unpack_arrays
from detection3d.data.store_manifest import (
    LeftOut,
    Manifest,
    SegmentRecord,
    SourceRecord,
    StoreSettings,
    write_manifest,
)
from detection3d.data.store_segment import MappedSegment
from detection3d.data.store_writer import SegmentWriter
from detection3d.errors import DataError, UserError
from detection3d.types.scene import BoolArray, Boxes, Float64Array, Frame

__all__ = [
    "LeftOut",
    "Manifest",
    "SegmentRecord",
    "SegmentWriter",
    "SourceRecord",
    "Store",
    "StoreSettings",
    "verify",
    "write_manifest",
]


class Store:
    """Frames of a prepared data set, numbered from 0 over all segments; make one with `Store.open`.

    Segments are mapped when a frame of theirs is first asked for, and the checksums of their tables compared. Those of
    the points are left to `verify`: a flipped bit in points.bin goes unnoticed here and moves a point. A pickled store
    holds names and counts alone, and maps the files anew where it is unpickled; a fork may go on with the maps it has.

    Args:
        root: the store's folder.
        names: names of the S segments.
        frames: int64 [S], frames of each.
        settings: the choices at its preparation.
    """

    def __init__(
        self, root: Path, names: tuple[str, ...], frames: np.ndarray, settings: StoreSettings | None = None
    ) -> None:
        self.root = root
        self.settings = settings or StoreSettings()
        self._names = names
        self._frames = frames
        self._ends = np.cumsum(frames)
        self._segments: dict[int, MappedSegment] = {}

    @classmethod
    def open(cls, root: Path | str) -> "Store":
        """Open the store in a folder.

        Raises:
            DataError: it isn't there, isn't finished, is empty, or a file is missing or has another size than the
                manifest says.
        """
        root = Path(root)
        manifest = read_manifest(root)
        if not manifest.segments:
            raise DataError(root, "it holds no frames: its preparation could use none of its sources")
        for segment in manifest.segments:
            _check_sizes(root, segment)
        names = tuple(segment.context_name for segment in manifest.segments)
        frames = np.array([segment.frames for segment in manifest.segments], np.int64)
        return cls(root, names, frames, manifest.settings)

    def __len__(self) -> int:
        """Number of frames."""
        return int(self._ends[-1]) if len(self._ends) else 0

    def __reduce__(self) -> tuple:
        return Store, (self.root, self._names, self._frames, self.settings)

    def require(self, returns: Sequence[int], point_range: Sequence[float], sweeps: int = 1) -> None:
        """Check that the store has all that is wanted of it.

        Args:
            returns: lidar returns.
            point_range: metres, x, y, z of the lower corner and of the upper one.
            sweeps: frames of a segment that are to be merged.

        Raises:
            UserError: it has not.
        """
        if sweeps > 1:
            self._require_motion(sweeps)
        reach, farthest = self.settings.reach, max(abs(point_range[axis]) for axis in (0, 1, 3, 4))
        if reach is not None and farthest > reach:
            raise UserError(
                f"model.point_range goes out to {farthest:g} m, but {self.root} was prepared with points out to"
                f" {reach:g} m; prepare it again with another --range, or none"
            )
        missing = [number for number in returns if number not in self.settings.returns]
        if missing:
            kept = ", ".join(map(str, self.settings.returns))
            raise UserError(
                f"data.returns asks for return {', '.join(map(str, missing))}, but {self.root} was prepared with return"
                f" {kept} only; set data.returns=[{kept}], or prepare it again with --returns"
            )

    def every(self, step: int) -> npt.NDArray[np.int64]:
        """Return the numbers of every `step`-th frame of each segment, from its first on."""
        starts = self._ends - self._frames
        return np.concatenate(
            [np.arange(start, end, step) for start, end in zip(starts, self._ends, strict=True)], dtype=np.int64
        )

    def holds(self, types: Collection[int], min_points: int) -> BoolArray:
        """Tell which frames have an object of one of these types with `min_points` or more: bool [frames].

        Maps every segment of the store, a thousand of them in a second or two.
        """
        return np.concatenate([self._map(number).holds(types, min_points) for number in range(len(self._names))])

    def sweeps(self, index: int, count: int) -> range:
        """Return the numbers of a frame and of those before it in its segment, newest first: up to `count`."""
        _, frame = self._locate(index)
        return range(index, index - min(count, frame + 1), -1)

    def key(self, index: int) -> tuple[str, int]:
        """Return `(context_name, timestamp_micros)` of a frame."""
        segment, frame = self._locate(index)
        return self._names[segment], int(self._map(segment).timestamps[frame])

    def packed(self, index: int) -> PackedArrays:
        """Return a frame's points as stored: read-only views of the memory map."""
        segment, frame = self._locate(index)
        return self._map(segment).packed(frame)

    def labels(self, index: int) -> Boxes | None:
        """Return a frame's labels as read-only views; None where it has none."""
        segment, frame = self._locate(index)
        return self._map(segment).labels(frame)

    def pose(self, index: int) -> Float64Array:
        """Return a frame's pose, float64 [4, 4], vehicle to global, as a read-only view."""
        segment, frame = self._locate(index)
        return self._map(segment).pose(frame)

    def frame(self, index: int) -> Frame:
        """Return a whole frame, its points turned back into floats."""
        number, frame = self._locate(index)
        segment = self._map(number)
        points, lidar, return_number, in_no_label_zone = unpack_arrays(segment.packed(frame))
        context = segment.context(frame)
        return Frame(
            context_name=self._names[number],
            timestamp_micros=int(segment.timestamps[frame]),
            pose=segment.pose(frame),
            points=points,
            lidar=lidar,
            return_number=return_number,
            in_no_label_zone=in_no_label_zone,
            labels=segment.labels(frame),
            no_label_zones=context.no_label_zones,
            time_of_day=context.time_of_day,
            location=context.location,
            weather=context.weather,
        )

    def _require_motion(self, sweeps: int) -> None:
        if self._frames.max() == 1:
            raise UserError(f"data.sweeps is {sweeps}, but every segment of {self.root} is a single frame; set 1")
        for number in np.flatnonzero(self._frames > 1).tolist():
            if self._map(number).has_no_poses():
                raise UserError(
                    f"data.sweeps is {sweeps}, but the frames of {self._names[number]} in {self.root} have no poses by"
                    " which to merge them (all are the identity); set 1, or leave the segment out of the store"
                )

    def _locate(self, index: int) -> tuple[int, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"frame {index} of a store of {len(self)} frames")
        segment = int(np.searchsorted(self._ends, index, side="right"))
        return segment, int(index - self._ends[segment] + self._frames[segment])

    def _map(self, number: int) -> MappedSegment:
        segment = self._segments.get(number)
        if segment is None:
            folder = self.root / layout.SEGMENTS / self._names[number]
            segment = MappedSegment(folder)
            if len(segment) != self._frames[number]:
                reason = f"{len(segment)} frames, the manifest says {self._frames[number]}; {layout.AGAIN}"
                raise DataError(folder, reason)
            self._segments[number] = segment
        return segment


def read_manifest(root: Path) -> Manifest:
    """Read the manifest of a store.

    Raises:
        DataError: there is no store in the folder, or its manifest is damaged.
    """
    if root.is_file():
        raise DataError(root, "it is a file; give the folder of a store made by tools/prepare_waymo.py")
    if not root.is_dir():
        raise DataError(root, "there is no such folder; give that of a store made by tools/prepare_waymo.py")
    try:
        return layout.read_record(root / layout.MANIFEST, Manifest)
    except FileNotFoundError as error:
        if (root / layout.SEGMENTS).is_dir():
            raise DataError(root, f"its preparation did not finish; {layout.AGAIN}") from error
        reason = f"no {layout.MANIFEST} in it, so it is not a prepared store; make one with tools/prepare_waymo.py"
        raise DataError(root, reason) from error


def verify(root: Path | str) -> list[DataError]:
    """Read every byte of a store and compare it with the checksums.

    Args:
        root: the store's folder.

    Returns:
        What is wrong, one error for each damaged or missing file, and for each segment that the manifest doesn't list;
        empty for a sound store.

    Raises:
        DataError: there is no finished store in the folder.
    """
    root = Path(root)
    manifest = read_manifest(root)
    problems = _unlisted(root, manifest)
    for segment in manifest.segments:
        folder = root / layout.SEGMENTS / segment.context_name
        try:
            if layout.read_record(folder / layout.SEGMENT_RECORD, SegmentRecord) != segment:
                reason = f"it disagrees with the store's {layout.MANIFEST}; {layout.AGAIN}"
                problems.append(DataError(folder / layout.SEGMENT_RECORD, reason))
        except FileNotFoundError:
            problems.append(
                DataError(folder / layout.SEGMENT_RECORD, f"it is missing; delete {folder} and {layout.AGAIN}")
            )
        except DataError as error:
            problems.append(error)
        except OSError as error:
            reason = f"can't be read ({error.strerror}); delete {folder} and {layout.AGAIN}"
            problems.append(DataError(folder / layout.SEGMENT_RECORD, reason))
        for name, expected in segment.files.items():
            problem = _compare(folder / name, expected)
            if problem is not None:
                problems.append(problem)
    return problems


def _unlisted(root: Path, manifest: Manifest) -> list[DataError]:
    # While a preparation is unfinished, segments are ahead of the manifest.
    if (root / layout.UNFINISHED).exists() or not (root / layout.SEGMENTS).is_dir():
        return []
    listed = {segment.context_name for segment in manifest.segments}
    return [
        DataError(path, f"the store's {layout.MANIFEST} doesn't list this segment; {layout.AGAIN}")
        for path in sorted((root / layout.SEGMENTS).iterdir())
        if not path.name.startswith(".") and path.name not in listed
    ]


def _check_sizes(root: Path, segment: SegmentRecord) -> None:
    folder = root / layout.SEGMENTS / segment.context_name
    # An interrupted preparation may have replaced the segment and not come to the manifest: then the segment is sound.
    interrupted = (root / layout.UNFINISHED).exists()
    way_out = layout.AGAIN if interrupted else f"delete {folder} and {layout.AGAIN}"
    for name, expected in segment.files.items():
        path = folder / name
        try:
            size = path.stat().st_size
        except (FileNotFoundError, NotADirectoryError) as error:
            raise DataError(path, f"it is missing; {way_out}") from error
        if size != expected.size:
            raise DataError(path, f"{size} bytes, the manifest says {expected.size}; {way_out}")


def _compare(path: Path, expected: layout.FileRecord) -> DataError | None:
    checksum, size = 0, 0
    try:
        with path.open("rb") as file:
            while block := file.read(1 << 22):
                checksum = google_crc32c.extend(checksum, block)
                size += len(block)
    except OSError as error:
        return DataError(path, f"can't be read ({error.strerror}); delete {path.parent} and {layout.AGAIN}")
    if (size, checksum) == (expected.size, expected.crc32c):
        return None
    reason = f"{size} bytes with CRC-32C {checksum:08x}, expected {expected.size} with {expected.crc32c:08x}"
    return DataError(path, f"{reason}; delete {path.parent} and {layout.AGAIN}")
