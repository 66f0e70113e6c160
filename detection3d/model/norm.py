"""Batch normalisation that also takes one row or none, on one rank or over several."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.nn import functional as F

from detection3d.model.fused_norm import FusedNorm, fused_for, kernels_on_all, sites_for, sites_work
from detection3d.multitask import Ranks
from detection3d.multitask.exchange import Exchange, Site
from detection3d.multitask.ranks import current_ranks

EPSILON = 1e-3  # SECOND's values: activations of sparse maps are small, and statistics move slowly
MOMENTUM = 0.01


class BatchNorm(nn.BatchNorm2d):
    """Normalise the channels of [V, C] or [B, C, H, W]; then add a residual and apply a ReLU, where wanted.

    With fewer than two values to a channel there is no variance; such a batch is normalised with the running
    statistics and leaves them alone. (torch raises instead.)

    Args:
        channels: C.
        relu: whether a ReLU follows.

    Attributes:
        ranks: over whose values statistics are taken in training; see `synchronize_norms`.
        sites: where their kernels meet, forward and backward; None where they don't.
        fused: do all of it in a few kernels of our own, on CUDA, where Triton works, on all ranks. They take the GPU
            half the time of torch's and the host longer, so on one rank they are for passes that are replayed as CUDA
            graphs. Over several ranks torch's would take the host longer still.
        fused_over_ranks: whether all ranks have them; see `synchronize_norms`.
    """

    def __init__(self, channels: int, *, relu: bool = False) -> None:
        super().__init__(channels, eps=EPSILON, momentum=MOMENTUM)
        self.activation = nn.ReLU(inplace=True) if relu else nn.Identity()
        self.ranks = Ranks()
        self.sites: tuple[Site | None, Site | None] = None, None
        self.fused = False
        self.fused_over_ranks = True

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """Normalise, add `residual` of the same shape and apply the activation; the shape stays."""
        fused = self.training and self.fused_over_ranks and (self.fused or self.ranks.size > 1)
        if fused and (kernels := fused_for(input)):
            relu = isinstance(self.activation, nn.ReLU)
            result = FusedNorm.apply(input, self.weight, self.bias, residual, self, relu, kernels)
            assert isinstance(result, Tensor)
            return result
        normalized = self._normalize(input)
        return self.activation(normalized if residual is None else normalized + residual)

    def _normalize(self, input: Tensor) -> Tensor:
        if self.training and self.ranks.size > 1:
            return self._normalize_over_ranks(input)
        training = self.training and input.numel() > input.shape[1]
        if self.training and training and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        return F.batch_norm(
            input, self.running_mean, self.running_var, self.weight, self.bias, training, MOMENTUM, self.eps
        )

    def normalize_again(self, input: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Normalise as in training, in torch's operations and without moving the running statistics.

        What a fused pass did is done again so that its gradient can be differentiated; over several ranks this is a
        collective.
        """
        assert self.running_mean is not None
        assert self.running_var is not None
        if self.ranks.size > 1:
            with torch.no_grad():
                mean, variance, count = _measure(input, self.ranks)
                mean = torch.where(count > 1, mean, self.running_mean.double())
                variance = torch.where(count > 1, variance, self.running_var.double())
            result = _Normalize.apply(input, weight, bias, mean, variance, count, self.eps, self.ranks)
            assert isinstance(result, Tensor)
            return result
        training = input.numel() > input.shape[1]
        running = (None, None) if training else (self.running_mean, self.running_var)
        return F.batch_norm(input, *running, weight, bias, training, MOMENTUM, self.eps)

    def _normalize_over_ranks(self, input: Tensor) -> Tensor:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        with torch.no_grad():
            mean, variance, count = _measure(input, self.ranks)
            enough = count > 1  # stays on the device, as everything that depends on other ranks' data
            used_mean = torch.where(enough, mean, self.running_mean.double())
            used_variance = torch.where(enough, variance, self.running_var.double())
            unbiased = variance * (count / (count - 1).clamp(min=1))
            for running, new in ((self.running_mean, mean), (self.running_var, unbiased)):
                running.copy_(torch.where(enough, running.double().lerp(new, MOMENTUM), running.double()))
            self.num_batches_tracked.add_(enough)
        result = _Normalize.apply(input, self.weight, self.bias, used_mean, used_variance, count, self.eps, self.ranks)
        assert isinstance(result, Tensor)
        return result


def synchronize_norms(module: nn.Module, group: ProcessGroup | None = None, exchange: Exchange | None = None) -> None:
    """Let every BatchNorm in `module` take its statistics over all ranks in training, as one rank would over all rows.

    Forward and backward are a collective each, of two numbers a channel, in the order in which the module runs. Names
    and values in the state dict stay as they are. On one rank nothing changes. A module that is compiled must be so on
    all ranks.

    Args:
        module: changed in place.
        group: the ranks that train together; None is all of them.
        exchange: theirs, where they have one: then kernels meet on their way, else torch.distributed sums.

    Raises:
        ValueError: a batch normalisation of torch's, whose statistics would stay those of one rank.
    """
    ranks = current_ranks(group)
    device = next((parameter.device for parameter in module.parameters()), torch.device("cpu"))
    fused = ranks.size == 1 or device.type == "cpu" or kernels_on_all(ranks, device)
    meeting = exchange if fused and exchange is not None and sites_work(exchange, ranks, device) else None
    for name, child in module.named_modules():
        if isinstance(child, BatchNorm):
            child.ranks, child.fused_over_ranks = ranks, fused
            child.sites = sites_for(child.num_features, meeting)
        elif isinstance(child, nn.modules.batchnorm._BatchNorm) and ranks.size > 1:
            raise ValueError(f"{name} is a {type(child).__name__}, which knows one rank only; use model.norm.BatchNorm")


class _Normalize(torch.autograd.Function):
    """Normalise with statistics over all ranks; the gradient can be differentiated again."""

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        weight: Tensor,
        bias: Tensor,
        mean: Tensor,
        variance: Tensor,
        count: Tensor,
        epsilon: float,
        ranks: Ranks,
    ) -> Tensor:
        ctx.save_for_backward(input, weight, mean, variance, count)
        ctx.epsilon, ctx.ranks = epsilon, ranks
        statistics = mean.to(weight.dtype), variance.to(weight.dtype)
        return F.batch_norm(input, *statistics, weight, bias, training=False, eps=epsilon)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        input, weight, mean, variance, count = ctx.saved_tensors
        enough = count > 1
        if torch.is_grad_enabled():
            # A second derivative is to come, which must know how the statistics depend on the input.
            own_mean, own_variance, _ = _measure(input, ctx.ranks)
            mean = torch.where(enough, own_mean, mean)
            variance = torch.where(enough, own_variance, variance)
        dims, shape = _dims(input), _shape(input)
        values, gradient = input.to(_working_dtype(input)), gradient.to(_working_dtype(input))
        scale = (variance + ctx.epsilon).rsqrt()
        normalized = (values - mean.to(values.dtype).view(shape)) * scale.to(values.dtype).view(shape)
        to_bias, to_weight = gradient.sum(dims), (gradient * normalized).sum(dims)
        sums = ctx.ranks.sum_with_gradient(torch.stack([to_bias, to_weight]).double())
        # Running statistics, which stand in where there are too few values, do not depend on the input.
        mean_gradient, mean_product = torch.where(enough, sums / count.clamp(min=1), 0.0).to(values.dtype).unbind()
        to_normalized = gradient - mean_gradient.view(shape) - normalized * mean_product.view(shape)
        to_input = to_normalized * (weight * scale).to(values.dtype).view(shape)
        return to_input.to(input.dtype), to_weight.to(weight.dtype), to_bias.to(weight.dtype), *[None] * 5


def _measure(input: Tensor, ranks: Ranks) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean [C], variance [C] (of the values, not an estimate) and the number of values, over all ranks.

    In float64: the sums of a rank are made of its mean and variance, so that a mean far from 0 costs no digits that
    float32 values have.
    """
    values = input.to(_working_dtype(input))
    count = input.numel() // input.shape[1]
    if count:
        variance, mean = torch.var_mean(values, _dims(input), correction=0)
    else:
        variance = mean = values.sum(_dims(input))  # zeros, but part of the graph, so that this rank takes part too
    mean, variance = mean.double(), variance.double()
    sums = [count * mean, count * (variance + mean.square()), mean.new_full((1,), count)]
    channels = len(mean)
    total, square_total, total_count = ranks.sum_with_gradient(torch.cat(sums)).split([channels, channels, 1])
    total_count = total_count.detach().squeeze(0)
    divisor = total_count.clamp(min=1)
    mean = total / divisor
    return mean, (square_total / divisor - mean.square()).clamp(min=0), total_count


def _dims(input: Tensor) -> list[int]:
    return [dim for dim in range(input.ndim) if dim != 1]


def _shape(input: Tensor) -> list[int]:
    """Shape in which a number for each channel broadcasts onto the input."""
    return [1, -1] + [1] * (input.ndim - 2)


def _working_dtype(input: Tensor) -> torch.dtype:
    return torch.promote_types(input.dtype, torch.float32)
