"""Write what was seen as Waymo's `Frame` messages.

Field meanings and the layout of the range images follow Waymo's dataset.proto and label.proto. The large arrays go to
the wire format directly: handing a million floats to protobuf one by one would cost more than casting the rays.
"""

import functools
import zlib
from collections.abc import Sequence
from concurrent.futures import Executor

import numpy as np

from detection3d.data.synthetic.labels import LabelledObject
from detection3d.data.synthetic.rigs import LidarConfig, RigConfig
from detection3d.data.synthetic.scene import Scene
from detection3d.data.synthetic.sensor import Observation
from detection3d.geometry.host.poses import pose_from_angles
from detection3d.protos import waymo_pb2
from detection3d.types.scene import Float32Array, Float64Array, Lidar

COMPRESSION_LEVEL = 1
_PACKED_TAG = b"\x0a"  # field 1, length-delimited: data of MatrixFloat and MatrixInt32
_PROJECTION_CHANNELS = 6


def encode_context(scene: Scene, rig: RigConfig, name: str) -> waymo_pb2.Context:
    """Return what all frames of a segment share: its name, calibrations, and circumstances."""
    context = waymo_pb2.Context(name=name)
    for lidar in rig.lidars:
        low, high = lidar.inclination_limits
        calibration = context.laser_calibrations.add(name=_laser_name(lidar))
        calibration.beam_inclination_min, calibration.beam_inclination_max = low, high
        if not lidar.uniform:
            calibration.beam_inclinations.extend(lidar.inclinations)
        calibration.extrinsic.transform.extend(lidar.extrinsic.ravel().tolist())
    context.stats.time_of_day = scene.time_of_day
    context.stats.location = scene.location
    context.stats.weather = scene.weather
    return context


def encode_frame(
    context: waymo_pb2.Context,
    scene: Scene,
    timestamp_micros: int,
    vehicle: Float64Array,
    observations: Sequence[Observation],
    column_poses: Float32Array,
    objects: Sequence[LabelledObject],
    executor: Executor,
) -> waymo_pb2.Frame:
    """Build one frame.

    Args:
        context: from `encode_context`.
        scene: gives the no-label zones.
        timestamp_micros: microseconds.
        vehicle: float64 [6], roll, pitch, yaw, x, y, z of the vehicle, global frame.
        observations: of each calibrated lidar, in the order of the context.
        column_poses: float32 [W, 6], of TOP, global frame.
        objects: the labels.
        executor: compresses the images side by side.

    Returns:
        The frame.
    """
    frame = waymo_pb2.Frame(context=context, timestamp_micros=timestamp_micros)
    frame.pose.transform.extend(pose_from_angles(vehicle[:3], vehicle[3:]).ravel().tolist())
    images = [image for observation in observations for image in observation.images]
    top = [calibration.name for calibration in context.laser_calibrations].index(waymo_pb2.LaserName.TOP)
    rows = len(images[2 * top])
    tiled = np.ascontiguousarray(np.broadcast_to(column_poses, (rows, *column_poses.shape)))
    *compressed, pose = executor.map(compress_matrix, [*images, tiled])
    for index, calibration in enumerate(context.laser_calibrations):
        laser = frame.lasers.add(name=calibration.name)
        laser.ri_return1.range_image_compressed = compressed[2 * index]
        laser.ri_return2.range_image_compressed = compressed[2 * index + 1]
        rows, columns = images[2 * index].shape[:2]
        for image in (laser.ri_return1, laser.ri_return2):
            image.camera_projection_compressed = _seen_by_no_camera(rows, columns)
        if index == top:
            laser.ri_return1.range_image_pose_compressed = pose
    for item in objects:
        _add_label(frame, item)
    for kind in sorted({item.kind for item in objects}):
        count = sum(item.kind == kind for item in objects)
        frame.context.stats.laser_object_counts.add(type=waymo_pb2.Label.Type.ValueType(kind), count=count)
    _add_zones(frame, scene)
    return frame


def compress_matrix(values: Float32Array) -> bytes:
    """Return zlib of a MatrixFloat message."""
    values = np.ascontiguousarray(values, "<f4")
    return _compress(values.data, values.nbytes, values.shape)


@functools.lru_cache
def _seen_by_no_camera(rows: int, columns: int) -> bytes:
    """Return zlib of a MatrixInt32 [rows, columns, 6] of zeros: no camera, twice. Waymo's decoder wants it there."""
    zeros = bytes(rows * columns * _PROJECTION_CHANNELS)  # a zero takes one byte of a packed field
    return _compress(zeros, len(zeros), (rows, columns, _PROJECTION_CHANNELS))


def _compress(packed: bytes | memoryview, size: int, shape: tuple[int, ...]) -> bytes:
    """Return zlib of a matrix message; MatrixFloat and MatrixInt32 have the same fields."""
    tail = waymo_pb2.MatrixFloat(shape=waymo_pb2.MatrixShape(dims=shape)).SerializeToString()
    compressor = zlib.compressobj(COMPRESSION_LEVEL)
    head = compressor.compress(_PACKED_TAG + _varint(size))
    return b"".join((head, compressor.compress(packed), compressor.compress(tail), compressor.flush()))


def _add_label(frame: waymo_pb2.Frame, item: LabelledObject) -> None:
    label = frame.laser_labels.add(
        id=item.identity,
        type=waymo_pb2.Label.Type.ValueType(item.kind),
        num_lidar_points_in_box=item.points,
        num_top_lidar_points_in_box=item.top_points,
    )
    box, metadata = label.box, label.metadata
    box.center_x, box.center_y, box.center_z = item.box[:3].tolist()
    box.length, box.width, box.height, box.heading = item.box[3:].tolist()
    metadata.speed_x, metadata.speed_y, metadata.speed_z = item.velocity.tolist()
    metadata.accel_x, metadata.accel_y, metadata.accel_z = item.acceleration.tolist()
    if item.hard:
        label.detection_difficulty_level = waymo_pb2.Label.LEVEL_2


def _add_zones(frame: waymo_pb2.Frame, scene: Scene) -> None:
    cosine, sine = np.cos(scene.yaw), np.sin(scene.yaw)
    for index, zone in enumerate(scene.no_label_zones):
        x = cosine * zone[:, 0] - sine * zone[:, 1] + scene.offset[0]
        y = sine * zone[:, 0] + cosine * zone[:, 1] + scene.offset[1]
        frame.no_label_zones.add(x=x.tolist(), y=y.tolist(), id=f"zone-{index}")


def _laser_name(lidar: LidarConfig) -> waymo_pb2.LaserName.Name.ValueType:
    return waymo_pb2.LaserName.Name.Value(Lidar(lidar.name).name)


def _varint(value: int) -> bytes:
    """Encode a non-negative integer in base 128, lowest group first."""
    groups = bytearray()
    while value > 0x7F:
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    groups.append(value)
    return bytes(groups)
