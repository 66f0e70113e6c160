"""Batch normalisation, addition and ReLU as one autograd function of fused kernels, for training on CUDA."""

import warnings
from functools import cache
from importlib.util import find_spec
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from detection3d.multitask import Ranks
from detection3d.multitask.exchange import NO_PEERS, Exchange, Site

if TYPE_CHECKING:
    from detection3d.model.norm import BatchNorm


def fused_for(input: Tensor) -> ModuleType | None:
    """Return `norm_kernels` where they can take this tensor, else None: then torch's operations do the same."""
    if not input.is_cuda or input.dtype == torch.float64 or torch.compiler.is_compiling():
        return None
    return _kernels()


@cache
def _kernels() -> ModuleType | None:
    if find_spec("triton") is None:
        return None
    try:
        from detection3d.model import norm_kernels

        norm_kernels.sums(torch.zeros(2, 4, device="cuda"), torch.zeros(4, device="cuda"))  # compiles
    except Exception as error:  # whatever Triton's compiler meets on this machine, torch's operations do without it
        warnings.warn(
            f"Triton does not work here ({type(error).__name__}: {error}), so batch normalisation runs on torch"
            " operations, which are slower; a C compiler such as gcc is what it usually lacks",
            stacklevel=2,
        )
        return None
    return norm_kernels


def kernels_on_all(ranks: Ranks, device: torch.device) -> bool:
    """Tell whether the kernels work on every rank; a collective.

    Ranks must not mix them with torch's operations, which exchange other numbers.

    Args:
        ranks: who trains together.
        device: of this rank.
    """
    lacking = torch.tensor(_kernels() is None, dtype=torch.float32, device=device)
    return not ranks.max(lacking).item()


def sites_work(exchange: Exchange, ranks: Ranks, device: torch.device) -> bool:
    """Tell whether kernels that meet on their way get the right sums, on all ranks; a collective.

    Every rank must have the kernels.

    Args:
        exchange: of the ranks.
        ranks: who trains together.
        device: of this rank.
    """
    from detection3d.multitask import exchange_programs

    site = exchange.site(1)
    right = site is not None and exchange_programs.sums_are_right(site, device)
    wrong = bool(ranks.max(torch.tensor(float(not right), device=device)).item())
    if wrong and site is not None and site.rank == 0:
        warnings.warn(
            "kernels that meet in the memory of several GPUs get wrong sums here, so NCCL sums, which is slower;"
            f" {NO_PEERS}=1 does without from the start",
            stacklevel=3,
        )
    return not wrong


def sites_for(channels: int, exchange: Exchange | None) -> tuple[Site | None, Site | None]:
    """Return where a layer's kernels meet those of the other ranks, forward and backward; None where they don't.

    Every rank must call this for the same layers in the same order, and have the kernels.
    """
    kernels = _kernels() if exchange is not None else None
    if exchange is None or kernels is None:
        return None, None
    forward, backward = (exchange.site(kernels.programs_for(channels)) for _ in range(2))
    return (None, None) if backward is None else (forward, backward)


class FusedNorm(torch.autograd.Function):
    """`relu(batch_norm(input) + residual)` with statistics over all ranks."""

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        weight: Tensor,
        bias: Tensor,
        residual: Tensor | None,
        norm: "BatchNorm",
        relu: bool,
        kernels: ModuleType,
    ) -> Tensor:
        """Normalise, and move the running statistics of `norm`."""
        mean, variance, batches = norm.running_mean, norm.running_var, norm.num_batches_tracked
        assert mean is not None
        assert variance is not None
        assert batches is not None
        rows = kernels.rows_of(input)
        site, _ = norm.sites
        parts, count = kernels.sums(rows, mean), None
        if site is None:
            parts, count = _summed(kernels, parts, len(rows), norm.ranks)
        running = mean, variance, batches
        numbers = kernels.finish(parts, len(rows), count, mean, weight, bias, running, norm.momentum, norm.eps, site)
        added = None if residual is None else kernels.rows_of(residual.to(input.dtype))
        result = kernels.normalize(rows, numbers, added, relu, input)
        ctx.save_for_backward(input, weight, bias, residual, result if relu else None, numbers, count)
        ctx.norm, ctx.relu, ctx.kernels = norm, relu, kernels
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        """Return the gradients of input, weight, bias and residual."""
        (gradient,) = gradients
        input, weight, bias, residual, result, numbers, count = ctx.saved_tensors
        if torch.is_grad_enabled():  # a second derivative is to come, which torch's operations know
            found = differentiable(ctx.norm, gradient, input, weight, bias, residual, relu=ctx.relu)
            return *found, None, None, None
        kernels: ModuleType = ctx.kernels
        rows = kernels.rows_of(input)
        arriving = kernels.rows_of(gradient.to(input.dtype))
        output = kernels.rows_of(result) if ctx.relu else None
        own = kernels.gradient_sums(arriving, rows, output, numbers)
        _, site = ctx.norm.sites
        total = own if site is not None else _summed(kernels, own, len(rows), ctx.norm.ranks)[0]
        factors = kernels.finish_gradient(own, total, len(rows), count, numbers, weight, site)
        to_input, to_residual = kernels.input_gradient(
            arriving, rows, output, factors, input, residual is not None and ctx.needs_input_grad[3]
        )
        if to_residual is not None:
            to_residual = to_residual.to(residual.dtype)  # pyright: ignore[reportOptionalMemberAccess]
        return to_input, factors[0], factors[1], to_residual, None, None, None


def _summed(kernels: ModuleType, parts: Tensor, rows: int, ranks: Ranks) -> tuple[Tensor, Tensor | None]:
    """Return the sums over all ranks and how many rows they are of; on one rank the parts as they are, and None."""
    if ranks.size == 1:
        return parts, None
    total = ranks.sum(kernels.added(parts, rows))
    return total[None, :-1], total[-1]


def differentiable(
    norm: "BatchNorm",
    gradient: Tensor,
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    residual: Tensor | None,
    *,
    relu: bool,
) -> tuple[Tensor | None, ...]:
    """Return the gradients of input, weight, bias and residual in torch's operations, to be differentiated again.

    Args:
        norm: whose pass it was.
        gradient: of what the pass returned.
        input: as the pass had it.
        weight: the same.
        bias: the same.
        residual: the same.
        relu: whether the pass ended in one.
    """
    normalized = norm.normalize_again(input, weight, bias)
    if residual is not None:
        normalized = normalized + residual
    wanted = [tensor for tensor in (input, weight, bias, residual) if tensor is not None and tensor.requires_grad]
    outcome = F.relu(normalized) if relu else normalized
    found = iter(torch.autograd.grad(outcome, wanted, gradient.to(outcome.dtype), create_graph=True))
    return tuple(
        next(found) if tensor is not None and tensor.requires_grad else None
        for tensor in (input, weight, bias, residual)
    )
