"""What a recorded moment holds, and what a detector says of it, in numpy.

Frames, units, the box layout and the object types are fixed in `detection3d`'s docstring.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np
import numpy.typing as npt

Float32Array = npt.NDArray[np.float32]
Float64Array = npt.NDArray[np.float64]
UInt8Array = npt.NDArray[np.uint8]
Int32Array = npt.NDArray[np.int32]
BoolArray = npt.NDArray[np.bool_]


class ObjectType(IntEnum):
    """Waymo's object types (`Label.Type` in label.proto)."""

    UNKNOWN = 0
    VEHICLE = 1
    PEDESTRIAN = 2
    SIGN = 3
    CYCLIST = 4


class Lidar(IntEnum):
    """Waymo's lidars (`LaserName.Name` in dataset.proto)."""

    UNKNOWN = 0
    TOP = 1
    FRONT = 2
    SIDE_LEFT = 3
    SIDE_RIGHT = 4
    REAR = 5


@dataclass(frozen=True)
class LidarCalibration:
    """One lidar's geometry.

    Attributes:
        extrinsic: float64 [4, 4], lidar frame to vehicle frame.
        inclinations: float64 [H], radians, ascending (the last row of the image first); empty: uniform.
        inclination_min: radians, lower edge of the last row, for uniform inclinations; NaN otherwise or if missing.
        inclination_max: radians, upper edge of the first row.
    """

    extrinsic: Float64Array
    inclinations: Float64Array
    inclination_min: float
    inclination_max: float


@dataclass(frozen=True)
class Boxes:
    """Labelled objects of one frame, M of them.

    Attributes:
        boxes: float32 [M, 7], vehicle frame.
        types: uint8 [M], `ObjectType`.
        ids: M strings; an object keeps its id through a segment.
        difficulty: uint8 [M], 0 unless a person said LEVEL_1 (1) or LEVEL_2 (2).
        num_points: int32 [M], lidar points in the box over all lidars and returns, as labelled.
        velocity: float32 [M, 3], m/s, axes of the vehicle frame, motion over the ground.
        acceleration: float32 [M, 3], m/s^2, likewise.
        camera_synced: float32 [M, 7], the boxes moved to when the camera that sees them best saw them, NaN where no
            camera did; None where no object of the frame has one. A prepared store doesn't keep them.
    """

    boxes: Float32Array
    types: UInt8Array
    ids: tuple[str, ...]
    difficulty: UInt8Array
    num_points: Int32Array
    velocity: Float32Array
    acceleration: Float32Array
    camera_synced: Float32Array | None = None

    def __len__(self) -> int:
        """Number of boxes, M."""
        return len(self.boxes)

    def select(self, mask: BoolArray) -> "Boxes":
        """Keep the boxes where `mask`, bool [M], is true."""
        return Boxes(
            boxes=self.boxes[mask],
            types=self.types[mask],
            ids=tuple(np.asarray(self.ids, dtype=object)[mask]),
            difficulty=self.difficulty[mask],
            num_points=self.num_points[mask],
            velocity=self.velocity[mask],
            acceleration=self.acceleration[mask],
            camera_synced=None if self.camera_synced is None else self.camera_synced[mask],
        )


def empty_boxes() -> Boxes:
    """Return the labels of a frame without objects."""
    return Boxes(
        boxes=np.zeros((0, 7), np.float32),
        types=np.zeros(0, np.uint8),
        ids=(),
        difficulty=np.zeros(0, np.uint8),
        num_points=np.zeros(0, np.int32),
        velocity=np.zeros((0, 3), np.float32),
        acceleration=np.zeros((0, 3), np.float32),
    )


@dataclass(frozen=True)
class Frame:
    """One moment of a recording: points of all lidars and returns, and labels where there are any.

    Points are ordered by return, then lidar (ascending number), then row-major in the range image.

    Attributes:
        context_name: name of the segment; with the timestamp it is the key of the frame.
        timestamp_micros: microseconds.
        pose: float64 [4, 4], vehicle to global.
        points: float32 [N, 5], (x, y, z, intensity, elongation), vehicle frame, raw.
        lidar: uint8 [N], `Lidar`.
        return_number: uint8 [N], 1 or 2.
        in_no_label_zone: bool [N].
        labels: the labelled boxes; None where the data set has no labels (a test split).
        no_label_zones: polygons, each float64 [P, 2] (x, y) in the GLOBAL frame, possibly not convex.
        time_of_day: as in Waymo's stats, such as "Day"; empty where unknown.
        location: likewise, such as "location_sf".
        weather: likewise, such as "sunny".
        calibrations: by `Lidar`; a prepared store doesn't keep them.
    """

    context_name: str
    timestamp_micros: int
    pose: Float64Array
    points: Float32Array
    lidar: UInt8Array
    return_number: UInt8Array
    in_no_label_zone: BoolArray
    labels: Boxes | None
    no_label_zones: tuple[Float64Array, ...] = ()
    time_of_day: str = ""
    location: str = ""
    weather: str = ""
    calibrations: Mapping[int, LidarCalibration] = field(default_factory=dict)

    @property
    def key(self) -> tuple[str, int]:
        """`(context_name, timestamp_micros)`, unique in a data set."""
        return self.context_name, self.timestamp_micros


@dataclass(frozen=True)
class Detections:
    """What the detector found in one frame, D boxes, in descending order of score.

    Attributes:
        context_name: the frame's segment.
        timestamp_micros: the frame's timestamp.
        boxes: float32 [D, 7], vehicle frame.
        types: uint8 [D], `ObjectType`.
        scores: float32 [D], in [0, 1].
        overlaps_no_label_zone: bool [D]; unmatched detections in a no-label zone are not false positives.
        velocity: float32 [D, 2], m/s, axes of the vehicle frame, motion over the ground; None where it isn't predicted.
    """

    context_name: str
    timestamp_micros: int
    boxes: Float32Array
    types: UInt8Array
    scores: Float32Array
    overlaps_no_label_zone: BoolArray
    velocity: Float32Array | None = None

    @property
    def key(self) -> tuple[str, int]:
        """`(context_name, timestamp_micros)` of the frame."""
        return self.context_name, self.timestamp_micros
