"""Waymo's own decoding, for comparison: a script for an interpreter that has the official package.

It runs by its path and imports nothing of detection3d (the interpreter is that of the evaluation environment):

    PYTHON -I official_decoder.py write FILE OUTPUT.npz     all frames' points, labels and fields
    PYTHON -I official_decoder.py turns                     decode when told to, and tell how long it took

FILE is a TFRecord of v1, or the parquet file of a v2 segment's component `lidar`. Points come from the official
`frame_utils.parse_range_image_and_camera_projection` and `convert_range_image_to_point_cloud` (v1, as in Waymo's
tutorial) and from `v2.merge` and `v2.convert_range_image_to_point_cloud` (v2, likewise), both returns of every lidar.

`write` fills OUTPUT.npz for frame N with `N/points/RETURN/LIDAR`, float32 [P, 6]: range, intensity, elongation, x, y, z
in the vehicle frame; `N/in_zone/RETURN/LIDAR`, bool [P]; `N/labels/...`, numbers as in the file, speed and
acceleration in the axes of the GLOBAL frame; `N/context_name` and the other fields; `N/zones/I`, float64 [K, 2].

`turns` says {"ready": versions} and answers each line {"file": ..., "frames": n} on standard input by
{"seconds_a_frame": s}, null where the file has but one frame: everything in lines of JSON.
"""

# pyright: reportMissingImports=false, reportMissingModuleSource=false
import itertools
import json
import os
import sys
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import dask.dataframe
import numpy as np
import tensorflow as tf
from waymo_open_dataset import dataset_pb2, v2
from waymo_open_dataset.utils import frame_utils

Arrays = dict[str, np.ndarray]
Clouds = dict[tuple[int, int], np.ndarray]
"""By return and lidar, float32 [P, 6]."""

RETURNS = (1, 2)
TOP = 1
TIMESTAMP, LASER = "key.frame_timestamp_micros", "key.laser_name"

# parse_range_image_and_camera_projection hands bytearrays to protobuf, which versions 4.21 to 4.25 refuse.
vars(frame_utils)["bytearray"] = bytes


def main(arguments: list[str]) -> None:
    """Write a file's content, or take turns."""
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    match arguments:
        case ["write", file, output]:
            np.savez(output, **write(Path(file)))  # pyright: ignore[reportArgumentType]
        case ["turns"]:
            take_turns()
        case _:
            sys.exit(__doc__)


def write(file: Path) -> Arrays:
    """Return the arrays of all frames, by the names above."""
    arrays: Arrays = {}
    frames = v2_arrays(file) if is_v2(file) else v1_arrays(file)
    for number, content in enumerate(frames):
        arrays |= {f"{number}/{name}": value for name, value in content.items()}
    return arrays


def take_turns() -> None:
    """Answer standard input, line by line, until it ends."""
    # What TensorFlow prints must not get between the answers.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    packages = ("tensorflow-cpu", "waymo-open-dataset-tf-2-12-0", "protobuf", "numpy")
    versions = {name: version(name) for name in packages if is_installed(name)}
    print(json.dumps({"ready": {"python": sys.version.split()[0], **versions}}), file=answers)
    for line in sys.stdin:
        order = json.loads(line)
        seconds = time_turn(Path(order["file"]), order["frames"])
        print(json.dumps({"seconds_a_frame": seconds}), file=answers)


def is_installed(package: str) -> bool:
    """Tell whether there is a version to name."""
    try:
        version(package)
    except ModuleNotFoundError:  # importlib.metadata.PackageNotFoundError is one
        return False
    return True


def time_turn(file: Path, frames: int) -> float | None:
    """Return the seconds that a frame takes; the first doesn't count.

    v2's tables are read whole before the first frame comes, so that each frame bears its share of the reading.
    """
    start = time.perf_counter()
    if is_v2(file):
        rows = v2_rows(file)
        total = len({row[TIMESTAMP] for row in rows})
        shared = (time.perf_counter() - start) / total
        clouds: Iterator[Any] = v2_frames(rows)
    else:
        shared, clouds = 0.0, v1_frames(file)
    next(clouds)
    start = time.perf_counter()
    count = sum(1 for _ in itertools.islice(clouds, frames))
    return shared + (time.perf_counter() - start) / count if count else None


def is_v2(file: Path) -> bool:
    """Tell v2's parquet files from v1's TFRecords."""
    return file.suffix == ".parquet"


def v1_frames(file: Path) -> Iterator[tuple[Any, dict[int, list[Any]], Clouds]]:
    """Yield each frame's message, its range images by lidar and return, and its points."""
    for record in tf.data.TFRecordDataset(str(file)):
        frame = dataset_pb2.Frame.FromString(record.numpy())
        images, projections, _, pose = frame_utils.parse_range_image_and_camera_projection(frame)
        lidars = sorted(calibration.name for calibration in frame.context.laser_calibrations)
        clouds: Clouds = {}
        for number in RETURNS:
            points, _ = frame_utils.convert_range_image_to_point_cloud(
                frame, images, projections, pose, ri_index=number - 1, keep_polar_features=True
            )
            clouds |= {(number, lidar): cloud for lidar, cloud in zip(lidars, points, strict=True)}
        yield frame, images, clouds


def v1_arrays(file: Path) -> Iterator[Arrays]:
    """Yield each frame's arrays."""
    for frame, images, clouds in v1_frames(file):
        arrays = cloud_arrays(clouds)
        for number, lidar in clouds:
            matrix = images[lidar][number - 1]
            image = np.array(matrix.data, np.float32).reshape(matrix.shape.dims)
            arrays[f"in_zone/{number}/{lidar}"] = image[image[..., 0] > 0, 3] > 0
        for index, zone in enumerate(frame.no_label_zones):
            arrays[f"zones/{index}"] = np.stack([zone.x, zone.y], axis=1)
        labels = [
            {
                "box": [box.center_x, box.center_y, box.center_z, box.length, box.width, box.height, box.heading],
                "type": label.type,
                "id": label.id,
                "difficulty": label.detection_difficulty_level,
                "num_points": label.num_lidar_points_in_box,
                "speed": [motion.speed_x, motion.speed_y, motion.speed_z],
                "acceleration": [motion.accel_x, motion.accel_y, motion.accel_z],
            }
            for label, box, motion in ((label, label.box, label.metadata) for label in frame.laser_labels)
        ]
        stats = frame.context.stats
        yield {
            **arrays,
            **label_arrays(labels),
            "context_name": np.array(frame.context.name),
            "timestamp_micros": np.array(frame.timestamp_micros),
            "pose": np.array(frame.pose.transform).reshape(4, 4),
            **{name: np.array(getattr(stats, name)) for name in ("time_of_day", "location", "weather")},
        }


def component(file: Path, name: str) -> Any:
    """Return the table of one of a v2 segment's components, not read yet."""
    return dask.dataframe.read_parquet(file.parent.parent / name / file.name)


def v2_rows(file: Path) -> list[dict[str, Any]]:
    """Return a row for each range image, joined with its calibration and poses, by time and lidar."""
    table = v2.merge(component(file, "lidar"), component(file, "lidar_calibration"))
    table = v2.merge(table, component(file, "vehicle_pose"))
    # Only TOP has poses of its pixels.
    table = v2.merge(table, component(file, "lidar_pose"), right_nullable=True)
    return table.compute().sort_values([TIMESTAMP, LASER]).to_dict("records")


def v2_frames(rows: list[dict[str, Any]]) -> Iterator[tuple[list[dict[str, Any]], Clouds]]:
    """Yield each frame's rows and points."""
    for _, group in itertools.groupby(rows, lambda row: row[TIMESTAMP]):
        of_frame, clouds = list(group), {}
        for row in of_frame:
            calibration = v2.LiDARCalibrationComponent.from_dict(row)
            pixel_pose = frame_pose = None
            if row[LASER] == TOP:
                pixel_pose = v2.LiDARPoseComponent.from_dict(row).range_image_return1
                frame_pose = v2.VehiclePoseComponent.from_dict(row)
            for number, image in zip(RETURNS, v2.LiDARComponent.from_dict(row).range_image_returns, strict=True):
                cloud = v2.convert_range_image_to_point_cloud(
                    image, calibration, pixel_pose, frame_pose, keep_polar_features=True
                )
                clouds[number, row[LASER]] = cloud.numpy()
        yield of_frame, clouds


def v2_arrays(file: Path) -> Iterator[Arrays]:
    """Yield each frame's arrays."""
    boxes = [v2.LiDARBoxComponent.from_dict(row) for row in component(file, "lidar_box").compute().to_dict("records")]
    stats = {row[TIMESTAMP]: row for row in component(file, "stats").compute().to_dict("records")}
    for rows, clouds in v2_frames(v2_rows(file)):
        arrays, timestamp = cloud_arrays(clouds), rows[0][TIMESTAMP]
        for row in rows:
            images = v2.LiDARComponent.from_dict(row).range_image_returns
            for number, image in zip(RETURNS, images, strict=True):
                tensor = image.tensor.numpy()
                arrays[f"in_zone/{number}/{row[LASER]}"] = tensor[tensor[..., 0] > 0, 3] > 0
        labels = [
            {
                "box": [*xyz(label.box.center), *xyz(label.box.size), label.box.heading],
                "type": label.type,
                "id": label.key.laser_object_id,
                "difficulty": label.difficulty_level.detection,
                "num_points": label.num_lidar_points_in_box,
                "speed": xyz(label.speed),
                "acceleration": xyz(label.acceleration),
            }
            for label in boxes
            if label.key.frame_timestamp_micros == timestamp
        ]
        circumstances = v2.StatsComponent.from_dict(stats[timestamp])
        yield {
            **arrays,
            **label_arrays(labels),
            "context_name": np.array(rows[0]["key.segment_context_name"]),
            "timestamp_micros": np.array(timestamp),
            "pose": np.array(v2.VehiclePoseComponent.from_dict(rows[0]).world_from_vehicle.transform).reshape(4, 4),
            **{name: np.array(getattr(circumstances, name)) for name in ("time_of_day", "location", "weather")},
        }


def cloud_arrays(clouds: Clouds) -> Arrays:
    """Name the points."""
    return {f"points/{number}/{lidar}": cloud for (number, lidar), cloud in clouds.items()}


def label_arrays(labels: list[dict[str, Any]]) -> Arrays:
    """Stack a frame's labels, each thing by itself."""
    names = ("box", "type", "id", "difficulty", "num_points", "speed", "acceleration")
    return {f"labels/{name}": np.array([label[name] for label in labels]) for name in names}


def xyz(vector: Any) -> list[float]:
    """Return the three numbers of one of v2's vectors."""
    return [vector.x, vector.y, vector.z]


if __name__ == "__main__":
    main(sys.argv[1:])
