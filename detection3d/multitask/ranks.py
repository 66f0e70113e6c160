"""The processes that train together, and the sums over them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch import distributed as dist

from detection3d.multitask.exchange import Exchange

Sync = Literal["full", "none"]
"""Whether statistics are summed over the ranks, so that they equal one rank with all samples, or each rank's own."""


@dataclass(frozen=True)
class Ranks:
    """The ranks whose samples count as one batch.

    Every rank must call the same methods in the same order. Nothing here depends on data, so where the graph is the
    same on every rank, the order is.

    Attributes:
        size: number of ranks; 1 makes every method the identity.
        group: their process group; None is the default one.
        exchange: sums what is small enough, where there is one.
    """

    size: int = 1
    group: dist.ProcessGroup | None = None
    exchange: Exchange | None = None

    def sum(self, values: Tensor) -> Tensor:
        """Return the sum over the ranks; `values` stay as they are."""
        if self.size == 1:
            return values
        if self.exchange is not None and self.exchange.takes(values):
            return self.exchange.sum(values.detach())
        return self._reduce(values, dist.ReduceOp.SUM)

    def begin_sum(self, values: Tensor) -> Callable[[], Tensor]:
        """Begin to sum over the ranks; what is returned waits for the sum, and returns it.

        Other sums may come in between: until this one is waited for, the device works on without the other ranks.
        """
        if self.size == 1:
            return lambda: values
        result = values.detach().clone(memory_format=torch.contiguous_format)
        work = dist.all_reduce(result, dist.ReduceOp.SUM, self.group, async_op=True)
        assert work is not None

        def finish() -> Tensor:
            work.wait()
            return result

        return finish

    def sum_with_gradient(self, values: Tensor) -> Tensor:
        """Return the sum over the ranks, through which gradients flow, those of gradients too.

        Every rank's loss depends on every rank's values, so backward sums the gradients over the ranks: what comes out
        is the gradient of the sum of all ranks' losses. Every rank must go backward through it.
        """
        return _Sum.apply(values, self) if self.size > 1 else values  # pyright: ignore[reportReturnType]

    def max(self, values: Tensor) -> Tensor:
        """Return the largest over the ranks; `values` stay as they are."""
        return self._reduce(values, dist.ReduceOp.MAX) if self.size > 1 else values

    def _reduce(self, values: Tensor, operation: dist.ReduceOp.RedOpType) -> Tensor:
        result = values.detach().clone(memory_format=torch.contiguous_format)
        dist.all_reduce(result, operation, self.group)
        return result


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, ranks: Ranks) -> Tensor:
        ctx.ranks = ranks
        return ranks.sum(values)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # pyright: ignore
        return ctx.ranks.sum_with_gradient(gradient), None


def current_ranks(group: dist.ProcessGroup | None = None) -> Ranks:
    """Return the ranks of `group`, or of the whole run; one rank where torch.distributed is not in use."""
    if not dist.is_available() or not dist.is_initialized():
        return Ranks()
    return Ranks(dist.get_world_size(group), group)
