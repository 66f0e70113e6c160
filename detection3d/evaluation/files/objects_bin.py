"""Waymo's `Objects` message (protos/metrics.proto) to and from detections and ground truth."""

from collections.abc import Callable, Sequence

import numpy as np

from detection3d.errors import DataError, UserError
from detection3d.evaluation.files.objects_stream import Source
from detection3d.evaluation.files.objects_table import ObjectTable
from detection3d.evaluation.files.wire_encode import encode_frame
from detection3d.evaluation.files.wire_objects import (
    BOX,
    CAMERA,
    HAS_BOX,
    HAS_NAME,
    HAS_POINTS,
    HAS_SCORE,
    HAS_SPEED,
    HAS_TIME,
    HAS_WHOLE_BOX,
    IN_ZONE,
    LEVEL,
    POINTS,
    SCORE,
    TYPE,
    VELOCITY,
    ObjectRows,
)
from detection3d.evaluation.ground_truth import GroundTruth, prepare_ground_truth
from detection3d.protos import waymo_pb2
from detection3d.types.scene import BoolArray, Boxes, Detections, ObjectType

MAX_MESSAGE = (1 << 31) - 1
"""Bytes; protobuf's own decoders read no longer message."""


def encode_objects(frames: Sequence[Detections] | Sequence[GroundTruth]) -> bytes:
    """Return the message's bytes; raises UserError where there is no box at all, or too many."""
    content = b"".join(encode_frame(item) for item in frames)
    if not content:
        raise UserError("no boxes to write: a .bin file can't hold frames without boxes; use .parquet, which can")
    if len(content) > MAX_MESSAGE:
        raise UserError(
            f"an Objects message of {len(content):,} bytes: protobuf reads at most {MAX_MESSAGE:,}; use .parquet, or "
            "for Waymo's server the shards of tools/make_submission.py"
        )
    return content


def check_detection_rows(source: Source, rows: ObjectRows, first: int) -> None:
    """Refuse objects that can't be detections; `first` is the number of the first row in the file."""
    _check_rows(source, rows, first)
    _refuse(source, rows.present & HAS_SCORE == 0, first, lambda _: "has no score; is this a file of ground truth?")


def check_truth_rows(source: Source, rows: ObjectRows, first: int) -> None:
    """Refuse objects that can't be labels; `first` is the number of the first row in the file."""
    _check_rows(source, rows, first)
    levels = rows.integers[:, LEVEL]
    _refuse(
        source,
        (levels < 0) | (levels > 2),
        first,
        lambda row: f"has difficulty level {levels[row]}; levels are 0 (unknown), 1 and 2",
    )


def table_to_detections(table: ObjectTable) -> tuple[Detections, ...]:
    """Return the detections of each frame."""
    boxes = np.ascontiguousarray(table.rows.floats[:, BOX])
    scores = table.rows.floats[:, SCORE].copy()
    types = table.rows.integers[:, TYPE].astype(np.uint8)
    in_zone = table.rows.integers[:, IN_ZONE].astype(np.bool_)
    velocity = np.ascontiguousarray(table.rows.floats[:, VELOCITY][:, :2])
    moving = table.rows.present & HAS_SPEED != 0
    return tuple(
        Detections(
            context_name=key[0],
            timestamp_micros=key[1],
            boxes=boxes[start:end],
            types=types[start:end],
            scores=scores[start:end],
            overlaps_no_label_zone=in_zone[start:end],
            velocity=velocity[start:end] if moving[start:end].all() and end > start else None,
        )
        for key, start, end in table.frames()
    )


def has_points(table: ObjectTable) -> bool:
    """Tell whether any label says how many lidar points it has."""
    return bool(np.any(table.rows.present & HAS_POINTS))


def table_to_ground_truth(table: ObjectTable) -> tuple[GroundTruth, ...]:
    """Return the ground truth of each frame, prepared from its labels; velocity is None where no label has one."""
    rows = table.rows
    labels = Boxes(
        boxes=np.ascontiguousarray(rows.floats[:, BOX]),
        types=rows.integers[:, TYPE].astype(np.uint8),
        ids=("",) * len(rows.present),
        difficulty=rows.integers[:, LEVEL].astype(np.uint8),
        num_points=rows.integers[:, POINTS].copy(),
        velocity=np.ascontiguousarray(rows.floats[:, VELOCITY]),
        acceleration=np.zeros((len(rows.present), 3), np.float32),
    )
    # All frames at once; forty thousand calls would take longer than the reading.
    prepared = prepare_ground_truth(labels, "", 0)
    frame_of = np.repeat(np.arange(len(table.keys)), np.diff(table.offsets))
    kept = frame_of[labels.num_points > 0]
    assert len(kept) == len(prepared), "preparation keeps what has points"
    without = np.bincount(frame_of[labels.num_points <= 0], minlength=len(table.keys)).tolist()
    bounds = np.searchsorted(kept, np.arange(len(table.keys) + 1)).tolist()
    moving = np.zeros(len(table.keys), np.bool_)
    moving[frame_of[rows.present & HAS_SPEED != 0]] = True
    assert prepared.velocity is not None
    return tuple(
        GroundTruth(
            context_name=key[0],
            timestamp_micros=key[1],
            boxes=prepared.boxes[start:end],
            types=prepared.types[start:end],
            levels=prepared.levels[start:end],
            num_points=prepared.num_points[start:end],
            velocity=prepared.velocity[start:end] if known else None,
            without_points=left_out,
        )
        for key, start, end, known, left_out in zip(
            table.keys, bounds[:-1], bounds[1:], moving.tolist(), without, strict=True
        )
    )


def _check_rows(source: Source, rows: ObjectRows, first: int) -> None:
    present, types, cameras = rows.present, rows.integers[:, TYPE], rows.integers[:, CAMERA]
    both = HAS_NAME | HAS_TIME
    _refuse(
        source,
        present & both != both,
        first,
        lambda _: "doesn't name its frame (context_name, frame_timestamp_micros)",
    )
    _refuse(source, present & HAS_BOX == 0, first, lambda _: "has no box")
    _refuse(
        source,
        cameras != 0,
        first,
        lambda row: f"belongs to a camera ({cameras[row]}); these metrics are those of lidar",
    )
    _refuse(
        source,
        present & HAS_WHOLE_BOX != HAS_WHOLE_BOX,
        first,
        lambda row: f"has no 3D box: {_missing(int(present[row]))} is missing",
    )
    _refuse(
        source,
        (types < 0) | (types > max(ObjectType)),
        first,
        lambda row: f"has type {types[row]}; Waymo's types are 0 to {max(ObjectType)}",
    )


def _refuse(source: Source, wrong: BoolArray, first: int, reason: Callable[[int], str]) -> None:
    if wrong.any():
        row = int(np.argmax(wrong))
        raise DataError(source.name, f"the object {reason(row)}", first + row)


def _missing(present: int) -> str:
    fields = waymo_pb2.Label.Box.DESCRIPTOR.fields
    return ", ".join(field.name for field in fields if not present & 1 << field.number)
