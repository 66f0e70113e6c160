"""What counts as one position of the shared activation, and the gradient that arrives there."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

Marginalize = Literal["batch", "batch+space", "none"]
"""Dimensions that are summed before signs are compared: the batch, all but the channels, or none."""


def working_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the type in which gradients of `dtype` are combined: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def position_shape(shape: Sequence[int], marginalize: Marginalize, channel_dim: int) -> tuple[int, ...]:
    """Return the shape of one G_i for an activation of `shape`, marginalized dims kept as size 1."""
    summed = _marginalized_dims(len(shape), marginalize, channel_dim)
    return tuple(1 if dim in summed else size for dim, size in enumerate(shape))


def position_gradients(
    gradients: Sequence[Tensor], activation: Tensor, marginalize: Marginalize, channel_dim: int
) -> Tensor:
    """Sum each task's gradient over what shares a position (G_i of batch-separated GradDrop, arXiv 2010.06808).

    G_i = sum over the marginalized dims of sgn(A) g_i: the gradient of a weight of 1 multiplied onto the activation,
    with the sign in place of the activation's value. With "none" nothing is summed and G_i = g_i, whatever A.

    Args:
        gradients: K tensors shaped like the activation.
        activation: A, [B, ...].
        marginalize: the dims to sum over.
        channel_dim: the dim that "batch+space" keeps.

    Returns:
        [K, ...] in the gradients' type, each G_i with its marginalized dims kept as size 1.

    Raises:
        ValueError: the activation has no such dims, or `marginalize` is unknown.
    """
    summed = _marginalized_dims(activation.ndim, marginalize, channel_dim)
    if not summed:
        return torch.stack(tuple(gradients))
    sign = activation.sign()
    return torch.stack([(sign * gradient).sum(summed, keepdim=True) for gradient in gradients])


def _marginalized_dims(ndim: int, marginalize: Marginalize, channel_dim: int) -> tuple[int, ...]:
    if marginalize == "none":
        return ()
    if ndim == 0 or not -ndim <= channel_dim < ndim:
        raise ValueError(f"an activation of {ndim} dims has no batch dim, or no channel dim {channel_dim}")
    if marginalize == "batch":
        return (0,)
    if marginalize == "batch+space":
        return tuple(dim for dim in range(ndim) if dim != channel_dim % ndim)
    raise ValueError(f'marginalize is "{marginalize}"; choose "batch", "batch+space" or "none"')
