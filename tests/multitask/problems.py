"""Gradients at a shared activation, drawn for the tests of what combines them."""

import torch
from torch import Tensor

from detection3d.multitask.positions import DensePositions, Marginalize

MODES: tuple[Marginalize, ...] = ("batch", "batch+space", "none")


def problem(seed: int, tasks: int = 3, shape: tuple[int, ...] = (2, 3, 4, 2), dtype: torch.dtype = torch.float64):
    """Gradients, activation and a uniform tensor as large as the activation; some gradients and activations are 0."""
    generator = torch.Generator().manual_seed(seed)
    gradients = torch.randn(tasks, *shape, generator=generator, dtype=torch.float64)
    gradients *= torch.rand(tasks, *shape, generator=generator) > 0.2
    activation = torch.randn(shape, generator=generator, dtype=torch.float64)
    activation *= torch.rand(shape, generator=generator) > 0.2
    uniform = torch.rand(shape, generator=generator, dtype=torch.float64)
    return gradients.to(dtype), activation.to(dtype), uniform


def draw(uniform: Tensor, mode: Marginalize, channel_dim: int = 1) -> Tensor:
    """Cut a full-size uniform tensor down to one number a position."""
    return uniform[tuple(slice(size) for size in DensePositions(mode, channel_dim).shape(uniform.shape))]
