"""Frames of a store to one batch."""

from collections.abc import Sequence

import numpy as np
import torch

from detection3d.data.object_candidates import ObjectSampler
from detection3d.data.store import Store
from detection3d.geometry.host.poses import invert_pose
from detection3d.types.scene import Boxes
from detection3d.types.tensors import Batch, BoxLabels, PackedPoints, Sweeps


def collate(
    store: Store,
    frames: Sequence[int],
    sample_index: Sequence[int],
    sweeps: int = 1,
    objects: ObjectSampler | None = None,
) -> Batch:
    """Copy frames out of the store into tensors.

    Args:
        store: the prepared store.
        frames: B frame numbers.
        sample_index: what to call the samples, see `Batch`.
        sweeps: how many frames make up a sample, going back in the segment; fewer at its beginning.
        objects: draws objects of other frames for the samples.

    Returns:
        A batch on the CPU. Its labels have at least one column, which is padding where no frame has boxes, so that no
        reduction over the boxes meets an empty dimension.
    """
    labels = [store.labels(frame) for frame in frames]
    return Batch(
        points=_points(store, [store.sweeps(frame, sweeps) for frame in frames], merge=sweeps > 1),
        labels=_labels(labels),
        sample_index=torch.tensor(list(sample_index), dtype=torch.int64),
        keys=tuple(store.key(frame) for frame in frames),
        objects=objects.candidates(labels, sample_index) if objects is not None else None,
    )


def _points(store: Store, samples: Sequence[Sequence[int]], *, merge: bool) -> PackedPoints:
    parts = [store.packed(frame) for sweeps in samples for frame in sweeps]
    counts = [len(part) for part in parts]
    ends = np.cumsum(counts)
    total = int(ends[-1])
    xyz = torch.empty((total, 3), dtype=torch.int16)
    features = torch.empty((total, 2), dtype=torch.float16)
    flags = torch.empty(total, dtype=torch.uint8)
    # The one copy of the points on the CPU, straight from the memory map.
    for part, count, end in zip(parts, counts, ends, strict=True):
        rows = slice(int(end) - count, int(end))
        xyz.numpy()[rows] = part.xyz
        features.numpy()[rows] = part.features
        flags.numpy()[rows] = part.flags
    last = np.cumsum([len(sweeps) for sweeps in samples])
    of_samples = np.diff(ends[last - 1], prepend=0)
    return PackedPoints(
        xyz=xyz,
        features=features,
        flags=flags,
        counts=torch.from_numpy(of_samples),
        sweeps=_sweeps(store, samples, counts) if merge else None,
    )


def _sweeps(store: Store, samples: Sequence[Sequence[int]], counts: Sequence[int]) -> Sweeps:
    to_newest, age = [], []
    for newest, *earlier in samples:
        to_vehicle, now = invert_pose(store.pose(newest)), store.key(newest)[1]
        to_newest += [np.eye(4), *(to_vehicle @ store.pose(frame) for frame in earlier)]
        age += [0.0, *((now - store.key(frame)[1]) / 1e6 for frame in earlier)]
    return Sweeps(
        counts=torch.tensor(counts, dtype=torch.int64),
        to_newest=torch.from_numpy(np.stack(to_newest)[:, :3].astype(np.float32)),
        age=torch.tensor(age, dtype=torch.float32),
    )


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
