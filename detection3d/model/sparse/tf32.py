"""Products in TF32 whose operands are rounded, not cut off, in the layers that gain from it.

Tensor cores read the upper 19 bits of a float32. Left to them, every operand loses up to a whole unit in the last
place, always towards zero, and over twenty layers the bias adds up. Rounded operands have no bias, but their errors,
2e-4 of a typical value in a layer, still add up as a random walk does, through all layers forward and all of them back.
So the thin layers, of which a backbone has most, are computed in float32; the wide ones have most of the arithmetic.
"""

from typing import Any

import torch
from torch import Tensor

WIDEST_IN_FLOAT32 = 64  # channels. Of Waymo's backbone 15 of 21 convolutions are as thin, with 46 % of the arithmetic


def runs_in_tf32(weight: Tensor) -> bool:
    """Say whether a convolution of weight [C_out, kz, ky, kx, C_in] is wide enough for TF32."""
    return max(weight.shape[0], weight.shape[-1]) > WIDEST_IN_FLOAT32


def round_to_tf32(values: Tensor) -> Tensor:
    """Round float32 to TF32's 11 significant bits, to nearest; values beyond 1e34 become NaN (Dekker, 1971)."""
    scaled = values * (2**13 + 1)
    return scaled - (scaled - values)


def tf32_operands(features: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return features and weights whose TF32 product leaves the rounding of the features as its only error.

    The weights' rounding is made good by a second half of channels: [x, x] times [round(w), w - round(w)]. It is the
    larger part over many layers, since every voxel meets the same weights.
    """
    rounded = _Round.apply(features)
    high = _Round.apply(weight)
    assert isinstance(rounded, Tensor)
    assert isinstance(high, Tensor)
    return torch.cat([rounded, rounded], dim=1), torch.cat([high, (weight - high).detach()], dim=-1)


def round_gradient(values: Tensor) -> Tensor:
    """Return `values`; the gradient that comes back is rounded, since it is an operand of the backward pass."""
    result = _RoundGradient.apply(values)
    assert isinstance(result, Tensor)
    return result


class _Round(torch.autograd.Function):
    """Round on the way forward; the derivative is that of the identity."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return round_to_tf32(values)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0]


class _RoundGradient(torch.autograd.Function):
    """The identity, whose gradient is rounded: it is an operand of the backward pass's products."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return round_to_tf32(gradients[0])
