"""Random changes of whole samples, for a batch at once, on the device that holds it.

What happens to a sample is a function of (seed, its running index): see `detection3d.data.counter_hash`. So it stays
the same after a resume, with any number of workers and in a batch of any other composition.
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from detection3d.config import AugmentationConfig
from detection3d.data.counter_hash import uniform
from detection3d.geometry.device.boxes import wrap_angle
from detection3d.types.tensors import BoxLabels, Points

_PARAMETERS = 0x41554731  # streams of `uniform`; arbitrary, but a change changes every run
_DROPOUT = 0x41554732


@dataclass(frozen=True)
class Similarity:
    """For each sample a flip, rotation and scaling in the ground plane, the same scaling along z, and a translation.

    A point becomes `(linear (x, y), scale z) + translation`.

    Attributes:
        linear: float32 [B, 2, 2]: scaling times rotation times flips.
        scale: float32 [B].
        translation: float32 [B, 3], metres.
        turn: float32 [B], radians: a heading h becomes `handedness * h + turn`.
        handedness: float32 [B]: -1 where the sample is mirrored, else 1.
    """

    linear: Tensor
    scale: Tensor
    translation: Tensor
    turn: Tensor
    handedness: Tensor


def augment(
    points: Points, labels: BoxLabels, *, config: AugmentationConfig, seed: int, sample_index: Tensor
) -> tuple[Points, BoxLabels]:
    """Flip, turn, scale and shift each sample, and leave out some of its points.

    Points in a box before are in it afterwards. Velocities are turned and scaled too. `num_points` stays as labelled.

    Args:
        points: N points of B samples, vehicle frame; columns after z are left alone.
        labels: their labels; padding stays as it is.
        config: how much of each.
        seed: of the run.
        sample_index: int64 [B], running index over all epochs (`Batch.sample_index`).

    Returns:
        New points and labels; the arguments are not changed. With everything in `config` zero the values are the same.
    """
    similarity = draw_similarity(config, seed, sample_index)
    points = transform_points(points, similarity)
    labels = transform_labels(labels, similarity)
    if config.point_dropout > 0:
        points = drop_points(points, config.point_dropout, seed, sample_index)
    return points, labels


def draw_similarity(config: AugmentationConfig, seed: int, sample_index: Tensor) -> Similarity:
    """Draw each sample's flips, rotation, scaling and translation.

    Args:
        config: the ranges; flip_x mirrors y -> -y, flip_y mirrors x -> -x, each with its probability.
        seed: of the run.
        sample_index: int64 [B].
    """
    device = sample_index.device
    # On the host, where eighty operations on a few numbers are quicker than eighty launches.
    sample_index, number = sample_index.cpu(), torch.arange(10)
    draws = uniform(seed, _PARAMETERS, sample_index[:, None], number[None, :]).double()
    y_sign = torch.where(draws[:, 0] < config.flip_x, -1.0, 1.0).double()
    x_sign = torch.where(draws[:, 1] < config.flip_y, -1.0, 1.0).double()
    angle = (2 * draws[:, 2] - 1) * config.rotation
    scale = 1 + (2 * draws[:, 3] - 1) * config.scale
    # Box and Muller's normal numbers; 1 - u is in (0, 1], which keeps the logarithm finite.
    radius = torch.sqrt(-2 * torch.log(1 - draws[:, 4:7]))
    translation = config.translation * radius * torch.cos(2 * math.pi * draws[:, 7:10])

    cosine, sine = scale * torch.cos(angle), scale * torch.sin(angle)
    rows = (torch.stack((cosine * x_sign, -sine * y_sign), 1), torch.stack((sine * x_sign, cosine * y_sign), 1))
    # Mirroring y turns a heading h into -h, mirroring x into pi - h, both into h + pi.
    turn = angle + torch.where(x_sign < 0, math.pi, 0.0)
    columns = torch.stack(rows, 1).flatten(1), translation, torch.stack((scale, turn, x_sign * y_sign), 1)
    linear, translation, others = torch.cat(columns, 1).float().to(device).split([4, 3, 3], 1)
    scale, turn, handedness = others.unbind(1)
    return Similarity(linear.unflatten(1, (2, 2)), scale, translation, turn, handedness)


def transform_points(points: Points, similarity: Similarity) -> Points:
    """Move each point with its sample."""
    sample = points.batch_index
    moved = torch.cat(
        (
            _turn(points.values[:, :2], similarity.linear[sample]) + similarity.translation[sample, :2],
            points.values[:, 2:3] * similarity.scale[sample, None] + similarity.translation[sample, 2:],
            points.values[:, 3:],
        ),
        dim=1,
    )
    return replace(points, values=moved)


def transform_labels(labels: BoxLabels, similarity: Similarity) -> BoxLabels:
    """Move each box with its sample; sizes are scaled, headings wrapped to [-pi, pi)."""
    linear = similarity.linear[:, None]
    boxes = torch.cat(
        (
            _turn(labels.boxes[..., :2], linear) + similarity.translation[:, None, :2],
            labels.boxes[..., 2:3] * similarity.scale[:, None, None] + similarity.translation[:, None, 2:],
            labels.boxes[..., 3:6] * similarity.scale[:, None, None],
            _wrap(similarity.handedness[:, None] * labels.boxes[..., 6] + similarity.turn[:, None])[..., None],
        ),
        dim=-1,
    )
    padding = (labels.types == 0)[..., None]
    return replace(
        labels,
        boxes=torch.where(padding, labels.boxes, boxes),
        velocity=torch.where(padding, labels.velocity, _turn(labels.velocity, linear)),
    )


def drop_points(points: Points, largest_share: float, seed: int, sample_index: Tensor) -> Points:
    """Leave out a share of each sample's points, drawn uniformly up to `largest_share`.

    Args:
        points: N points of B samples.
        largest_share: in [0, 1).
        seed: of the run.
        sample_index: int64 [B].

    Returns:
        The remaining points in their order.
    """
    # A point is drawn by its place in its own sample, so that the other samples of the batch don't matter.
    starts = torch.searchsorted(points.batch_index, torch.arange(len(sample_index), device=sample_index.device))
    place = torch.arange(len(points.values), device=sample_index.device) - starts[points.batch_index]
    share = largest_share * uniform(seed, _DROPOUT, sample_index)
    draw = uniform(seed, _DROPOUT + 1, sample_index[points.batch_index], place)
    keep = draw >= share[points.batch_index]
    return replace(points, values=points.values[keep], batch_index=points.batch_index[keep])


def _turn(vectors: Tensor, linear: Tensor) -> Tensor:
    """Multiply [..., 2] vectors by [..., 2, 2] matrices, without a matrix product, which may round to TF32."""
    return (linear * vectors[..., None, :]).sum(-1)


def _wrap(angle: Tensor) -> Tensor:
    """Wrap to [-pi, pi), leaving alone what is inside: wrapping rounds."""
    return torch.where(angle.abs() < math.pi, angle, wrap_angle(angle))
