"""Where in a map the tasks conflict: one backward pass, summed over samples and channels.

Like telemetry, the map travels as the gradient of a zero tensor and stays on the device until it is read.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from detection3d.multitask.ranks import Ranks


@dataclass(frozen=True)
class ConflictMap:
    """The tasks' gradients at each cell of the shared map: means over the backward passes since the last reading.

    Elements are compared one by one, whatever the method marginalizes: other samples have other objects in a cell, so
    what their gradients do together says nothing about the place. The gradients' mass and not the number of channels in
    conflict is counted, since a classification loss leaves a trace of gradient everywhere, with signs at random.

    Attributes:
        mass: float64 [H, W] on the CPU, sum over samples, channels and tasks of |g_i|. It tells cells without anything
            to learn from those where the tasks agree.
        cancelled: float64 [H, W], sum over samples and channels of 2 min(S+, S-), the part of the mass that the plain
            sum of the tasks loses: sum |g_i| - |sum g_i|.
        passes: backward passes that were measured.
    """

    mass: Tensor
    cancelled: Tensor
    passes: int

    @property
    def share(self) -> Tensor:
        """The part of each cell's mass that cancels, [H, W] in [0, 1]; 0 where there is no mass."""
        return torch.where(self.mass == 0, 0.0, self.cancelled / self.mass)


def map_shape(shape: Sequence[int], channel_dim: int) -> tuple[int, int]:
    """Return (H, W) of an activation: its dims beside the first and the channels, in their order.

    Raises:
        ValueError: there are not two such dims.
    """
    sizes = [size for dim, size in enumerate(shape) if dim not in (0, channel_dim % len(shape))]
    if len(sizes) != 2:
        raise ValueError(
            f"a map needs an activation of 4 dims, samples, channels and two of space; found {tuple(shape)}. Set"
            " map_every to 0"
        )
    return sizes[0], sizes[1]


def map_probe_size(shape: tuple[int, int]) -> int:
    """Return how many numbers `measure_map` gives for a map of (H, W)."""
    return 1 + 2 * shape[0] * shape[1]


def measure_map(gradients: Tensor, channel_dim: int, ranks: Ranks) -> Tensor:
    """Measure one backward pass, over all ranks.

    Args:
        gradients: [K, B, ...], with four dims beside the tasks'.
        channel_dim: the activation's channel dim.
        ranks: whose samples are summed. As their losses are scaled by the number of ranks, the sum is divided by it.

    Returns:
        float64 [map_probe_size], on the device: the number of passes, the mass, what cancels.
    """
    summed = (0, channel_dim % (gradients.ndim - 1))
    positive, negative = gradients.clamp(min=0).sum(0), (-gradients).clamp(min=0).sum(0)
    # The smaller of the two and not the difference of sums, so that it is exactly 0 where no signs differ.
    mass = (positive + negative).sum(summed, dtype=torch.float64)
    cancelled = 2 * torch.minimum(positive, negative).sum(summed, dtype=torch.float64)
    maps = ranks.sum(torch.stack([mass, cancelled])) / ranks.size
    return torch.cat([maps.new_ones(1), maps.flatten()])


def read_conflict_map(numbers: Tensor, shape: tuple[int, int], loss_scale: float = 1.0) -> ConflictMap:
    """Turn a map probe's gradient into a `ConflictMap`; copies to the host and waits for the device.

    Args:
        numbers: float64 [map_probe_size], the sum of what `measure_map` returned in one or more passes.
        shape: (H, W).
        loss_scale: what the losses were multiplied with; both maps are divided by it.
    """
    host = numbers.detach().cpu()
    passes = float(host[0])
    mass, cancelled = (host[1:] / (passes * loss_scale)).reshape(2, *shape).unbind()
    return ConflictMap(mass, cancelled, round(passes))
