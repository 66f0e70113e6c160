"""Waymo v2 components made of v1's messages, and how to compare frames of both."""

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from detection3d.data.waymo.matrices import decode_matrix
from detection3d.protos import waymo_pb2
from detection3d.types.scene import Frame

MakeFrame = Callable[..., waymo_pb2.Frame]
Tables = dict[str, list[dict[str, Any]]]
NAME = "1000_2000"
AXES = ("x", "y", "z")


def messages(make_frame: MakeFrame, count: int = 3) -> list[waymo_pb2.Frame]:
    """A segment: the same frame at several times, driven on and turned by a little each time."""
    made = []
    for number in range(count):
        frame = make_frame()
        frame.timestamp_micros += 100_000 * number
        frame.pose.transform[3] += number
        for label in frame.laser_labels:
            label.metadata.speed_x += number
        made.append(frame)
    return made


def components(frames: list[waymo_pb2.Frame]) -> Tables:
    """What v2 would hold of v1's messages, in the columns of the official classes."""
    names = ("lidar", "lidar_pose", "lidar_box", "lidar_camera_synced_box", "vehicle_pose", "stats")
    tables: Tables = {name: [] for name in names}
    for frame in frames:
        key = {"key.segment_context_name": frame.context.name, "key.frame_timestamp_micros": frame.timestamp_micros}
        for laser in frame.lasers:
            row = {**key, "key.laser_name": laser.name}
            for number, image in ((1, laser.ri_return1), (2, laser.ri_return2)):
                row |= matrix(f"[LiDARComponent].range_image_return{number}", image.range_image_compressed, 4)
            tables["lidar"].append(row)
            if laser.ri_return1.range_image_pose_compressed:
                pose = matrix(
                    "[LiDARPoseComponent].range_image_return1", laser.ri_return1.range_image_pose_compressed, 6
                )
                tables["lidar_pose"].append({**key, "key.laser_name": laser.name, **pose})
        for label in frame.laser_labels:
            of_label = {**key, "key.laser_object_id": label.id}
            tables["lidar_box"].append({**of_label, **box(label)})
            if label.HasField("camera_synced_box"):
                synced = geometry("[LiDARCameraSyncedBoxComponent].camera_synced_box.", label.camera_synced_box)
                tables["lidar_camera_synced_box"].append({**of_label, **synced})
        transform = list(frame.pose.transform)
        tables["vehicle_pose"].append({**key, "[VehiclePoseComponent].world_from_vehicle.transform": transform})
        stats = {name: getattr(frame.context.stats, name) for name in ("time_of_day", "location", "weather")}
        tables["stats"].append({**key, **{f"[StatsComponent].{name}": value for name, value in stats.items()}})
    tables["lidar_calibration"] = [
        {
            "key.segment_context_name": frames[0].context.name,
            "key.laser_name": calibration.name,
            "[LiDARCalibrationComponent].extrinsic.transform": list(calibration.extrinsic.transform),
            "[LiDARCalibrationComponent].beam_inclination.min": calibration.beam_inclination_min,
            "[LiDARCalibrationComponent].beam_inclination.max": calibration.beam_inclination_max,
            "[LiDARCalibrationComponent].beam_inclination.values": list(calibration.beam_inclinations) or None,
        }
        for calibration in frames[0].context.laser_calibrations
    ]
    return tables


def matrix(prefix: str, compressed: bytes, channels: int) -> dict[str, list[float] | list[int]]:
    values = decode_matrix(compressed, channels, "image")
    return {f"{prefix}.values": values.ravel().tolist(), f"{prefix}.shape": list(values.shape)}


def geometry(prefix: str, box: waymo_pb2.Label.Box) -> dict[str, float]:
    sizes = (box.length, box.width, box.height)
    return {
        **{f"{prefix}center.{axis}": getattr(box, f"center_{axis}") for axis in AXES},
        **{f"{prefix}size.{axis}": size for axis, size in zip(AXES, sizes, strict=True)},
        f"{prefix}heading": box.heading,
    }


def box(label: waymo_pb2.Label) -> dict[str, Any]:
    prefix, data = "[LiDARBoxComponent].", label.metadata
    return {
        **geometry(f"{prefix}box.", label.box),
        f"{prefix}type": label.type,
        f"{prefix}num_lidar_points_in_box": label.num_lidar_points_in_box,
        **{f"{prefix}speed.{axis}": getattr(data, f"speed_{axis}") for axis in AXES},
        **{f"{prefix}acceleration.{axis}": getattr(data, f"accel_{axis}") for axis in AXES},
        f"{prefix}difficulty_level.detection": label.detection_difficulty_level or None,
    }


def write(root: Path, tables: Tables, schema: Callable[[str], pa.Schema | None] = lambda _: None) -> Path:
    """Write the components, and return the one of the lidars."""
    for component, rows in tables.items():
        (root / component).mkdir(parents=True, exist_ok=True)
        table = pa.Table.from_pylist(rows, schema(component))
        pq.write_table(table, root / component / f"{NAME}.parquet", row_group_size=5)
    return root / "lidar" / f"{NAME}.parquet"


def assert_same(found: Frame, wanted: Frame) -> None:
    """Equal to the bit but for the order of the boxes and the polygons, which v2 lacks."""
    assert found.key == wanted.key
    for name in ("pose", "points", "lidar", "return_number", "in_no_label_zone"):
        np.testing.assert_array_equal(getattr(found, name), getattr(wanted, name))
    for name in ("time_of_day", "location", "weather"):
        assert getattr(found, name) == getattr(wanted, name)
    assert found.labels is not None
    assert wanted.labels is not None
    assert sorted(found.labels.ids) == sorted(wanted.labels.ids)
    order = [found.labels.ids.index(name) for name in wanted.labels.ids]
    for name in ("boxes", "types", "difficulty", "num_points", "velocity", "acceleration"):
        np.testing.assert_array_equal(getattr(found.labels, name)[order], getattr(wanted.labels, name))
    assert (found.labels.camera_synced is None) == (wanted.labels.camera_synced is None)
    if wanted.labels.camera_synced is not None:
        np.testing.assert_array_equal(found.labels.camera_synced[order], wanted.labels.camera_synced)
    assert set(found.calibrations) == set(wanted.calibrations)
    for lidar, calibration in wanted.calibrations.items():
        for field in fields(calibration):
            ours, theirs = (getattr(one, field.name) for one in (found.calibrations[lidar], calibration))
            np.testing.assert_array_equal(ours, theirs)
    assert found.no_label_zones == ()


def change(component: str, row: int, column: str, value: Any) -> Callable[[Tables], object]:
    return lambda tables: tables[component][row].__setitem__(column, value)


IMAGE, POSE = "[LiDARComponent].range_image_return1", "[LiDARPoseComponent].range_image_return1"
NAN = float("nan")
