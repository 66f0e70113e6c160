"""Synthetic detections and ground truth of the size of a validation set's frames, to time the metrics with."""

import numpy as np

from detection3d.evaluation.ground_truth import GroundTruth
from detection3d.types.scene import Detections, Float32Array, ObjectType, UInt8Array

OBJECTS = 28
DETECTIONS = 100
_FRAMES_A_SEGMENT = 198
_FOUND, _DOUBLED = 24, 36  # detections of different objects, and further ones of any
_TYPES = (ObjectType.VEHICLE, ObjectType.PEDESTRIAN, ObjectType.CYCLIST)
_SHARES = (0.6, 0.3, 0.1)
_SIZES = np.array([[4.6, 2.0, 1.7], [0.9, 0.9, 1.8], [1.8, 0.8, 1.7]])
_ERRORS = np.array([0.25, 0.15, 0.1, 0.15, 0.05, 0.05, 0.1])


def random_frames(count: int, seed: int = 0) -> tuple[list[Detections], list[GroundTruth]]:
    """Make frames with 100 detections of 28 objects: most objects are found, many twice, and much is false.

    Args:
        count: number of frames.
        seed: of the random numbers.

    Returns:
        Detections and ground truth, one of each for each frame.
    """
    rng = np.random.default_rng(seed)
    predictions, truths = [], []
    for index in range(count):
        key = f"segment-{index // _FRAMES_A_SEGMENT:04d}", 100_000 * (index % _FRAMES_A_SEGMENT)
        objects, types = _objects(rng, OBJECTS)
        which = np.concatenate([rng.permutation(OBJECTS)[:_FOUND], rng.integers(0, OBJECTS, _DOUBLED)])
        false, false_types = _objects(rng, DETECTIONS - len(which))
        found = objects[which] + rng.normal(0, 1, (len(which), 7)) * _ERRORS
        truths.append(
            GroundTruth(
                *key,
                boxes=objects,
                types=types,
                levels=rng.choice([1, 2], OBJECTS, p=[0.8, 0.2]).astype(np.uint8),
                num_points=np.full(OBJECTS, 20, np.int32),
                velocity=rng.normal(0, 3, (OBJECTS, 3)).astype(np.float32),
            )
        )
        predictions.append(
            Detections(
                *key,
                boxes=np.concatenate([found, false]).astype(np.float32),
                types=np.concatenate([types[which], false_types]),
                scores=rng.beta(1, 2, DETECTIONS).astype(np.float32),
                overlaps_no_label_zone=rng.random(DETECTIONS) < 0.02,
            )
        )
    return predictions, truths


def _objects(rng: np.random.Generator, count: int) -> tuple[Float32Array, UInt8Array]:
    kinds = rng.choice(len(_TYPES), count, p=_SHARES)
    centres = np.column_stack([rng.uniform(-75, 75, (count, 2)), rng.normal(1, 0.3, count)])
    boxes = np.column_stack([centres, _SIZES[kinds], rng.uniform(-np.pi, np.pi, count)])
    return boxes.astype(np.float32), np.array(_TYPES, np.uint8)[kinds]
