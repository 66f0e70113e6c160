"""Argoverse 2 sensor data set: the sweeps of a log, as frames.

A log is a folder named by its id, with `sensors/lidar/<timestamp_ns>.feather`, `annotations.feather` (none in the test
split) and `city_SE3_egovehicle.feather`. How it becomes a `Frame`:

- Points are those of the sweep, in the order of the file, in the egovehicle frame at the sweep's timestamp (the data
  set has taken out the vehicle's motion). That frame has x forward, y left, z up like ours, with its origin at the rear
  axle, 0.33 m above the ground: in the sample logs the ground beside the vehicle has its median z at -0.32 to -0.34 m.
  It is left so. Coordinates are stored as float16, which is 0.06 m between 64 and 128 m, and 0.13 m beyond.
- Intensity, 0 to 255 in the file, is divided by 255: most returns then lie below 0.3, where tanh is nearly linear.
  There is no elongation; it is 0.
- Both lidars stand on the roof, one upon the other, and count as `Lidar.TOP`, return 1.
- Timestamps are nanoseconds, cut (not rounded) to microseconds. The context name is the log's id.
- Velocities follow from a track's neighbouring annotations, see `argoverse_tracks`. Accelerations are 0, difficulty is
  not stated, and there are no no-label zones.

Source: the data set's user guide (https://argoverse.github.io/user-guide/datasets/sensor.html).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyarrow import feather

from detection3d.data.argoverse_tracks import Poses, Tracks
from detection3d.errors import DataError
from detection3d.files import own_name
from detection3d.geometry.host.boxes import wrap_angle
from detection3d.types.scene import Boxes, Float32Array, Frame, Lidar, ObjectType

# Waymo's rules (docs/labeling_specifications.md there) decide: motorcycles and trailers are vehicles, riders of kick
# scooters and the like are pedestrians; trams, animals, strollers, and bicycles without a rider aren't labelled at all.
# What Waymo doesn't label stays as UNKNOWN: neither trained on nor counted, yet not lost.
CATEGORY_TYPES: dict[str, ObjectType] = {
    "ANIMAL": ObjectType.UNKNOWN,
    "ARTICULATED_BUS": ObjectType.VEHICLE,
    "BICYCLE": ObjectType.UNKNOWN,
    "BICYCLIST": ObjectType.CYCLIST,
    "BOLLARD": ObjectType.UNKNOWN,
    "BOX_TRUCK": ObjectType.VEHICLE,
    "BUS": ObjectType.VEHICLE,
    "CONSTRUCTION_BARREL": ObjectType.UNKNOWN,
    "CONSTRUCTION_CONE": ObjectType.UNKNOWN,
    "DOG": ObjectType.UNKNOWN,
    "LARGE_VEHICLE": ObjectType.VEHICLE,
    "MESSAGE_BOARD_TRAILER": ObjectType.VEHICLE,
    "MOBILE_PEDESTRIAN_CROSSING_SIGN": ObjectType.SIGN,
    "MOTORCYCLE": ObjectType.VEHICLE,
    "MOTORCYCLIST": ObjectType.VEHICLE,
    "OFFICIAL_SIGNALER": ObjectType.PEDESTRIAN,
    "PEDESTRIAN": ObjectType.PEDESTRIAN,
    "RAILED_VEHICLE": ObjectType.UNKNOWN,
    "REGULAR_VEHICLE": ObjectType.VEHICLE,
    "SCHOOL_BUS": ObjectType.VEHICLE,
    "SIGN": ObjectType.SIGN,
    "STOP_SIGN": ObjectType.SIGN,
    "STROLLER": ObjectType.UNKNOWN,
    "TRAFFIC_LIGHT_TRAILER": ObjectType.VEHICLE,
    "TRUCK": ObjectType.VEHICLE,
    "TRUCK_CAB": ObjectType.VEHICLE,
    "VEHICULAR_TRAILER": ObjectType.VEHICLE,
    "WHEELCHAIR": ObjectType.UNKNOWN,
    "WHEELED_DEVICE": ObjectType.UNKNOWN,
    "WHEELED_RIDER": ObjectType.PEDESTRIAN,
}

_SWEEP_COLUMNS = ("x", "y", "z", "intensity")
_SIZE_COLUMNS = ("length_m", "width_m", "height_m")
_QUATERNION_COLUMNS = ("qw", "qx", "qy", "qz")
_CENTRE_COLUMNS = ("tx_m", "ty_m", "tz_m")
_POSE_COLUMNS = ("timestamp_ns", *_QUATERNION_COLUMNS, *_CENTRE_COLUMNS)
_ANNOTATION_COLUMNS = (*_POSE_COLUMNS, "track_uuid", "category", *_SIZE_COLUMNS, "num_interior_pts")


def read_log(log: Path | str, require_poses: bool = False, every: int = 1) -> Iterator[Frame]:
    """Yield the sweeps of a log in the order of time.

    Args:
        log: the log's folder.
        require_poses: refuse a log without poses. Otherwise its poses are the identity and its velocities 0: good for
            single sweeps, wrong for joining several.
        every: read every so many sweeps, from the first on.

    Raises:
        DataError: a file is missing, can't be read or lacks a column, an unknown category, or a sweep outside the
            time that the poses cover.
    """
    log = Path(log)
    sweeps = _find_sweeps(log)
    poses = _read_poses(log / "city_SE3_egovehicle.feather", require_poses)
    annotations = _read_annotations(log / "annotations.feather", poses)
    context_name = own_name(log)
    for timestamp_ns, path in sweeps[::every]:
        points = _read_points(path)
        pose = np.eye(4) if poses is None else poses.at(timestamp_ns, path)
        count = len(points)
        yield Frame(
            context_name=context_name,
            timestamp_micros=timestamp_ns // 1000,
            pose=pose,
            points=points,
            lidar=np.full(count, Lidar.TOP, np.uint8),
            return_number=np.ones(count, np.uint8),
            in_no_label_zone=np.zeros(count, np.bool_),
            labels=None if annotations is None else annotations.at(timestamp_ns),
        )


@dataclass(frozen=True)
class _Annotations:
    """All labels of a log; `timestamp_ns`, int64 [A], says which belong to which sweep."""

    timestamp_ns: npt.NDArray[np.int64]
    labels: Boxes

    def at(self, timestamp_ns: int) -> Boxes:
        return self.labels.select(self.timestamp_ns == timestamp_ns)


def _find_sweeps(log: Path) -> list[tuple[int, Path]]:
    folder = log / "sensors" / "lidar"
    if not folder.is_dir():
        raise DataError(
            log, "not an Argoverse 2 log: it has no folder sensors/lidar; give the folder named by a log's id"
        )
    paths = sorted(folder.glob("*.feather"))
    if not paths:
        raise DataError(folder, "holds no sweeps (<timestamp_ns>.feather); download the log's lidar")
    for path in paths:
        if not path.stem.isdecimal():
            raise DataError(path, "a sweep's file must be named by its timestamp in nanoseconds")
    return sorted((int(path.stem), path) for path in paths)


def _read_points(path: Path) -> Float32Array:
    table = _read_table(path, _SWEEP_COLUMNS)
    points = np.zeros((table.num_rows, 5), np.float32)
    for column, name in enumerate(_SWEEP_COLUMNS):
        points[:, column] = table[name].to_numpy()
    if not np.isfinite(points).all():
        raise DataError(path, "has points with a coordinate or intensity that isn't finite; download it again")
    points[:, 3] /= 255
    return points


def _read_poses(path: Path, required: bool) -> Poses | None:
    if not path.exists():
        if required:
            raise DataError(path, "is missing, so the poses aren't known; download it, or read without require_poses")
        return None
    table = _read_table(path, _POSE_COLUMNS)
    return Poses.from_quaternions(
        path, table["timestamp_ns"].to_numpy(), _columns(table, _QUATERNION_COLUMNS), _columns(table, _CENTRE_COLUMNS)
    )


def _read_annotations(path: Path, poses: Poses | None) -> _Annotations | None:
    if not path.exists():
        return None
    table = _read_table(path, _ANNOTATION_COLUMNS)
    timestamps = table["timestamp_ns"].to_numpy()
    ids = tuple(table["track_uuid"].to_pylist())
    centres = _columns(table, _CENTRE_COLUMNS)
    quaternions = _columns(table, _QUATERNION_COLUMNS)
    boxes = np.column_stack([centres, _columns(table, _SIZE_COLUMNS), _heading(quaternions)])
    if not np.isfinite(boxes).all():
        row = int(np.flatnonzero(~np.isfinite(boxes).all(axis=1))[0])
        raise DataError(path, f"its box isn't finite: {boxes[row].tolist()}; download the file again", row)
    velocity = np.zeros((len(boxes), 3))
    if poses is not None:
        velocity = Tracks(timestamps, ids, centres).velocities(poses)
    labels = Boxes(
        boxes=boxes.astype(np.float32),
        types=_types(path, table["category"].to_pylist()),
        ids=ids,
        difficulty=np.zeros(len(boxes), np.uint8),
        num_points=table["num_interior_pts"].to_numpy().astype(np.int32),
        velocity=velocity.astype(np.float32),
        acceleration=np.zeros((len(boxes), 3), np.float32),
    )
    return _Annotations(timestamps, labels)


def _types(path: Path, categories: Sequence[str]) -> npt.NDArray[np.uint8]:
    unknown = sorted(set(categories) - set(CATEGORY_TYPES))
    if unknown:
        raise DataError(
            path,
            f"has the categories {', '.join(unknown)}, which aren't among Argoverse 2's 30; "
            "give them a type in CATEGORY_TYPES of detection3d/data/argoverse.py",
        )
    return np.array([CATEGORY_TYPES[category] for category in categories], np.uint8)


def _heading(quaternions: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the yaw of unit quaternions (w, x, y, z), wrapped so that it stays in [-pi, pi) in float32."""
    w, x, y, z = quaternions.T
    yaw = np.arctan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z))
    return wrap_angle(yaw.astype(np.float32))


def _columns(table: pa.Table, names: Sequence[str]) -> npt.NDArray[np.float64]:
    return np.stack([table[name].to_numpy() for name in names], axis=1).astype(np.float64)


def _read_table(path: Path, columns: Sequence[str]) -> pa.Table:
    try:
        table = feather.read_table(path)
    except (pa.ArrowInvalid, pa.ArrowIOError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(path, f"can't be read as a feather file ({reason}); download it again") from error
    missing = [name for name in columns if name not in table.column_names]
    if missing:
        raise DataError(path, f"has no column {', '.join(missing)}; it has {', '.join(table.column_names)}")
    return table.select(columns)
