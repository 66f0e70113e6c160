"""Frames of a store to one batch."""

from collections.abc import Sequence

import numpy as np
import torch

from detection3d.data.packing import PackedArrays
from detection3d.data.store import Store
from detection3d.types.scene import Boxes
from detection3d.types.tensors import Batch, BoxLabels, PackedPoints


def collate(store: Store, frames: Sequence[int], sample_index: Sequence[int]) -> Batch:
    """Copy frames out of the store into tensors.

    Args:
        store: the prepared store.
        frames: B frame numbers.
        sample_index: what to call the samples, see `Batch`.

    Returns:
        A batch on the CPU. Its labels have at least one column, which is padding where no frame has boxes, so that no
        reduction over the boxes meets an empty dimension.
    """
    return Batch(
        points=_points([store.packed(frame) for frame in frames]),
        labels=_labels([store.labels(frame) for frame in frames]),
        sample_index=torch.tensor(list(sample_index), dtype=torch.int64),
        keys=tuple(store.key(frame) for frame in frames),
    )


def _points(samples: Sequence[PackedArrays]) -> PackedPoints:
    counts = [len(sample) for sample in samples]
    ends = np.cumsum(counts)
    total = int(ends[-1])
    xyz = torch.empty((total, 3), dtype=torch.int16)
    features = torch.empty((total, 2), dtype=torch.float16)
    flags = torch.empty(total, dtype=torch.uint8)
    # The one copy of the points on the CPU, straight from the memory map.
    for sample, count, end in zip(samples, counts, ends, strict=True):
        rows = slice(int(end) - count, int(end))
        xyz.numpy()[rows] = sample.xyz
        features.numpy()[rows] = sample.features
        flags.numpy()[rows] = sample.flags
    return PackedPoints(xyz=xyz, features=features, flags=flags, counts=torch.tensor(counts, dtype=torch.int64))


def _labels(samples: Sequence[Boxes | None]) -> BoxLabels:
    size = len(samples)
    columns = max(1, *(0 if labels is None else len(labels) for labels in samples))
    boxes = np.zeros((size, columns, 7), np.float32)
    types = np.zeros((size, columns), np.int64)
    num_points = np.zeros((size, columns), np.int64)
    velocity = np.zeros((size, columns, 2), np.float32)
    for row, labels in enumerate(samples):
        if labels is not None:
            count = len(labels)
            boxes[row, :count] = labels.boxes
            types[row, :count] = labels.types
            num_points[row, :count] = labels.num_points
            velocity[row, :count] = labels.velocity[:, :2]
    return BoxLabels(
        boxes=torch.from_numpy(boxes),
        types=torch.from_numpy(types),
        num_points=torch.from_numpy(num_points),
        velocity=torch.from_numpy(velocity),
    )
