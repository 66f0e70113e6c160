"""Triton kernels of batch normalisation with what follows it, an addition and a ReLU; `norm.py` is the oracle.

Batch normalisation is bound by memory: torch's own kernels read the values of a channels-last map at a fifth of the
speed that an H200 has, and a ReLU and an addition of their own read and write them again. Here they are read twice and
written once on the way forward, and the same with their gradients on the way back.

All kernels see [N, C] values whose rows lie `stride` apart. Sums are those of differences from a reference, which
keeps the digits where the mean is large beside the deviation; a program adds up a share of the rows in float32, the
programs' sums are added in float64. No atomics: the same bits in every run.
"""
# pyright: reportMissingImports=false, reportIndexIssue=false
# Triton comes with torch's CUDA builds only, and its decorator is opaque to the type checker.

import torch
import triton
from torch import Tensor

from detection3d.model.norm_programs import (
    add_kernel,
    finish_gradient_kernel,
    finish_kernel,
    gradient_sums_kernel,
    input_gradient_kernel,
    normalize_kernel,
    sums_kernel,
)

_TILE = 4096  # values that a program holds at once
_PROGRAMS = 1056  # eight for each multiprocessor of an H100 or H200
_CHANNELS_AT_ONCE = 16
_PARTS_AT_ONCE = 64


def sums(values: Tensor, reference: Tensor) -> Tensor:
    """Return sums of `values - reference` and of their squares over parts of the rows, float32 [P, 2 C].

    Args:
        values: [N, C], channels next to each other.
        reference: float32 [C].
    """
    rows, channels = values.shape
    parts, grid, shape = _share(values)
    with torch.cuda.device_of(values):
        sums_kernel[grid](values, reference, parts, rows, values.stride(0), channels, **shape)
    return parts


def added(parts: Tensor, rows: int) -> Tensor:
    """Return the sum of sums of parts [P, 2 C] and the number of rows, float64 [2 C + 1], to be added up over ranks."""
    programs, numbers = parts.shape
    result = torch.empty(numbers + 1, dtype=torch.float64, device=parts.device)
    with torch.cuda.device_of(parts):
        add_kernel[(triton.cdiv(numbers, _CHANNELS_AT_ONCE),)](
            parts, result, programs, numbers, rows, _CHANNELS_AT_ONCE, _PARTS_AT_ONCE
        )
    return result


def finish(
    parts: Tensor,
    rows: int,
    count: Tensor | None,
    reference: Tensor,
    weight: Tensor,
    bias: Tensor,
    running: tuple[Tensor, Tensor, Tensor],
    momentum: float,
    epsilon: float,
) -> Tensor:
    """Return scale, shift, mean and 1 / deviation, float32 [4, C], and move the running statistics.

    Where there are fewer than two rows the running statistics are used, and stay.

    Args:
        parts: as `sums` returns them; on several ranks, what `added` returns, summed over the ranks, [1, 2 C].
        rows: N.
        count: where there are several ranks, the rows of all of them, float64 scalar.
        reference: float32 [C], what was subtracted.
        weight: float32 [C].
        bias: float32 [C].
        running: mean and variance, float32 [C], and the int64 number of batches, changed in place.
        momentum: share of the new statistics.
        epsilon: added to the variance.
    """
    channels = len(weight)
    result = torch.empty((4, channels), dtype=torch.float32, device=weight.device)
    grid = (triton.cdiv(channels, _CHANNELS_AT_ONCE),)
    with torch.cuda.device_of(weight):
        finish_kernel[grid](
            parts, len(parts), rows, count, reference, weight, bias, *running, result, channels, momentum, epsilon,
            count is not None, _CHANNELS_AT_ONCE, _PARTS_AT_ONCE,
        )  # fmt: skip
    return result


def normalize(values: Tensor, scale_shift: Tensor, residual: Tensor | None, relu: bool, like: Tensor) -> Tensor:
    """Return `relu(values * scale + shift + residual)`, laid out like `like`.

    Args:
        values: [N, C].
        scale_shift: float32 [2 or more, C].
        residual: [N, C], or None.
        relu: whether there is one.
        like: what the values are a view of.
    """
    result = torch.empty_like(like)
    rows, channels = values.shape
    _, grid, shape = _share(values)
    step = 0 if residual is None else residual.stride(0)
    with torch.cuda.device_of(values):
        normalize_kernel[grid](
            values, scale_shift, residual, rows_of(result), rows, values.stride(0), step, channels,
            residual is not None, relu, **shape,
        )  # fmt: skip
    return result


def gradient_sums(gradient: Tensor, values: Tensor, output: Tensor | None, mean: Tensor) -> Tensor:
    """Return sums of g and of `g (values - mean)` over parts of the rows, float32 [P, 2 C].

    Args:
        gradient: [N, C], of the result; g is the gradient where the output is above 0.
        values: [N, C], the input.
        output: [N, C], the result; None where no ReLU was.
        mean: float32 [C].
    """
    rows, channels = values.shape
    parts, grid, shape = _share(values)
    with torch.cuda.device_of(values):
        gradient_sums_kernel[grid](
            gradient, values, output, mean, parts, rows, gradient.stride(0), values.stride(0), channels,
            output is not None, **shape,
        )  # fmt: skip
    return parts


def finish_gradient(
    own: Tensor, total: Tensor, rows: int, count: Tensor | None, mean_inverse: Tensor, weight: Tensor
) -> Tensor:
    """Return the gradients of weight and bias, and a, b and c of `input_gradient`: float32 [5, C].

    Args:
        own: as `gradient_sums` returns them, of this rank.
        total: of all ranks, as in `finish`.
        rows: N.
        count: as in `finish`.
        mean_inverse: float32 [2, C], mean and 1 / deviation.
        weight: float32 [C].
    """
    channels = len(weight)
    result = torch.empty((5, channels), dtype=torch.float32, device=weight.device)
    grid = (triton.cdiv(channels, _CHANNELS_AT_ONCE),)
    with torch.cuda.device_of(weight):
        finish_gradient_kernel[grid](
            own, len(own), total, len(total), rows, count, mean_inverse, weight, result, channels,
            count is not None, _CHANNELS_AT_ONCE, _PARTS_AT_ONCE,
        )  # fmt: skip
    return result


def input_gradient(
    gradient: Tensor, values: Tensor, output: Tensor | None, factors: Tensor, like: Tensor, residual: bool
) -> tuple[Tensor, Tensor | None]:
    """Return `a g + b values + c`, and g itself where there was a residual; see `gradient_sums`.

    Args:
        gradient: [N, C].
        values: [N, C].
        output: [N, C] or None.
        factors: float32 [3, C]: a, b and c.
        like: what the values are a view of.
        residual: whether there was one.
    """
    to_input = torch.empty_like(like)
    to_residual = torch.empty_like(like) if residual else None
    rows, channels = values.shape
    _, grid, shape = _share(values)
    with torch.cuda.device_of(values):
        input_gradient_kernel[grid](
            gradient, values, output, factors, rows_of(to_input), None if to_residual is None else rows_of(to_residual),
            rows, gradient.stride(0), values.stride(0), channels, output is not None, residual, **shape,
        )  # fmt: skip
    return to_input, to_residual


def rows_of(values: Tensor) -> Tensor:
    """Return [V, C], or [B, C, H, W] as [B H W, C]: a view of channels-last memory, else a copy."""
    rows = values if values.ndim == 2 else values.permute(0, 2, 3, 1).reshape(-1, values.shape[1])
    return rows if rows.stride(1) == 1 else rows.contiguous()


def _share(values: Tensor) -> tuple[Tensor, tuple[int], dict[str, int]]:
    """Return room for the programs' sums [programs, 2 C], the grid, and the rest of a launch."""
    rows, channels = values.shape
    padded = triton.next_power_of_2(channels)
    block = max(_TILE // padded, 1)
    tiles = triton.cdiv(triton.cdiv(rows, block), _PROGRAMS)  # of a program
    programs = triton.cdiv(rows, block * tiles) if rows else 0
    parts = torch.empty((programs, 2 * channels), dtype=torch.float32, device=values.device)
    return parts, (max(programs, 1),), {"tiles": tiles, "BLOCK": block, "CHANNELS": padded}
