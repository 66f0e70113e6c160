"""Waymo v2: the frames of a segment, joined from its components.

Rows of the components stand in any order and are joined by their keys. A frame is yielded as soon as the last of its
range images has been read, so that files in the order of time, as Waymo writes them, take the memory of a few frames.

v2 has no polygons of no-label zones; the points' own flags are the same as in v1.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Container, Hashable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from detection3d.data.waymo.completeness import SameScans, refuse_missing_lidars
from detection3d.data.waymo.component_labels import (
    NEEDED_COLUMNS,
    OPTIONAL_COLUMNS,
    SYNCED,
    SYNCED_COLUMNS,
    boxes_of_rows,
)
from detection3d.data.waymo.components import (
    LASER,
    OBJECT,
    SEGMENT,
    TIMESTAMP,
    ComponentFile,
    as_lidar,
    as_matrix,
    as_numbers,
)
from detection3d.data.waymo.pose import rigid_pose
from detection3d.data.waymo.range_image import POSE_CHANNELS, RANGE_CHANNELS, make_calibration
from detection3d.data.waymo.scan import RETURNS, ScanPart, join_parts, scan_name, scan_part
from detection3d.errors import DataError
from detection3d.types.scene import Boxes, Float32Array, Float64Array, Frame, Lidar, LidarCalibration, empty_boxes

LIDAR = "lidar"
_POSE = "lidar_pose"
_CALIBRATION = "lidar_calibration"
_BOX = "lidar_box"
_SYNCED = "lidar_camera_synced_box"
_VEHICLE = "vehicle_pose"
_STATS = "stats"
COMPONENTS = (LIDAR, _POSE, _CALIBRATION, _BOX, _SYNCED, _VEHICLE, _STATS)
"""Components that are read; labels, camera-synced boxes and stats may be absent from a whole data set."""

_EXTRINSIC = "[LiDARCalibrationComponent].extrinsic.transform"
_INCLINATION = "[LiDARCalibrationComponent].beam_inclination."
_TRANSFORM = "[VehiclePoseComponent].world_from_vehicle.transform"
_STATS_COLUMNS = tuple(f"[StatsComponent].{name}" for name in ("time_of_day", "location", "weather"))


def component_files(path: Path) -> dict[str, Path]:
    """Return the files of a segment by component, given the one of `lidar`; those that don't exist are left out.

    Raises:
        DataError: the data set has a component, but not for this segment.
    """
    files = {}
    for name in COMPONENTS:
        file = path.parent.parent / name / path.name
        if file.exists():
            files[name] = file
        elif file.parent.is_dir():
            raise DataError(file, f"there is no such file, though {file.parent.name} has others; get it, too")
    return files


def read_component_segment(path: Path | str, returns: Sequence[int] = RETURNS, every: int = 1) -> Iterator[Frame]:
    """Yield the frames of a segment in the order of time.

    Args:
        path: its parquet file of the component `lidar`; the others lie in folders beside this one's.
        returns: which of the returns 1 and 2 to read.
        every: read every so many frames, from the first on.

    Raises:
        DataError: a component is missing or damaged, or rows of one have no counterpart in another.
        ValueError: a return other than 1 and 2.
    """
    if not set(returns) <= set(RETURNS):
        raise ValueError(f"returns {tuple(returns)}: a lidar of Waymo's has returns 1 and 2")
    files = component_files(Path(path))
    numbers = tuple(sorted(set(returns)))
    columns = [column for number in numbers for column in _image_columns(number)]
    scans = _Scans(ComponentFile(Path(path), (SEGMENT, TIMESTAMP, LASER, *columns)))
    waiting = list(scans.lidars)[::every]
    wanted = frozenset(waiting)
    segment = _Segment(files, Path(path), scans, wanted)
    parts: dict[int, list[ScanPart]] = defaultdict(list)
    same_scans = SameScans()
    for row, timestamp, lidar, images in scans.read(numbers, wanted):
        with scans.file.naming(row):
            parts[timestamp] += segment.decode(timestamp, lidar, images)
        scans.lidars[timestamp].discard(lidar)
        while waiting and not scans.lidars[waiting[0]]:
            done = waiting.pop(0)
            ready = parts.pop(done)
            with scans.file.naming(prefix=f"frame {done}: "):
                same_scans.check({(part.lidar, part.return_number) for part in ready})
            yield segment.frame(done, ready)


def count_component_frames(path: Path | str) -> int:
    """Return the number of frames of a segment, from the keys of its component `lidar`.

    Raises:
        DataError: it can't be read.
    """
    return len(_Scans(ComponentFile(Path(path), (SEGMENT, TIMESTAMP, LASER))).lidars)


class _Scans:
    """The component `lidar`: which range images there are, and they themselves.

    Attributes:
        file: the component.
        name: of the segment.
        lidars: by timestamp, ascending, the lidars that are still to come.
    """

    def __init__(self, file: ComponentFile) -> None:
        self.file = file
        self.name = ""
        found: dict[int, set[Lidar]] = defaultdict(set)
        for row, key in enumerate(file.values((SEGMENT, TIMESTAMP, LASER))):
            self.name = self.name or str(key[SEGMENT])
            if key[SEGMENT] != self.name:
                raise file.problem(f"it holds rows of the segments {self.name} and {key[SEGMENT]}", row)
            timestamp, lidar = int(key[TIMESTAMP]), _lidar(file, key[LASER], row)
            if lidar in found[timestamp]:
                raise file.problem(f"frame {timestamp} has two rows of {lidar.name}", row)
            found[timestamp].add(lidar)
        if not found:
            raise DataError(file.path, "it holds no rows")
        self.lidars = dict(sorted(found.items()))

    def read(
        self, returns: Sequence[int], wanted: Container[int]
    ) -> Iterator[tuple[int, int, Lidar, dict[int, Float32Array]]]:
        """Yield row, timestamp, lidar, and its range images by return, for the wanted timestamps."""
        columns = [column for number in returns for column in _image_columns(number)]
        for row, values in enumerate(self.file.rows((TIMESTAMP, LASER, *columns))):
            timestamp = int(values[TIMESTAMP].as_py())
            if timestamp not in wanted:
                continue
            lidar = _lidar(self.file, values[LASER].as_py(), row)
            images = {}
            for number in returns:
                name = f"{scan_name(lidar, number)}: the range image"
                numbers, shape = (values[column] for column in _image_columns(number))
                with self.file.naming(row):
                    image = as_matrix(numbers, shape, RANGE_CHANNELS, name)
                if image is not None:
                    images[number] = image
            yield row, timestamp, lidar, images


class _Segment:
    """All components but the range images."""

    def __init__(self, files: dict[str, Path], path: Path, scans: _Scans, wanted: frozenset[int]) -> None:
        self.name = scans.name
        self._scans = scans
        # Where a component is missing, opening it says so, and where it should lie.
        where = {name: files.get(name, path.parent.parent / name / path.name) for name in COMPONENTS}
        self._calibrations = self._read_calibrations(ComponentFile(where[_CALIBRATION], (SEGMENT, LASER, _EXTRINSIC)))
        self._poses = self._read_poses(ComponentFile(where[_VEHICLE], (SEGMENT, TIMESTAMP, _TRANSFORM)))
        self._labels = self._read_labels(files.get(_BOX), files.get(_SYNCED))
        self._stats = self._read_stats(files.get(_STATS))
        with scans.file.naming():
            refuse_missing_lidars(self._calibrations.keys(), set().union(*scans.lidars.values()))
        has_top = any(Lidar.TOP in lidars for lidars in scans.lidars.values())
        self._pixel_poses = _PixelPoses(where[_POSE], self, wanted) if has_top else None

    def decode(self, timestamp: int, lidar: Lidar, images: dict[int, Float32Array]) -> list[ScanPart]:
        """Return the points of one lidar's range images."""
        pixel_pose = self._pixel_poses.take(timestamp) if lidar == Lidar.TOP and self._pixel_poses else None
        inverse = np.asarray(np.linalg.inv(self._poses[timestamp]), np.float64)
        calibration = self._calibrations.get(lidar)
        return [
            scan_part(int(lidar), number, image, calibration, pixel_pose, inverse) for number, image in images.items()
        ]

    def frame(self, timestamp: int, parts: Sequence[ScanPart]) -> Frame:
        """Join what belongs to a frame."""
        points, lidar, return_number, in_zone = join_parts(parts)
        time_of_day, location, weather = self._stats.get(timestamp, ("", "", ""))
        return Frame(
            context_name=self.name,
            timestamp_micros=timestamp,
            pose=self._poses[timestamp],
            points=points,
            lidar=lidar,
            return_number=return_number,
            in_no_label_zone=in_zone,
            labels=None if self._labels is None else self._labels.get(timestamp, empty_boxes()),
            time_of_day=time_of_day,
            location=location,
            weather=weather,
            calibrations={int(lidar): calibration for lidar, calibration in self._calibrations.items()},
        )

    def check_keys(self, file: ComponentFile, rows: Iterable[tuple[Any, Hashable]], *, all_frames: bool) -> None:
        """Refuse rows of another segment, keys that occur twice, and frames that only one side has.

        Args:
            file: the component.
            rows: the segment and the rest of the key of each row, which is the timestamp or begins with it.
            all_frames: whether each frame must have a row.
        """
        keys: list[Hashable] = []
        for row, (segment, key) in enumerate(rows):
            if segment != self.name:
                raise file.problem(f"it holds a row of the segment {segment}, {LIDAR} those of {self.name}", row)
            keys.append(key)
        twice = [key for key, count in Counter(keys).items() if count > 1]
        if twice:
            raise file.problem(f"the key {twice[0]} occurs more than once")
        if not all_frames:
            return
        frames = {key[0] if isinstance(key, tuple) else key for key in keys}
        missing = [timestamp for timestamp in self._scans.lidars if timestamp not in frames]
        if missing:
            raise file.problem(f"{len(missing)} frames of {LIDAR} have no row here, the first is {missing[0]}")

    def check_frames(self, file: ComponentFile, timestamps: Iterable[int]) -> None:
        """Refuse rows of frames that have no range image: their frames would be missing from the data in silence."""
        surplus = sorted({timestamp for timestamp in timestamps if timestamp not in self._scans.lidars})
        if surplus:
            raise file.problem(f"{len(surplus)} of its frames have no row in {LIDAR}, the first is {surplus[0]}")

    def _read_calibrations(self, file: ComponentFile) -> dict[Lidar, LidarCalibration]:
        names = [f"{_INCLINATION}{name}" for name in ("values", "min", "max")]
        rows = file.values((SEGMENT, LASER, _EXTRINSIC, *names))
        lidars = [_lidar(file, row[LASER], number) for number, row in enumerate(rows)]
        keys = zip((row[SEGMENT] for row in rows), lidars, strict=True)
        self.check_keys(file, keys, all_frames=False)
        calibrations = {}
        for number, (lidar, row) in enumerate(zip(lidars, rows, strict=True)):
            with file.naming(number):
                extrinsic = rigid_pose(as_numbers(row[_EXTRINSIC]), f"{lidar.name}: the calibration's extrinsic")
                values, low, high = (as_numbers(row[name]) for name in names)
            calibrations[lidar] = make_calibration(extrinsic, values, _number(low), _number(high))
        return calibrations

    def _read_poses(self, file: ComponentFile) -> dict[int, Float64Array]:
        rows = file.values((SEGMENT, TIMESTAMP, _TRANSFORM))
        self.check_keys(file, ((row[SEGMENT], row[TIMESTAMP]) for row in rows), all_frames=True)
        self.check_frames(file, (row[TIMESTAMP] for row in rows))
        poses = {}
        for number, row in enumerate(rows):
            with file.naming(number):
                poses[row[TIMESTAMP]] = rigid_pose(as_numbers(row[_TRANSFORM]), "the vehicle's pose")
        return poses

    def _read_labels(self, path: Path | None, synced_path: Path | None) -> dict[int, Boxes] | None:
        """Return the labels by frame; None where the data set has none."""
        if path is None:
            return None
        synced = {} if synced_path is None else self._read_synced(synced_path)
        needed = (SEGMENT, TIMESTAMP, OBJECT, *NEEDED_COLUMNS)
        file = ComponentFile(path, needed)
        rows = file.values((*needed, *OPTIONAL_COLUMNS))
        self.check_keys(file, ((row[SEGMENT], (row[TIMESTAMP], row[OBJECT])) for row in rows), all_frames=False)
        self.check_frames(file, (row[TIMESTAMP] for row in rows))
        by_frame: dict[int, list[dict[str, Any]]] = defaultdict(list)
        for row in rows:
            by_frame[row[TIMESTAMP]].append({**row, SYNCED: synced.pop((row[TIMESTAMP], row[OBJECT]), None)})
        if synced_path is not None and synced:
            raise DataError(synced_path, f"{len(synced)} of its boxes have no label, the first is {next(iter(synced))}")
        labels = {}
        for timestamp, members in by_frame.items():
            try:
                labels[timestamp] = boxes_of_rows(members, self._poses[timestamp])
            except (ValueError, TypeError, OverflowError) as error:  # of other types than numbers, too
                raise file.problem(f"frame {timestamp}: {error}") from None
        return labels

    def _read_synced(self, path: Path) -> dict[tuple[int, str], tuple[float, ...]]:
        """Return the camera-synced boxes by timestamp and object."""
        needed = (SEGMENT, TIMESTAMP, OBJECT, *SYNCED_COLUMNS)
        file = ComponentFile(path, needed)
        rows = file.values(needed)
        self.check_keys(file, ((row[SEGMENT], (row[TIMESTAMP], row[OBJECT])) for row in rows), all_frames=False)
        return {(row[TIMESTAMP], row[OBJECT]): tuple(row[name] for name in SYNCED_COLUMNS) for row in rows}

    def _read_stats(self, path: Path | None) -> dict[int, tuple[str, str, str]]:
        if path is None:
            return {}
        file = ComponentFile(path, (SEGMENT, TIMESTAMP))
        rows = file.values((SEGMENT, TIMESTAMP, *_STATS_COLUMNS))
        self.check_keys(file, ((row[SEGMENT], row[TIMESTAMP]) for row in rows), all_frames=True)
        self.check_frames(file, (row[TIMESTAMP] for row in rows))
        first, second, third = _STATS_COLUMNS
        return {row[TIMESTAMP]: (_text(row[first]), _text(row[second]), _text(row[third])) for row in rows}


class _PixelPoses:
    """The component `lidar_pose`, read on as the frames need it."""

    _VALUES, _SHAPE = (f"[LiDARPoseComponent].range_image_return1.{name}" for name in ("values", "shape"))

    def __init__(self, path: Path, segment: _Segment, wanted: frozenset[int]) -> None:
        self._wanted = wanted
        self._file = ComponentFile(path, (SEGMENT, TIMESTAMP, LASER, self._VALUES, self._SHAPE))
        keys = self._file.values((SEGMENT, TIMESTAMP, LASER))
        rows = ((key[SEGMENT], (key[TIMESTAMP], key[LASER])) for key in keys)
        segment.check_keys(self._file, rows, all_frames=False)
        self._rows = enumerate(self._file.rows((TIMESTAMP, LASER, self._VALUES, self._SHAPE)))
        self._passed: dict[int, tuple[int, dict[str, Any]]] = {}

    def take(self, timestamp: int) -> Float32Array | None:
        """Return TOP's pixel poses [H, W, 6] of a frame, once; None where there are none."""
        while timestamp not in self._passed:
            row, values = next(self._rows, (0, None))
            if values is None:
                return None
            passed = int(values[TIMESTAMP].as_py())
            if passed in self._wanted and _lidar(self._file, values[LASER].as_py(), row) == Lidar.TOP:
                self._passed[passed] = row, values
        row, values = self._passed.pop(timestamp)
        with self._file.naming(row):
            return as_matrix(values[self._VALUES], values[self._SHAPE], POSE_CHANNELS, "TOP: the pixel poses")


def _number(values: Float64Array) -> float:
    return float(values[0]) if len(values) == 1 else math.nan


def _text(value: Any) -> str:
    return "" if value is None else str(value)


def _image_columns(number: int) -> tuple[str, str]:
    prefix = f"[LiDARComponent].range_image_return{number}."
    return f"{prefix}values", f"{prefix}shape"


def _lidar(file: ComponentFile, value: Any, row: int) -> Lidar:
    with file.naming(row):
        return as_lidar(value)
