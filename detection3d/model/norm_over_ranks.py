"""Batch normalisation over several ranks on CUDA, in torch's own kernels for it.

Kernels of ours (`fused_norm`) take the GPU less time, but the host longer, which passes that are not replayed as CUDA
graphs wait for.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from detection3d.model.fused_norm import differentiable

if TYPE_CHECKING:
    from detection3d.model.norm import BatchNorm

NO_ROWS = 1e-20
"""How many a rank without rows counts as: lost in rounding, but torch's kernel divides by the first rank's."""


class NormOverRanks(torch.autograd.Function):
    """`batch_norm(input)` with statistics over all ranks; every rank launches the same collectives, with any rows.

    The input is `dense`.
    """

    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, bias: Tensor, norm: "BatchNorm") -> Tensor:
        """Normalise [V, C] or [B, C, H, W], and move the running statistics of `norm`."""
        running_mean, running_var, batches = norm.running_mean, norm.running_var, norm.num_batches_tracked
        assert running_mean is not None
        assert running_var is not None
        assert batches is not None
        assert norm.momentum is not None
        rows = input.numel() // input.shape[1]
        if rows:
            mean, inverse = torch.batch_norm_stats(input, norm.eps)
        else:
            mean, inverse = running_mean, torch.full_like(running_var, norm.eps**-0.5)  # of a variance of 0
        own = torch.cat([mean, inverse, mean.new_full((1,), rows or NO_ROWS)])
        channels = input.shape[1]
        means, inverses, counts = norm.ranks.gather(own).split([channels, channels, 1], dim=1)
        counts = counts.flatten()
        if rows > 1:
            enough = None  # and the other ranks, which may not know it from their own rows, come to the same
            mean, inverse = torch.batch_norm_gather_stats_with_counts(
                input, means, inverses, running_mean, running_var, norm.momentum, norm.eps, counts
            )
            batches.add_(1)
        else:
            enough = counts.sum() > 1.5
            new_mean, new_var = running_mean.clone(), running_var.clone()
            mean, inverse = torch.batch_norm_gather_stats_with_counts(
                input, means, inverses, new_mean, new_var, norm.momentum, norm.eps, counts
            )
            mean = torch.where(enough, mean, running_mean)
            inverse = torch.where(enough, inverse, (running_var + norm.eps).rsqrt())
            running_mean.copy_(torch.where(enough, new_mean, running_mean))
            running_var.copy_(torch.where(enough, new_var, running_var))
            batches.add_(enough)
        ctx.save_for_backward(input, weight, bias, mean, inverse, counts.int(), enough)
        ctx.norm = norm
        return torch.batch_norm_elemt(input, weight, bias, mean, inverse, norm.eps) if rows else torch.empty_like(input)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        """Return the gradients of input, weight and bias."""
        (gradient,) = gradients
        input, weight, bias, mean, inverse, counts, enough = ctx.saved_tensors
        if torch.is_grad_enabled():  # a second derivative is to come
            return *differentiable(ctx.norm, gradient, input, weight, bias)[:3], None
        channels, some = input.shape[1], input.numel() > 0
        gradient = gradient.to(input.dtype)
        if input.ndim == 4 and input.is_contiguous(memory_format=torch.channels_last):
            gradient = gradient.contiguous(memory_format=torch.channels_last)
        gradient = dense(gradient)
        if some:
            sum_gradient, sum_product, to_weight, to_bias = torch.batch_norm_backward_reduce(
                gradient, input, mean, inverse, weight, True, True, True
            )
        else:
            sum_gradient = sum_product = to_weight = to_bias = torch.zeros_like(mean)
        sums = ctx.norm.ranks.sum(torch.cat([sum_gradient, sum_product]))
        if not some:
            return torch.empty_like(input), to_weight, to_bias, None
        if enough is not None:  # running statistics do not depend on the input
            sums = torch.where(enough, sums, 0.0)
        sum_gradient, sum_product = sums.split([channels, channels])
        to_input = torch.batch_norm_backward_elemt(
            gradient, input, mean, inverse, weight, sum_gradient, sum_product, counts
        )
        return to_input, to_weight, to_bias, None


def dense(values: Tensor) -> Tensor:
    """Return the values as torch's kernels take them: in rows without gaps, or channels-last."""
    if values.ndim == 4 and values.is_contiguous(memory_format=torch.channels_last):
        return values
    return values.contiguous()
