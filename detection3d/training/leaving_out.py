"""A step whose loss or gradient is not finite leaves everything that training changes as it was.

Whether a step is one of these is decided on the device, so that no GPU waits for the host, and equally on every rank
without a collective of its own: a loss that is not finite makes all gradients of its rank NaN, DistributedDataParallel
averages them, and so the norm of the gradient tells all ranks the same.
"""

# torch's optimisers are made of its _foreach functions, which it doesn't list as its own.
# pyright: reportPrivateImportUsage=false

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


def spoil_unless_finite(total: Tensor) -> Tensor:
    """Return a loss with the same gradient, or where it is not finite, with a gradient of NaN.

    A loss may be NaN while its gradient is finite, as a clamped logarithm's.

    Args:
        total: scalar.
    """
    return total * torch.where(total.detach().isfinite(), 1.0, math.nan)


@dataclass(frozen=True)
class Remembered:
    """Buffers as they were, by dtype: the buffers themselves, and their values in one flat tensor."""

    groups: tuple[tuple[list[Tensor], Tensor], ...]


@torch.no_grad()
def remember(module: nn.Module) -> Remembered:
    """Keep what a forward and a backward pass change in a module by themselves: running statistics, learnt weights.

    Args:
        module: whose buffers to keep.
    """
    buffers: dict[torch.dtype, list[Tensor]] = {}
    for buffer in module.buffers():
        buffers.setdefault(buffer.dtype, []).append(buffer)
    return Remembered(tuple((group, _flat(group)) for group in buffers.values()))


@torch.no_grad()
def bring_back(remembered: Remembered, left_out: Tensor) -> None:
    """Give the buffers their earlier values if the step is left out; a few kernels, whatever their number.

    Args:
        remembered: before the step.
        left_out: bool scalar on the buffers' device.
    """
    for buffers, before in remembered.groups:
        parts = torch.where(left_out, before, _flat(buffers)).split([buffer.numel() for buffer in buffers])
        torch._foreach_copy_(buffers, [part.view_as(buffer) for part, buffer in zip(parts, buffers, strict=True)])


def step_optimizer(optimizer: torch.optim.AdamW, left_out: Tensor) -> None:
    """Step, unless the step is left out.

    Args:
        optimizer: with the gradients; a fused one decides on the device, any other waits for it.
        left_out: bool scalar.
    """
    if optimizer.defaults["fused"]:
        optimizer.found_inf = left_out.float()  # pyright: ignore[reportAttributeAccessIssue] read by fused optimisers
    elif left_out:
        optimizer.zero_grad(set_to_none=True)  # without gradients the step below changes nothing
    optimizer.step()


@torch.no_grad()
def update_average(average: AveragedModel, model: nn.Module, decay: float, left_out: Tensor) -> None:
    """Move the exponential moving average, unless the step is left out.

    On CUDA, where the host does not know, a first step that is left out makes the average begin at the first weights.

    Args:
        average: changed in place.
        model: after the step.
        decay: of the average.
        left_out: bool scalar; the host waits for it on the CPU alone.
    """
    if average.n_averaged == 0 or not left_out.is_cuda:
        if left_out.is_cuda or not left_out:
            average.update_parameters(model)
        return
    move_average(average.module, model, torch.where(left_out, 0.0, 1 - decay))
    average.n_averaged += 1


@torch.no_grad()
def move_average(average: nn.Module, model: nn.Module, rate: Tensor) -> None:
    """Move weights and statistics of `average` towards those of `model`; counters are copied.

    Args:
        average: of the same architecture as `model`.
        model: where to.
        rate: float scalar on the device, 0 for not at all, 1 for all the way.
    """
    groups: dict[torch.dtype, tuple[list[Tensor], list[Tensor]]] = {}
    for name in ("parameters", "buffers"):
        for ours, theirs in zip(getattr(average, name)(), getattr(model, name)(), strict=True):
            averages, values = groups.setdefault(ours.dtype, ([], []))
            averages.append(ours.detach())
            values.append(theirs.detach())
    for dtype, (averages, values) in groups.items():
        if dtype.is_floating_point:
            ways = torch._foreach_sub(values, averages)
            torch._foreach_mul_(ways, rate.to(dtype))
            torch._foreach_add_(averages, ways)
        else:
            torch._foreach_copy_(averages, values)


def count_skipped(skipped: Tensor, left_out: Tensor, loss_scale: Tensor) -> Tensor:
    """Return the counts after a step.

    Args:
        skipped: int64 [2], steps left out so far, and how many of them are repeats: in a row, without one between them
            that was done.
        left_out: bool scalar, whether the step was.
        loss_scale: scalar. A step that is left out under a scale above 1 is no repeat, since the scaler lowers it then.
    """
    total, repeats = skipped.unbind()
    repeats = torch.where(left_out, repeats + (loss_scale <= 1), 0)
    return torch.stack([total + left_out, repeats])


def _flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in tensors])
