"""Labels of a frame."""

from collections.abc import Sequence

import numpy as np

from detection3d.data.label_check import unusable_label
from detection3d.data.waymo.malformed import MalformedFrameError
from detection3d.geometry.host.boxes import wrap_angle
from detection3d.protos import waymo_pb2
from detection3d.types.scene import BoolArray, Boxes, Float32Array, Float64Array

# Metres, radians, metres a second: more is damage, and might overflow float32.
_LARGEST = 1e9


def decode_labels(labels: Sequence[waymo_pb2.Label], pose: Float64Array) -> Boxes:
    """Turn a v1 frame's laser labels into boxes, in their order.

    Waymo gives speed and acceleration along the axes of the global frame; here they are turned into the axes of the
    vehicle frame. They stay motion over the ground: the vehicle's own motion isn't taken off. An absent component is 0.

    Args:
        labels: `Frame.laser_labels`; M of them.
        pose: float64 [4, 4], vehicle to global.

    Raises:
        MalformedFrameError: a label has no box or no type, or as `make_boxes`.
    """
    boxes = np.zeros((len(labels), 7))
    synced = np.full((len(labels), 7), np.nan)
    motion = np.zeros((len(labels), 2, 3))
    for index, label in enumerate(labels):
        if not label.HasField("box"):
            raise MalformedFrameError(f"label {index} ({label.id!r}) has no box")
        if not label.HasField("type"):
            raise MalformedFrameError(f"label {index} ({label.id!r}) has no type")
        metadata = label.metadata
        boxes[index] = _numbers(label.box)
        if label.HasField("camera_synced_box"):
            synced[index] = _numbers(label.camera_synced_box)
        motion[index, 0] = (metadata.speed_x, metadata.speed_y, metadata.speed_z)
        motion[index, 1] = (metadata.accel_x, metadata.accel_y, metadata.accel_z)
    return make_boxes(
        boxes,
        motion,
        pose,
        types=[label.type for label in labels],
        ids=[label.id for label in labels],
        difficulty=[label.detection_difficulty_level for label in labels],
        num_points=[label.num_lidar_points_in_box for label in labels],
        synced=synced,
        has_synced=np.array([label.HasField("camera_synced_box") for label in labels], np.bool_),
    )


def _numbers(box: waymo_pb2.Label.Box) -> tuple[float, ...]:
    return box.center_x, box.center_y, box.center_z, box.length, box.width, box.height, box.heading


def make_boxes(
    boxes: Float64Array,
    motion: Float64Array,
    pose: Float64Array,
    *,
    types: Sequence[int],
    ids: Sequence[str],
    difficulty: Sequence[int],
    num_points: Sequence[int],
    synced: Float64Array | None = None,
    has_synced: BoolArray | None = None,
) -> Boxes:
    """Check numbers, turn motion into the vehicle's axes, and headings into [-pi, pi).

    Args:
        boxes: float64 [M, 7], vehicle frame.
        motion: float64 [M, 2, 3], speed and acceleration, axes of the GLOBAL frame; they stay motion over the ground.
        pose: float64 [4, 4], vehicle to global.
        types: M, and so the others, as in `Boxes`.
        ids: likewise.
        difficulty: likewise.
        num_points: likewise.
        synced: float64 [M, 7], camera-synced boxes, vehicle frame.
        has_synced: bool [M], which of them there are.

    Raises:
        MalformedFrameError: a number isn't finite or is absurdly large, or as `unusable_label` says.
    """
    _check_finite(boxes, motion, ids)
    camera_synced = None
    if synced is not None and has_synced is not None and has_synced.any():
        there = np.flatnonzero(has_synced)
        _check_finite(synced[there], motion[there], [ids[index] for index in there.tolist()])
        camera_synced = np.full((len(boxes), 7), np.nan, np.float32)
        camera_synced[there] = _rounded(synced[there])
    # Row vectors times R are R^T applied to each: global axes to vehicle axes.
    turned = (motion @ pose[:3, :3]).astype(np.float32)
    made = Boxes(
        boxes=_rounded(boxes),
        types=np.array(types, np.uint8),
        ids=tuple(ids),
        difficulty=np.array(difficulty, np.uint8),
        num_points=np.array(num_points, np.int32),
        velocity=turned[:, 0],
        acceleration=turned[:, 1],
        camera_synced=camera_synced,
    )
    fault = unusable_label(made)
    if fault is not None:
        raise MalformedFrameError(fault)
    return made


def _rounded(boxes: Float64Array) -> Float32Array:
    """Return boxes in float32 with headings in [-pi, pi)."""
    rounded = boxes.astype(np.float32)
    # Wrapped after rounding, since a float64 just below pi becomes float32's pi, which lies above.
    rounded[:, 6] = wrap_angle(rounded[:, 6]).astype(np.float32)
    return rounded


def _check_finite(boxes: Float64Array, motion: Float64Array, ids: Sequence[str]) -> None:
    finite = (np.abs(boxes) < _LARGEST).all(axis=1) & (np.abs(motion) < _LARGEST).all(axis=(1, 2))
    for index in np.flatnonzero(~finite)[:1]:
        raise MalformedFrameError(
            f"label {index} ({ids[index]!r}) has a number that isn't finite, or absurdly large: "
            f"box {boxes[index].tolist()}, speed and acceleration {motion[index].tolist()}"
        )
