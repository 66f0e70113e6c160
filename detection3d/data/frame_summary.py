"""One frame as numbers: its points, the voxels that they fill, and what lies in its boxes.

`data.statistics` puts the summaries of many frames together, `data.data_checks` looks for what is wrong with them.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from detection3d.config import ModelConfig
from detection3d.geometry.host.boxes import count_points_in_boxes
from detection3d.types.scene import BoolArray, Boxes, Float32Array, Float64Array, Frame, Int32Array, UInt8Array

Int64Array = npt.NDArray[np.int64]

DISTANCES = (30.0, 50.0)
"""Metres between the ranges of Waymo's metrics: 0 to 30, 30 to 50, and beyond."""

CELL_VOXELS = 8
"""Voxels along each side of a bird's-eye-view cell: the backbone's stride."""

SAMPLED_POINTS = 20_000
"""Points of a frame, evenly spread over its order, that the quantiles of the points rest on."""

MOVING = 1.0
"""m/s from which an object counts as moving."""

_NEAR_GROUND = 20.0  # metres around the vehicle, where the ground is looked for
_GROUND_STEP = 0.1  # metres


@dataclass(frozen=True)
class ObjectSummary:
    """The boxes of one frame, M of them.

    Attributes:
        labels: the labels.
        distance: float64 [M], metres from the vehicle's origin to the centre, in space, as Waymo's metrics have it.
        points: int32 [M], points counted in each box; as labelled where the frame has none at all, as frames that were
            published without their lidar.
        speed: float64 [M], m/s in the ground plane.
    """

    labels: Boxes
    distance: Float64Array
    points: Int32Array
    speed: Float64Array


@dataclass(frozen=True)
class FrameSummary:
    """One frame in numbers.

    Attributes:
        key: `(context_name, timestamp_micros)`.
        points: all of them.
        scans: points by (lidar, return number).
        in_zone: points in no-label zones.
        in_range: points inside the model's range.
        by_distance: points by horizontal distance: below 30 m, below 50 m, beyond.
        voxels: occupied voxels.
        pillars: occupied columns of voxels.
        cells: occupied bird's-eye-view cells.
        sample: float32 [S, 4], of some points: horizontal distance, z, intensity, elongation.
        ground: the commonest z around the vehicle, metres; NaN where no point is near.
        objects: the boxes; None where the frame has no labels.
    """

    key: tuple[str, int]
    points: int
    scans: Mapping[tuple[int, int], int]
    in_zone: int
    in_range: int
    by_distance: tuple[int, int, int]
    voxels: int
    pillars: int
    cells: int
    sample: Float32Array
    ground: float
    objects: ObjectSummary | None


def summarise_frame(frame: Frame, model: ModelConfig) -> FrameSummary:
    """Count and measure what is in a frame.

    Args:
        frame: the frame.
        model: gives the range and the size of the voxels.
    """
    points = frame.points
    distance = np.hypot(points[:, 0], points[:, 1])
    voxels = _occupied_voxels(points, model)
    cells = voxels[:, :2] // CELL_VOXELS
    step = max(1, -(-len(points) // SAMPLED_POINTS))
    near, far = (int((distance < limit).sum()) for limit in DISTANCES)
    return FrameSummary(
        key=frame.key,
        points=len(points),
        scans=_scans(frame.lidar, frame.return_number),
        in_zone=int(frame.in_no_label_zone.sum()),
        in_range=int(_cells(points, model)[1].sum()),
        by_distance=(near, far - near, len(points) - far),
        voxels=len(voxels),
        pillars=len(np.unique(voxels[:, :2], axis=0)),
        cells=len(np.unique(cells, axis=0)),
        sample=np.column_stack([distance, points[:, 2:5]])[::step].astype(np.float32),
        ground=_ground(points[distance < _NEAR_GROUND, 2]),
        objects=None if frame.labels is None else _summarise_objects(frame.labels, points),
    )


def distance_band(distance: npt.NDArray[np.floating]) -> Int64Array:
    """Return 0 below 30 m, 1 below 50 m, else 2; the same shape."""
    return np.searchsorted(DISTANCES, distance, side="right")


def _scans(lidar: UInt8Array, return_number: UInt8Array) -> dict[tuple[int, int], int]:
    pairs, counts = np.unique(lidar.astype(np.int64) * 256 + return_number, return_counts=True)
    return {divmod(int(pair), 256): int(count) for pair, count in zip(pairs, counts, strict=True)}


def _cells(points: Float32Array, model: ModelConfig) -> tuple[Int64Array, BoolArray]:
    """Return int64 [N, 3], each point's voxel (x, y, z), and bool [N], whether it is inside the range."""
    # In float32, as the model's voxelizer, so that a point on an edge falls on the same side.
    low, size = np.array(model.point_range[:3], np.float32), np.array(model.voxel_size, np.float32)
    cell = np.floor((points[:, :3] - low) / size).astype(np.int64)
    depth, height, width = model.grid_size
    inside = (cell >= 0) & (cell < (width, height, depth))
    return cell, np.asarray(inside.all(axis=1))


def _occupied_voxels(points: Float32Array, model: ModelConfig) -> Int64Array:
    """Return int64 [V, 3], the voxels (x, y, z) that hold at least one point."""
    cell, inside = _cells(points, model)
    _, height, width = model.grid_size
    keys = np.unique((cell[inside, 2] * height + cell[inside, 1]) * width + cell[inside, 0])
    return np.stack([keys % width, keys // width % height, keys // (width * height)], axis=1)


def _ground(heights: Float32Array) -> float:
    if len(heights) == 0:
        return float("nan")
    steps, counts = np.unique(np.floor(heights / _GROUND_STEP), return_counts=True)
    return float((steps[counts.argmax()] + 0.5) * _GROUND_STEP)


def _summarise_objects(labels: Boxes, points: Float32Array) -> ObjectSummary:
    boxes = labels.boxes
    velocity = labels.velocity[:, :2].astype(np.float64)
    return ObjectSummary(
        labels=labels,
        distance=np.linalg.norm(boxes[:, :3].astype(np.float64), axis=1),
        points=count_points_in_boxes(points, boxes) if len(points) else labels.num_points,
        speed=np.hypot(velocity[:, 0], velocity[:, 1]),
    )
