import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detection3d.data.waymo.malformed import MalformedFrameError
from detection3d.data.waymo.range_image import column_azimuths, range_image_points
from detection3d.geometry.host.poses import pose_from_angles
from detection3d.types.scene import LidarCalibration


def slow_points(image, calibration, pixel_pose, frame_pose):
    """The official steps one by one, in Python floats, pixel by pixel.

    See "Coordinate systems" in dataset.proto, and compute_inclination, compute_range_image_polar and
    compute_range_image_cartesian in range_image_utils.py.
    """
    height, width, _ = image.shape
    extrinsic = calibration.extrinsic
    inclinations = list(calibration.inclinations)
    if not inclinations:
        low, high = calibration.inclination_min, calibration.inclination_max
        inclinations = [low + (0.5 + i) / height * (high - low) for i in range(height)]
    inclinations = inclinations[::-1]
    correction = math.atan2(extrinsic[1][0], extrinsic[0][0])
    points, zones = [], []
    for row in range(height):
        for column in range(width):
            distance = float(image[row, column, 0])
            if not distance > 0:
                continue
            ratio = (width - column - 0.5) / width
            azimuth = (ratio * 2 - 1) * math.pi - correction
            inclination = inclinations[row]
            point = np.array(
                [
                    distance * math.cos(azimuth) * math.cos(inclination),
                    distance * math.sin(azimuth) * math.cos(inclination),
                    distance * math.sin(inclination),
                    1.0,
                ]
            )
            point = extrinsic @ point
            if pixel_pose is not None:
                roll, pitch, yaw, x, y, z = (float(value) for value in pixel_pose[row, column])
                about_x = [[1, 0, 0], [0, math.cos(roll), -math.sin(roll)], [0, math.sin(roll), math.cos(roll)]]
                about_y = [[math.cos(pitch), 0, math.sin(pitch)], [0, 1, 0], [-math.sin(pitch), 0, math.cos(pitch)]]
                about_z = [[math.cos(yaw), -math.sin(yaw), 0], [math.sin(yaw), math.cos(yaw), 0], [0, 0, 1]]
                rotation = np.array(about_z) @ np.array(about_y) @ np.array(about_x)
                in_global = rotation @ point[:3] + [x, y, z]
                # Solving the frame's pose for the point, rather than inverting it.
                point = np.linalg.solve(frame_pose, np.append(in_global, 1.0))
            points.append([*point[:3], image[row, column, 1], image[row, column, 2]])
            zones.append(image[row, column, 3] > 0)
    return np.array(points, np.float64).reshape(-1, 5), np.array(zones, bool)


angles = st.tuples(*[st.floats(-3.1, 3.1)] * 3)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    height=st.integers(1, 6),
    width=st.integers(1, 9),
    extrinsic_angles=angles,
    frame_angles=angles,
    uniform=st.booleans(),
    moving=st.booleans(),
    share=st.sampled_from([0.0, 0.5, 1.0]),
)
def test_equals_the_slow_transcription(
    seed, height, width, extrinsic_angles, frame_angles, uniform, moving, share
) -> None:
    rng = np.random.default_rng(seed)
    image = rng.uniform(-1, 75, (height, width, 4)).astype(np.float32)
    image[rng.random((height, width)) >= share] = -1
    inclinations = np.zeros(0) if uniform else np.sort(rng.uniform(-1.5, 0.6, height))
    extrinsic = pose_from_angles(extrinsic_angles, rng.uniform(-3, 3, 3))
    calibration = LidarCalibration(extrinsic, inclinations, -1.5, 0.5)
    frame_pose = pose_from_angles(frame_angles, rng.uniform(-1e4, 1e4, 3))
    pixel_pose = None
    if moving:
        # Near the frame's pose, as in a real sweep: otherwise float32 points 10 km away couldn't be compared.
        pixel_pose = np.empty((height, width, 6), np.float32)
        pixel_pose[..., :3] = np.array(frame_angles) + rng.uniform(-0.1, 0.1, (height, width, 3))
        pixel_pose[..., 3:] = frame_pose[:3, 3] + rng.uniform(-2, 2, (height, width, 3))
    points, zones = range_image_points(image, calibration, pixel_pose, np.linalg.inv(frame_pose))
    expected, expected_zones = slow_points(image, calibration, pixel_pose, frame_pose)
    assert points.dtype == np.float32
    assert points.shape == expected.shape
    # Half a float32 step at 128 m is 4e-6; beyond that there is only float64 rounding at 10 km.
    np.testing.assert_allclose(points, expected, rtol=1e-6, atol=1e-5)
    np.testing.assert_array_equal(zones, expected_zones)


def test_directions_of_a_level_lidar() -> None:
    # 4 columns: their centres lie at 135, 45, -45 and -135 degrees, so the image starts behind on the left.
    np.testing.assert_allclose(np.degrees(column_azimuths(4, np.eye(4))), [135, 45, -45, -135])
    image = np.full((2, 4, 4), -1, np.float32)
    image[0, 1], image[1, 2] = (10, 0.5, 0.25, 1), (20, 2, 1, -1)
    calibration = LidarCalibration(np.eye(4), np.array([-0.2, 0.1]), 0, 0)
    points, zones = range_image_points(image, calibration)
    half = math.sqrt(0.5)
    up, down = (math.cos(0.1), math.sin(0.1)), (math.cos(0.2), -math.sin(0.2))
    expected = [
        [10 * half * up[0], 10 * half * up[0], 10 * up[1], 0.5, 0.25],
        [20 * half * down[0], -20 * half * down[0], 20 * down[1], 2, 1],
    ]
    np.testing.assert_allclose(points, expected, rtol=1e-6)
    assert zones.tolist() == [True, False]


def test_what_does_not_fit_is_refused() -> None:
    image = np.ones((2, 3, 4), np.float32)
    good = LidarCalibration(np.eye(4), np.array([-0.2, 0.1]), 0, 0)
    with pytest.raises(MalformedFrameError, match="has 3 beam inclinations, the range image 2 rows"):
        range_image_points(image, LidarCalibration(np.eye(4), np.zeros(3), 0, 0))
    with pytest.raises(MalformedFrameError, match="no beam inclinations"):
        range_image_points(image, LidarCalibration(np.eye(4), np.zeros(0), 0.0, 0.0))
    with pytest.raises(MalformedFrameError, match=r"pixel poses have shape \[2, 4, 6\]"):
        range_image_points(image, good, np.zeros((2, 4, 6), np.float32), np.eye(4))
    for channel, value in ((0, np.inf), (1, np.nan), (2, np.inf)):
        broken = image.copy()
        broken[1, 2, channel] = value
        with pytest.raises(MalformedFrameError, match="1 of 6 points"):
            range_image_points(broken, good)
    broken = image.copy()
    broken[0, 0, 0] = np.nan
    with pytest.raises(MalformedFrameError, match="isn't a number"):
        range_image_points(broken, good)
