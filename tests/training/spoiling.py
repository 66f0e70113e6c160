"""Batches and losses that are not finite, each in another way."""

import math
from collections.abc import Callable
from dataclasses import replace

import torch

from detection3d.types.tensors import Batch, TaskLosses


def points(batch: Batch) -> Batch:
    """Intensities of the first frame that are NaN, which the store's float16 can hold; the statistics get them, too."""
    features = batch.points.features.clone()
    features[: int(batch.points.counts[0]), 0] = math.nan
    return replace(batch, points=replace(batch.points, features=features))


def labels(batch: Batch) -> Batch:
    """A length that is infinite."""
    boxes = batch.labels.boxes.clone()
    boxes[0, 0, 3] = math.inf
    return replace(batch, labels=replace(batch.labels, boxes=boxes))


def loss_alone(losses: TaskLosses) -> TaskLosses:
    """NaN whose gradient is as finite as before."""
    return replace(losses, orientation=losses.orientation + math.nan)


def gradient_alone(losses: TaskLosses) -> TaskLosses:
    """A loss below float32's largest, whose gradient has a norm above it."""
    return replace(losses, box=losses.box * 1e37)


class SpoilNext:
    """Stands for `compute_losses`, and changes what it returns once for each time that `ready` was set."""

    def __init__(self, real: Callable[..., TaskLosses], spoil: Callable[[TaskLosses], TaskLosses]) -> None:
        self.real, self.spoil, self.ready = real, spoil, False

    def __call__(self, *arguments: object) -> TaskLosses:
        losses = self.real(*arguments)
        if not self.ready:
            return losses
        self.ready = False
        return self.spoil(losses)


def is_finite(losses: TaskLosses) -> bool:
    return all(bool(torch.isfinite(loss)) for loss in losses.as_dict().values())
