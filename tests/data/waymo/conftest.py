"""A small frame in Waymo's format, built with the protos alone."""

import zlib
from collections.abc import Callable

import numpy as np
import pytest

from detection3d.protos import waymo_pb2

HEIGHT, WIDTH = 4, 10


def compress(array: np.ndarray) -> bytes:
    matrix = waymo_pb2.MatrixFloat(data=array.ravel().tolist(), shape=waymo_pb2.MatrixShape(dims=array.shape))
    return zlib.compress(matrix.SerializeToString())


def range_image(rng: np.random.Generator, share: float) -> np.ndarray:
    image = np.full((HEIGHT, WIDTH, 4), -1, np.float32)
    hit = rng.random((HEIGHT, WIDTH)) < share
    image[hit, 0] = rng.uniform(1, 70, hit.sum())
    image[hit, 1] = rng.uniform(0, 30, hit.sum())
    image[hit, 2] = rng.uniform(0, 1, hit.sum())
    image[hit, 3] = np.where(rng.random(hit.sum()) < 0.5, 1, -1)
    return image


def build_frame(lidars: tuple[int, ...] = (3, 1, 2), labels: int = 2) -> waymo_pb2.Frame:
    """A frame whose lidars stand in the given order, not ascending, as in Waymo's own files."""
    rng = np.random.default_rng(0)
    frame = waymo_pb2.Frame(timestamp_micros=1553000000000001)
    frame.context.name = "1000_2000"
    frame.context.stats.time_of_day = "Dawn/Dusk"
    frame.context.stats.location = "location_sf"
    frame.context.stats.weather = "rain"
    yaw = 0.5
    pose = np.eye(4)
    pose[:2, :2] = [[np.cos(yaw), -np.sin(yaw)], [np.sin(yaw), np.cos(yaw)]]
    pose[:3, 3] = (-1257.0, 10546.0, 22.0)
    frame.pose.transform.extend(pose.ravel().tolist())
    for name in lidars:
        calibration = frame.context.laser_calibrations.add(name=name)
        extrinsic = np.eye(4)
        extrinsic[:3, 3] = (1.4, 0.1 * name, 2.0)
        calibration.extrinsic.transform.extend(extrinsic.ravel().tolist())
        if name == 1:
            calibration.beam_inclinations.extend([-0.3, -0.1, -0.02, 0.04])
        else:
            calibration.beam_inclination_min, calibration.beam_inclination_max = -1.5, 0.5
        laser = frame.lasers.add(name=name)
        laser.ri_return1.range_image_compressed = compress(range_image(rng, 0.7))
        laser.ri_return2.range_image_compressed = compress(range_image(rng, 0.2))
        if name == 1:
            poses = np.tile(np.float32([0, 0, yaw, -1257, 10546, 22]), (HEIGHT, WIDTH, 1))
            laser.ri_return1.range_image_pose_compressed = compress(poses)
    for index in range(labels):
        label = frame.laser_labels.add(type=1 + index, id=f"object {index}", num_lidar_points_in_box=10 * index)
        label.box.center_x, label.box.center_y, label.box.center_z = 10.0 + index, -3.0, 0.8
        label.box.length, label.box.width, label.box.height, label.box.heading = 4.5, 2.0, 1.6, np.pi - 1e-8
        label.detection_difficulty_level = index
        label.metadata.speed_x, label.metadata.speed_y = 3 * np.cos(yaw), 3 * np.sin(yaw)
        label.metadata.accel_z = 0.25
        if index == 1:
            label.camera_synced_box.CopyFrom(label.box)
            label.camera_synced_box.center_x += 0.5
    zone = frame.no_label_zones.add()
    zone.x.extend([0.0, 10.0, 10.0])
    zone.y.extend([0.0, 0.0, 10.0])
    return frame


@pytest.fixture
def make_frame() -> Callable[..., waymo_pb2.Frame]:
    return build_frame


@pytest.fixture
def make_matrix() -> Callable[[np.ndarray], bytes]:
    return compress
