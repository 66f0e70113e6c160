"""Waymo's `Objects` message (protos/metrics.proto) to and from detections and ground truth."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from google.protobuf.message import DecodeError

from detection3d.errors import DataError, UserError
from detection3d.evaluation.ground_truth import GroundTruth, prepare_ground_truth
from detection3d.protos import waymo_pb2
from detection3d.types.scene import Boxes, Detections, Float32Array


def encode_detections(detections: Sequence[Detections]) -> bytes:
    """Return the message's bytes; raises UserError where there is no box at all."""
    objects = waymo_pb2.Objects()
    for item in detections:
        for box, kind, score, in_zone in zip(
            item.boxes.tolist(), item.types, item.scores, item.overlaps_no_label_zone, strict=True
        ):
            entry = _add(objects, item, box, int(kind))
            entry.score = float(score)
            entry.overlap_with_nlz = bool(in_zone)
    return _serialized(objects)


def encode_ground_truth(ground_truth: Sequence[GroundTruth]) -> bytes:
    """Return the message's bytes; raises UserError where there is no box at all."""
    objects = waymo_pb2.Objects()
    for item in ground_truth:
        for index, (box, kind) in enumerate(zip(item.boxes.tolist(), item.types, strict=True)):
            entry = _add(objects, item, box, int(kind))
            entry.object.MergeFrom(
                waymo_pb2.Label(
                    detection_difficulty_level=waymo_pb2.Label.DifficultyLevel.Name(int(item.levels[index])),
                    num_lidar_points_in_box=int(item.num_points[index]),
                )
            )
            if item.velocity is not None:
                velocity = item.velocity[index].tolist()
                metadata = entry.object.metadata
                metadata.speed_x, metadata.speed_y, metadata.speed_z = velocity
    return _serialized(objects)


def decode_detections(path: Path) -> tuple[Detections, ...]:
    """Read detections; raises DataError with the number of the object where one lacks what a detection needs."""
    objects = _parse(path).objects
    for record, entry in enumerate(objects):
        if not entry.HasField("score"):
            raise DataError(path, "the object has no score; is this a file of ground truth?", record)
    return tuple(
        Detections(
            context_name=context_name,
            timestamp_micros=timestamp,
            boxes=_boxes(entries),
            types=np.array([entry.object.type for entry in entries], np.uint8),
            scores=np.array([entry.score for entry in entries], np.float32),
            overlaps_no_label_zone=np.array([entry.overlap_with_nlz for entry in entries], np.bool_),
        )
        for (context_name, timestamp), entries in _by_frame(path, objects).items()
    )


def decode_ground_truth(path: Path) -> tuple[GroundTruth, ...]:
    """Read labels and prepare them; raises DataError where no label says how many lidar points it has."""
    objects = _parse(path).objects
    if not any(entry.object.HasField("num_lidar_points_in_box") for entry in objects):
        raise DataError(
            path,
            "no object has num_lidar_points_in_box, and objects without lidar points are deleted, so nothing would be "
            "left; write the file with the number of points in each box",
        )
    result = []
    for (context_name, timestamp), entries in _by_frame(path, objects).items():
        metadata = [entry.object.metadata for entry in entries]
        velocity = np.array([(item.speed_x, item.speed_y, item.speed_z) for item in metadata], np.float32)
        acceleration = np.array([(item.accel_x, item.accel_y, item.accel_z) for item in metadata], np.float32)
        labels = Boxes(
            boxes=_boxes(entries),
            types=np.array([entry.object.type for entry in entries], np.uint8),
            ids=tuple(entry.object.id for entry in entries),
            difficulty=np.array([entry.object.detection_difficulty_level for entry in entries], np.uint8),
            num_points=np.array([entry.object.num_lidar_points_in_box for entry in entries], np.int32),
            velocity=velocity,
            acceleration=acceleration,
        )
        truth = prepare_ground_truth(labels, context_name, timestamp)
        known = any(item.HasField("speed_x") for item in metadata)
        result.append(truth if known else replace(truth, velocity=None))
    return tuple(result)


def _add(objects: waymo_pb2.Objects, frame: Detections | GroundTruth, box: list[float], kind: int) -> waymo_pb2.Object:
    x, y, z, length, width, height, heading = box
    return objects.objects.add(
        context_name=frame.context_name,
        frame_timestamp_micros=frame.timestamp_micros,
        object=waymo_pb2.Label(
            type=waymo_pb2.Label.Type.Name(kind),
            box=waymo_pb2.Label.Box(
                center_x=x, center_y=y, center_z=z, length=length, width=width, height=height, heading=heading
            ),
        ),
    )


def _serialized(objects: waymo_pb2.Objects) -> bytes:
    if not objects.objects:
        raise UserError("no boxes to write: a .bin file can't hold frames without boxes; use .parquet, which can")
    return objects.SerializeToString()


def _parse(path: Path) -> waymo_pb2.Objects:
    content = path.read_bytes()
    if not content:
        raise DataError(path, "the file is empty; write it again, or use .parquet, which can hold frames without boxes")
    try:
        objects = waymo_pb2.Objects.FromString(content)
    except DecodeError as error:
        raise DataError(path, f"not an Objects message, or cut short ({error}); write it again") from error
    if not objects.objects:
        raise DataError(path, "holds no objects; it is probably not an Objects message")
    return objects


def _by_frame(path: Path, objects: Sequence[waymo_pb2.Object]) -> dict[tuple[str, int], list[waymo_pb2.Object]]:
    frames: dict[tuple[str, int], list[waymo_pb2.Object]] = {}
    for record, entry in enumerate(objects):
        if not entry.HasField("context_name") or not entry.HasField("frame_timestamp_micros"):
            raise DataError(path, "the object doesn't name its frame (context_name, frame_timestamp_micros)", record)
        if not entry.object.HasField("box"):
            raise DataError(path, "the object has no box", record)
        if entry.camera_name != waymo_pb2.CameraName.UNKNOWN:
            raise DataError(path, "the object belongs to a camera; these metrics are those of lidar detection", record)
        frames.setdefault((entry.context_name, entry.frame_timestamp_micros), []).append(entry)
    return frames


def _boxes(entries: Sequence[waymo_pb2.Object]) -> Float32Array:
    """Return float32 [M, 7]; float64 numbers beyond its range become infinite and are reported as such."""
    boxes = [entry.object.box for entry in entries]
    rows = [(b.center_x, b.center_y, b.center_z, b.length, b.width, b.height, b.heading) for b in boxes]
    with np.errstate(over="ignore"):
        return np.array(rows, np.float64).astype(np.float32).reshape(-1, 7)
