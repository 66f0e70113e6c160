"""One frame's points, from the range images of its lidars, in whichever format those came."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from detection3d.data.waymo.malformed import MalformedFrameError
from detection3d.data.waymo.range_image import range_image_points
from detection3d.types.scene import BoolArray, Float32Array, Float64Array, Lidar, LidarCalibration, UInt8Array

RETURNS = (1, 2)


@dataclass(frozen=True)
class ScanPart:
    """Points of one return of one lidar.

    Attributes:
        lidar: `Lidar`.
        return_number: 1 or 2.
        points: float32 [N, 5], x, y, z, intensity, elongation in the vehicle frame.
        in_zone: bool [N], in a no-label zone.
    """

    lidar: int
    return_number: int
    points: Float32Array
    in_zone: BoolArray


def scan_part(
    lidar: int,
    return_number: int,
    image: Float32Array,
    calibration: LidarCalibration | None,
    pixel_pose: Float32Array | None,
    vehicle_from_global: Float64Array,
) -> ScanPart:
    """Decode one range image; arguments as in `range_image_points`.

    Raises:
        MalformedFrameError: it can't be used, or has no calibration, or is TOP's and has no pixel poses.
    """
    where = scan_name(lidar, return_number)
    if calibration is None:
        raise MalformedFrameError(f"{where}: there is a range image, but no calibration of this lidar")
    if lidar == Lidar.TOP and pixel_pose is None:
        # Going on without would move the points of a driving vehicle by up to a metre.
        raise MalformedFrameError(f"{where}: there is a range image, but no poses of its pixels")
    try:
        points, in_zone = range_image_points(image, calibration, pixel_pose, vehicle_from_global)
    except MalformedFrameError as error:
        raise MalformedFrameError(f"{where}: {error}") from None
    return ScanPart(lidar, return_number, points, in_zone)


def scan_name(lidar: int, return_number: int) -> str:
    """Return what to call a range image in a message."""
    return f"{Lidar(lidar).name} return {return_number}"


def join_parts(parts: Sequence[ScanPart]) -> tuple[Float32Array, UInt8Array, UInt8Array, BoolArray]:
    """Return points [N, 5], lidar [N], return number [N], in a no-label zone [N], by return, lidar and pixel."""
    if not parts:
        return np.zeros((0, 5), np.float32), np.zeros(0, np.uint8), np.zeros(0, np.uint8), np.zeros(0, np.bool_)
    ordered = sorted(parts, key=lambda part: (part.return_number, part.lidar))
    counts = [len(part.points) for part in ordered]
    return (
        np.concatenate([part.points for part in ordered]),
        np.repeat(np.array([part.lidar for part in ordered], np.uint8), counts),
        np.repeat(np.array([part.return_number for part in ordered], np.uint8), counts),
        np.concatenate([part.in_zone for part in ordered]),
    )
