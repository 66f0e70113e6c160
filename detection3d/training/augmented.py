"""Training samples as frames, for a person to look at."""

from collections.abc import Iterator

import numpy as np

from detection3d.config import Config
from detection3d.data.collate import collate
from detection3d.data.object_candidates import ObjectSampler
from detection3d.data.sampling import FrameOrder, Sampling
from detection3d.data.store import Store
from detection3d.errors import DataError, UserError
from detection3d.training.step_input import network_input
from detection3d.types.scene import Boxes, Frame, Lidar
from detection3d.types.tensors import BoxLabels


def augmented_frames(store: Store, config: Config, count: int, segment: str | None = None) -> Iterator[Frame]:
    """Yield samples of a run's first epoch as its network gets them.

    Args:
        store: the training data.
        config: the run; sampling, sweeps, objects and augmentation are done as in training.
        count: how many samples, spread over the epoch; fewer where there are no more.
        segment: take those of this segment alone.

    Yields:
        Frames in the sample's own coordinates, with the identity as their pose: what is mirrored or scaled has no place
        in the world. Which lidar a point comes from isn't known any more. The ids of pasted objects are +0, +1 ...

    Raises:
        UserError: the store or the database can't be used as the config wants, or the segment is never drawn.
    """
    store.require(config.data.returns, config.model.point_range, config.data.sweeps)
    config = config.in_steps(len(store.every(config.data.every)))
    order, objects = FrameOrder(store, Sampling.of(config), config.seed), ObjectSampler.of(config)
    samples = range(len(order))
    if segment is not None:
        samples = [sample for sample in samples if store.key(order.frame(sample))[0] == segment]
        if not samples:
            raise UserError(f"{store.root}: the first epoch has no frame of segment {segment}")
    count = min(count, len(samples))
    for place in range(count):
        yield _sample(store, config, order, objects, samples[(2 * place + 1) * len(samples) // (2 * count)])


def _sample(store: Store, config: Config, order: FrameOrder, objects: ObjectSampler | None, sample: int) -> Frame:
    number = order.frame(sample)
    before, (name, timestamp) = store.labels(number), store.key(number)
    if before is None:
        reason = f"frame {name} at {timestamp} has no labels, so training refuses it; inspect it without --augmented"
        raise DataError(store.root, reason)
    batch = collate(store, [number], [sample], config.data.sweeps, objects)
    points, labels = network_input(batch, config, sample // config.training.batch_size)
    total = len(points.values)
    return Frame(
        context_name=name,
        timestamp_micros=timestamp,
        pose=np.eye(4),
        points=points.values[:, :5].numpy(),
        lidar=np.full(total, Lidar.UNKNOWN, np.uint8),
        return_number=np.ones(total, np.uint8),
        in_no_label_zone=np.zeros(total, np.bool_),
        labels=_boxes(labels, before),
    )


def _boxes(labels: BoxLabels, before: Boxes) -> Boxes:
    rows = labels.types[0] > 0
    rows[: len(before)] = True  # UNKNOWN is no padding here
    own = int(rows[: len(before)].sum())
    count = int(rows.sum())
    still = np.zeros((count, 3), np.float32)
    velocity = still.copy()
    velocity[:, :2] = labels.velocity[0][rows].numpy()
    return Boxes(
        boxes=labels.boxes[0][rows].numpy(),
        types=labels.types[0][rows].numpy().astype(np.uint8),
        ids=(*before.ids, *(f"+{number}" for number in range(count - own))),
        difficulty=np.concatenate([before.difficulty, np.zeros(count - own, np.uint8)]),
        num_points=labels.num_points[0][rows].numpy().astype(np.int32),
        velocity=velocity,
        acceleration=still,
    )
