"""A step whose loss or gradient is not finite leaves everything that training changes as it was.

Whether a step is one of these is decided on the device, so that no GPU waits for the host, and equally on every rank
without a collective of its own: a loss that is not finite makes all gradients of its rank NaN, DistributedDataParallel
averages them, and so the norm of the gradient tells all ranks the same.
"""

import math

import torch
from torch import Tensor, nn

from detection3d.training.packing import pack


def spoil_unless_finite(total: Tensor) -> Tensor:
    """Return a loss with the same gradient, or where it is not finite, with a gradient of NaN.

    A loss may be NaN while its gradient is finite, as a clamped logarithm's.

    Args:
        total: scalar.
    """
    return total * torch.where(total.detach().isfinite(), 1.0, math.nan)


class Buffers:
    """What a forward and a backward pass change in a module by themselves: running statistics, learnt loss weights.

    Args:
        module: it must keep its buffers from now on. Those that are saved with it are packed, one dtype after another;
            the others are constants, which may be read on another stream meanwhile.
    """

    def __init__(self, module: nn.Module) -> None:
        groups: dict[torch.dtype, list[Tensor]] = {}
        saved = module.state_dict(keep_vars=True).values()
        for buffer in saved:
            if not isinstance(buffer, nn.Parameter):
                groups.setdefault(buffer.dtype, []).append(buffer)
        self._packed = [pack(buffers) for buffers in groups.values()]

    @torch.no_grad()
    def remember(self) -> list[Tensor]:
        """Return the values as they are, one flat tensor for each dtype."""
        return [packed.clone() for packed in self._packed]

    @torch.no_grad()
    def bring_back(self, remembered: list[Tensor], left_out: Tensor) -> None:
        """Give the buffers their earlier values if the step is left out; a few kernels, whatever their number.

        Args:
            remembered: before the step.
            left_out: bool scalar on the buffers' device.
        """
        for packed, before in zip(self._packed, remembered, strict=True):
            packed.copy_(torch.where(left_out, before, packed))


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
