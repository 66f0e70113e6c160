"""What the model and the training loop exchange, in torch. Letters of the shapes: see `detection3d`."""

from collections.abc import Callable
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sweeps:
    """The sweeps that make up a batch's points, P of them: sample by sample, from the newest back.

    Attributes:
        counts: int64 [P], points of each.
        to_newest: float32 [P, 3, 4], from the vehicle frame of the sweep to that of the sample's newest.
        age: float32 [P], seconds before the sample's newest sweep.
    """

    counts: Tensor
    to_newest: Tensor
    age: Tensor


@dataclass(frozen=True)
class PackedPoints:
    """Points of a batch as the store keeps them (11 bytes a point), concatenated over the samples.

    Attributes:
        xyz: int16 [N, 3] in steps of 2^-7 m, vehicle frame.
        features: float16 [N, 2], raw intensity and elongation.
        flags: uint8 [N]; the bits are fixed in `data.packing`.
        counts: int64 [B], points of each sample; their sum is N.
        sweeps: where samples are made of several; each sweep's points are in its own vehicle frame.
    """

    xyz: Tensor
    features: Tensor
    flags: Tensor
    counts: Tensor
    sweeps: Sweeps | None = None


@dataclass(frozen=True)
class Points:
    """Points of a batch as the model takes them.

    Attributes:
        values: float32 [N, 5 or 6], (x, y, z, intensity, elongation[, seconds before the newest sweep]), raw.
        batch_index: int64 [N], ascending.
    """

    values: Tensor
    batch_index: Tensor


@dataclass(frozen=True)
class BoxLabels:
    """Ground truth of a batch, padded to the largest number of boxes M.

    Attributes:
        boxes: float32 [B, M, 7], vehicle frame.
        types: int64 [B, M], `ObjectType`; 0 marks padding.
        num_points: int64 [B, M], as labelled.
        velocity: float32 [B, M, 2], m/s, vehicle-frame axes.
    """

    boxes: Tensor
    types: Tensor
    num_points: Tensor
    velocity: Tensor


@dataclass(frozen=True)
class ObjectCandidates:
    """Objects of other frames that may be put into a batch's samples, K for each.

    Attributes:
        points: their points; `counts` is int64 [B * K], points of each candidate.
        labels: [B, K]; type 0 marks padding. `num_points` is of the database; those of a return that isn't wanted go.
    """

    points: PackedPoints
    labels: BoxLabels


@dataclass(frozen=True)
class Batch:
    """What the loader hands over.

    Attributes:
        points: the points, packed.
        labels: ground truth; no boxes at all where the data set has no labels.
        sample_index: int64 [B], running index of each sample, epoch * frames + position in that epoch's order; the same
            on any number of ranks.
        keys: `(context_name, timestamp_micros)` of each frame.
        objects: what augmentation may add; None where it is to add nothing.
        parts: samples of each micro-batch that a training step is to take them in, in order; None takes all at once.
    """

    points: PackedPoints
    labels: BoxLabels
    sample_index: Tensor
    keys: tuple[tuple[str, int], ...]
    objects: ObjectCandidates | None = None
    parts: tuple[int, ...] | None = None

    @property
    def size(self) -> int:
        """Number of samples, B."""
        return len(self.keys)


@dataclass(frozen=True)
class HeadOutputs:
    """What the three heads say. Which output has which channels of which map is told by `model.layout`.

    The outputs, by name: `heatmap`, a logit for each class; `offset`, of the centre from the cell's centre (x, y) in
    cells; `height`, the centre's z in metres; `size`, log of length, width and height in metres; `heading`, its sine
    and cosine, not normalised; `quality`, 2 IoU - 1 of the cell's box with its object; `velocity` (x, y) in m/s.

    Attributes:
        maps: by task, [B, *, H, W].
        features: the fork's alias of the shared feature by task, [B, C, H, W], which its method may ask for.
    """

    maps: dict[str, Tensor]
    features: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Targets:
    """What the heads should have said.

    Attributes:
        heatmap: float32 [B, classes, H, W], Gaussians with peak 1.
        cell: int64 [B, M], flat index y * W + x of each object's cell; 0 where not valid.
        valid: bool [B, M], objects of a known class, inside the range and with points.
        offset: float32 [B, M, 2], as all that follows in the units of `HeadOutputs`, and 0 where not valid.
        height: float32 [B, M, 1].
        size: float32 [B, M, 3].
        heading: float32 [B, M, 2].
        velocity: float32 [B, M, 2].
        global_count: float32 scalar, what losses are divided by: valid objects over all ranks, at least 1, divided by
            the number of ranks, so that the mean of the ranks' losses is the loss of all their samples.
    """

    heatmap: Tensor
    cell: Tensor
    valid: Tensor
    offset: Tensor
    height: Tensor
    size: Tensor
    heading: Tensor
    velocity: Tensor
    global_count: Tensor


@dataclass(frozen=True)
class TaskLosses:
    """One scalar for each task: the sum of its outputs' losses. Each depends on its own head alone."""

    classification: Tensor
    box: Tensor
    orientation: Tensor

    def as_dict(self) -> dict[str, Tensor]:
        """Return the losses by task name, in the order of the fork's tasks."""
        return {member.name: getattr(self, member.name) for member in fields(self)}


TensorData = TypeVar("TensorData", Batch, PackedPoints, BoxLabels, Points, Targets, Sweeps, ObjectCandidates)


def make_current(device: torch.device) -> None:
    """Make a CUDA device this thread's current one, which is where spconv, events and graphs go unless told otherwise.

    Args:
        device: where tensors will lie; one without a number is the current one, and the CPU has no such thing.
    """
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)


def to_device(value: TensorData, device: torch.device) -> TensorData:
    """Copy every tensor of a (nested) dataclass to `device`, without waiting where the memory is pinned."""
    return _map_tensors(value, lambda tensor: tensor.to(device, non_blocking=True))


def pin(value: TensorData) -> TensorData:
    """Copy every tensor of a (nested) dataclass into pinned memory."""
    return _map_tensors(value, Tensor.pin_memory)


def _map_tensors(value: TensorData, change: Callable[[Tensor], Tensor]) -> TensorData:
    changes = {}
    for member in fields(value):
        item = getattr(value, member.name)
        if isinstance(item, Tensor):
            changes[member.name] = change(item)
        elif is_dataclass(item):
            changes[member.name] = _map_tensors(item, change)  # pyright: ignore[reportArgumentType] one of the constraints
    return replace(value, **changes)
