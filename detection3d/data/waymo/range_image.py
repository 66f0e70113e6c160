"""From a range image to points in the vehicle frame.

Follows `utils/range_image_utils.py` and `utils/frame_utils.py` of waymo-research/waymo-open-dataset, but in float64:
the official code computes in float32 with global coordinates of some 10 km, which moves TOP's points by up to 2 mm.
"""

import math

import numpy as np

from detection3d.compiled_code import numba
from detection3d.data.waymo.malformed import MalformedFrameError
from detection3d.types.scene import BoolArray, Float32Array, Float64Array, LidarCalibration

RANGE_CHANNELS = 4  # range, intensity, elongation, in a no-label zone
POSE_CHANNELS = 6  # roll, pitch, yaw, x, y, z


def column_azimuths(width: int, extrinsic: Float64Array) -> Float64Array:
    """Return the azimuth of each column, float64 [width], radians in the lidar frame, from the left column on.

    The image is centred on the vehicle's forward direction, so the lidar's own yaw is taken off.
    """
    yaw = math.atan2(extrinsic[1, 0], extrinsic[0, 0])
    return (1.0 - 2.0 * (np.arange(width, dtype=np.float64) + 0.5) / width) * math.pi - yaw


def make_calibration(extrinsic: Float64Array, inclinations: Float64Array, low: float, high: float) -> LidarCalibration:
    """Return a lidar's geometry, without the limits that mean nothing beside inclinations: v1 and v2 may differ there.

    Args:
        extrinsic: as in `LidarCalibration`, and so the others.
        inclinations: likewise.
        low: likewise, the minimum.
        high: likewise, the maximum.
    """
    if len(inclinations):
        low = high = math.nan
    return LidarCalibration(extrinsic, inclinations, low, high)


def row_inclinations(calibration: LidarCalibration, height: int) -> Float64Array:
    """Return the inclination of each row, float64 [height], from the top row down.

    Raises:
        MalformedFrameError: there are inclinations, but not one finite number for each row, or none and no range.
    """
    if len(calibration.inclinations) == 0:
        if not -math.inf < calibration.inclination_min < calibration.inclination_max < math.inf:
            raise MalformedFrameError(
                "the calibration has no beam inclinations, and its range is "
                f"{calibration.inclination_min} to {calibration.inclination_max} rad"
            )
        step = (calibration.inclination_max - calibration.inclination_min) / height
        return calibration.inclination_max - (np.arange(height, dtype=np.float64) + 0.5) * step
    if len(calibration.inclinations) != height:
        raise MalformedFrameError(
            f"the calibration has {len(calibration.inclinations)} beam inclinations, the range image {height} rows"
        )
    if not np.isfinite(calibration.inclinations).all():
        raise MalformedFrameError("the calibration has a beam inclination that isn't finite")
    return calibration.inclinations[::-1].copy()


def range_image_points(
    image: Float32Array,
    calibration: LidarCalibration,
    pixel_pose: Float32Array | None = None,
    vehicle_from_global: Float64Array | None = None,
) -> tuple[Float32Array, BoolArray]:
    """Turn the pixels with a range above 0 into points, row by row.

    Args:
        image: float32 [H, W, 4], range in metres, intensity, elongation, above 0 inside a no-label zone.
        calibration: the lidar's.
        pixel_pose: float32 [H, W, 6], the vehicle's pose at each pixel's time, vehicle to global: roll, pitch, yaw,
            x, y, z. None for lidars whose pixels count as simultaneous (all but TOP).
        vehicle_from_global: float64 [4, 4], inverse of the frame's pose; needed with `pixel_pose`.

    Returns:
        float32 [N, 5], x, y, z, intensity, elongation in the vehicle frame at the frame's time; bool [N], in a
        no-label zone.

    Raises:
        MalformedFrameError: the shapes disagree, or a value isn't finite.
    """
    height, width = image.shape[:2]
    inclinations = row_inclinations(calibration, height)
    azimuths = column_azimuths(width, calibration.extrinsic)
    rows = np.stack([np.cos(inclinations), np.sin(inclinations)], axis=1)
    columns = np.stack([np.cos(azimuths), np.sin(azimuths)], axis=1)
    if np.isnan(image[..., 0]).any():
        raise MalformedFrameError(f"{int(np.isnan(image[..., 0]).sum())} pixels have a range that isn't a number")
    count = int(np.count_nonzero(image[..., 0] > 0))
    points, in_zone = np.empty((count, 5), np.float32), np.empty(count, np.bool_)
    if pixel_pose is None:
        _static_points(image, rows, columns, calibration.extrinsic, points, in_zone)
    else:
        assert vehicle_from_global is not None, "pixel_pose needs vehicle_from_global"
        if pixel_pose.shape != (height, width, POSE_CHANNELS):
            raise MalformedFrameError(
                f"the pixel poses have shape {list(pixel_pose.shape)}, the range image {list(image.shape)}"
            )
        _moving_points(image, rows, columns, calibration.extrinsic, pixel_pose, vehicle_from_global, points, in_zone)
    if not np.isfinite(points).all():
        bad = int((~np.isfinite(points)).any(axis=1).sum())
        raise MalformedFrameError(
            f"{bad} of {count} points have a coordinate, intensity or elongation that isn't finite"
        )
    return points, in_zone


@numba.njit(cache=True)
def _static_points(
    image: Float32Array,
    rows: Float64Array,
    columns: Float64Array,
    extrinsic: Float64Array,
    points: Float32Array,
    in_zone: BoolArray,
) -> None:
    n = 0
    for row in range(image.shape[0]):
        for column in range(image.shape[1]):
            distance = np.float64(image[row, column, 0])
            if not distance > 0:
                continue
            x = distance * columns[column, 0] * rows[row, 0]
            y = distance * columns[column, 1] * rows[row, 0]
            z = distance * rows[row, 1]
            for axis in range(3):
                points[n, axis] = (
                    extrinsic[axis, 0] * x + extrinsic[axis, 1] * y + extrinsic[axis, 2] * z + extrinsic[axis, 3]
                )
            points[n, 3], points[n, 4] = image[row, column, 1], image[row, column, 2]
            in_zone[n] = image[row, column, 3] > 0
            n += 1


@numba.njit(cache=True)
def _moving_points(
    image: Float32Array,
    rows: Float64Array,
    columns: Float64Array,
    extrinsic: Float64Array,
    pixel_pose: Float32Array,
    vehicle_from_global: Float64Array,
    points: Float32Array,
    in_zone: BoolArray,
) -> None:
    n = 0
    for row in range(image.shape[0]):
        for column in range(image.shape[1]):
            distance = np.float64(image[row, column, 0])
            if not distance > 0:
                continue
            x = distance * columns[column, 0] * rows[row, 0]
            y = distance * columns[column, 1] * rows[row, 0]
            z = distance * rows[row, 1]
            # The vehicle frame at the time of the pixel ...
            vx = extrinsic[0, 0] * x + extrinsic[0, 1] * y + extrinsic[0, 2] * z + extrinsic[0, 3]
            vy = extrinsic[1, 0] * x + extrinsic[1, 1] * y + extrinsic[1, 2] * z + extrinsic[1, 3]
            vz = extrinsic[2, 0] * x + extrinsic[2, 1] * y + extrinsic[2, 2] * z + extrinsic[2, 3]
            # ... to the global frame by Rz(yaw) Ry(pitch) Rx(roll), one rotation after the other ...
            pose = pixel_pose[row, column]
            roll, pitch, yaw = np.float64(pose[0]), np.float64(pose[1]), np.float64(pose[2])
            cosine, sine = np.cos(roll), np.sin(roll)
            vy, vz = cosine * vy - sine * vz, sine * vy + cosine * vz
            cosine, sine = np.cos(pitch), np.sin(pitch)
            vx, vz = cosine * vx + sine * vz, cosine * vz - sine * vx
            cosine, sine = np.cos(yaw), np.sin(yaw)
            gx = cosine * vx - sine * vy + np.float64(pose[3])
            gy = sine * vx + cosine * vy + np.float64(pose[4])
            gz = vz + np.float64(pose[5])
            # ... and to the vehicle frame at the frame's time.
            for axis in range(3):
                points[n, axis] = (
                    vehicle_from_global[axis, 0] * gx
                    + vehicle_from_global[axis, 1] * gy
                    + vehicle_from_global[axis, 2] * gz
                    + vehicle_from_global[axis, 3]
                )
            points[n, 3], points[n, 4] = image[row, column, 1], image[row, column, 2]
            in_zone[n] = image[row, column, 3] > 0
            n += 1
