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
import triton.language as tl
from torch import Tensor

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
        _sums[grid](values, reference, parts, rows, values.stride(0), channels, **shape)
    return parts


def added(parts: Tensor, rows: int) -> Tensor:
    """Return the sum of sums of parts [P, 2 C] and the number of rows, float64 [2 C + 1], to be added up over ranks."""
    programs, numbers = parts.shape
    result = torch.empty(numbers + 1, dtype=torch.float64, device=parts.device)
    with torch.cuda.device_of(parts):
        _add[(triton.cdiv(numbers, _CHANNELS_AT_ONCE),)](
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
        _finish[grid](
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
        _normalize[grid](
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
        _gradient_sums[grid](
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
        _finish_gradient[grid](
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
        _input_gradient[grid](
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


@triton.jit(do_not_specialize=["rows", "tiles"])
def _sums(values, reference, parts, rows, stride, channels, tiles, BLOCK: tl.constexpr, CHANNELS: tl.constexpr):  # noqa: N803
    column = tl.arange(0, CHANNELS)
    known = column < channels
    zero = tl.load(reference + column, mask=known, other=0.0)[None, :]
    total = tl.zeros((BLOCK, CHANNELS), tl.float32)
    square = tl.zeros((BLOCK, CHANNELS), tl.float32)
    first = tl.program_id(0).to(tl.int64) * BLOCK * tiles + tl.arange(0, BLOCK)
    for tile in range(tiles):
        row = first + tile * BLOCK
        inside = (row < rows)[:, None] & known[None, :]
        value = tl.load(values + row[:, None] * stride + column[None, :], mask=inside, other=0.0).to(tl.float32)
        value = tl.where(inside, value - zero, 0.0)
        total += value
        square += value * value
    part = parts + tl.program_id(0).to(tl.int64) * 2 * channels + column
    if tl.program_id(0) * BLOCK * tiles < rows:
        tl.store(part, tl.sum(total, 0), mask=known)
        tl.store(part + channels, tl.sum(square, 0), mask=known)


@triton.jit
def _sum_of_parts(parts, programs, numbers, column, known, COLUMNS: tl.constexpr, PARTS: tl.constexpr):  # noqa: N803
    total = tl.zeros((PARTS, COLUMNS), tl.float64)
    for start in range(0, programs, PARTS):
        part = start + tl.arange(0, PARTS)
        inside = (part < programs)[:, None] & known[None, :]
        total += tl.load(parts + part[:, None] * numbers + column[None, :], mask=inside, other=0.0).to(tl.float64)
    return tl.sum(total, 0)


@triton.jit(do_not_specialize=["rows", "programs"])
def _add(parts, result, programs, numbers, rows, COLUMNS: tl.constexpr, PARTS: tl.constexpr):  # noqa: N803
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    known = column < numbers
    tl.store(result + column, _sum_of_parts(parts, programs, numbers, column, known, COLUMNS, PARTS), mask=known)
    if tl.program_id(0) == 0:
        tl.store(result + numbers, rows.to(tl.float64))


@triton.jit(do_not_specialize=["rows", "programs"])
def _finish(
    parts, programs, rows, count_at, reference, weight, bias, running_mean, running_variance, batches, result,
    channels, momentum, epsilon,
    COUNTED: tl.constexpr, COLUMNS: tl.constexpr, PARTS: tl.constexpr,  # noqa: N803
):  # fmt: skip
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    known = column < channels
    count = tl.cast(rows, tl.float64)
    if COUNTED:
        count = tl.load(count_at)
    enough = count > 1
    old_mean = tl.load(running_mean + column, mask=known, other=0.0)
    old_variance = tl.load(running_variance + column, mask=known, other=1.0)
    divisor = tl.maximum(count, 1.0)
    offset = _sum_of_parts(parts, programs, 2 * channels, column, known, COLUMNS, PARTS) / divisor
    mean = offset + tl.load(reference + column, mask=known, other=0.0).to(tl.float64)
    square = _sum_of_parts(parts + channels, programs, 2 * channels, column, known, COLUMNS, PARTS) / divisor
    variance = tl.maximum(square - offset * offset, 0.0)
    unbiased = variance * (divisor / tl.maximum(count - 1, 1.0))
    moved_mean = old_mean + momentum * (mean - old_mean)
    moved_variance = old_variance + momentum * (unbiased - old_variance)
    tl.store(running_mean + column, tl.where(enough, moved_mean, old_mean).to(tl.float32), mask=known)
    tl.store(running_variance + column, tl.where(enough, moved_variance, old_variance).to(tl.float32), mask=known)
    mean = tl.where(enough, mean, old_mean)
    inverse = 1.0 / tl.sqrt(tl.where(enough, variance, old_variance) + epsilon)
    scale = tl.load(weight + column, mask=known, other=0.0) * inverse
    shift = tl.load(bias + column, mask=known, other=0.0) - mean * scale
    tl.store(result + column, scale.to(tl.float32), mask=known)
    tl.store(result + channels + column, shift.to(tl.float32), mask=known)
    tl.store(result + 2 * channels + column, mean.to(tl.float32), mask=known)
    tl.store(result + 3 * channels + column, inverse.to(tl.float32), mask=known)
    if tl.program_id(0) == 0:  # which reads no one else's
        tl.store(batches, tl.load(batches) + enough.to(tl.int64))


@triton.jit(do_not_specialize=["rows", "tiles"])
def _normalize(
    values, scale_shift, residual, result, rows, stride, residual_stride, channels,
    RESIDUAL: tl.constexpr, RELU: tl.constexpr, tiles, BLOCK: tl.constexpr, CHANNELS: tl.constexpr,  # noqa: N803
):  # fmt: skip
    column = tl.arange(0, CHANNELS)
    known = column < channels
    scale = tl.load(scale_shift + column, mask=known, other=0.0)[None, :]
    shift = tl.load(scale_shift + channels + column, mask=known, other=0.0)[None, :]
    first = tl.program_id(0).to(tl.int64) * BLOCK * tiles + tl.arange(0, BLOCK)
    for tile in range(tiles):
        row = first + tile * BLOCK
        inside = (row < rows)[:, None] & known[None, :]
        value = tl.load(values + row[:, None] * stride + column[None, :], mask=inside, other=0.0).to(tl.float32)
        value = value * scale + shift
        if RESIDUAL:
            added = residual + row[:, None] * residual_stride + column[None, :]
            value += tl.load(added, mask=inside, other=0.0).to(tl.float32)
        if RELU:
            value = tl.where(value > 0, value, tl.where(value != value, value, 0.0))  # NaN comes through
        place = result + row[:, None] * channels + column[None, :]
        tl.store(place, value.to(result.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["rows", "tiles"])
def _gradient_sums(
    gradient, values, output, mean, parts, rows, gradient_stride, stride, channels,
    RELU: tl.constexpr, tiles, BLOCK: tl.constexpr, CHANNELS: tl.constexpr,  # noqa: N803
):  # fmt: skip
    column = tl.arange(0, CHANNELS)
    known = column < channels
    middle = tl.load(mean + column, mask=known, other=0.0)[None, :]
    total = tl.zeros((BLOCK, CHANNELS), tl.float32)
    product = tl.zeros((BLOCK, CHANNELS), tl.float32)
    first = tl.program_id(0).to(tl.int64) * BLOCK * tiles + tl.arange(0, BLOCK)
    for tile in range(tiles):
        row = first + tile * BLOCK
        inside = (row < rows)[:, None] & known[None, :]
        slope = tl.load(gradient + row[:, None] * gradient_stride + column[None, :], mask=inside, other=0.0)
        slope = slope.to(tl.float32)
        if RELU:
            seen = tl.load(output + row[:, None] * channels + column[None, :], mask=inside, other=0.0)
            slope = tl.where(seen.to(tl.float32) <= 0, 0.0, slope)
        value = tl.load(values + row[:, None] * stride + column[None, :], mask=inside, other=0.0).to(tl.float32)
        total += slope
        product += slope * tl.where(inside, value - middle, 0.0)
    part = parts + tl.program_id(0).to(tl.int64) * 2 * channels + column
    if tl.program_id(0) * BLOCK * tiles < rows:
        tl.store(part, tl.sum(total, 0), mask=known)
        tl.store(part + channels, tl.sum(product, 0), mask=known)


@triton.jit(do_not_specialize=["rows", "own_programs", "programs"])
def _finish_gradient(
    own, own_programs, total, programs, rows, count_at, mean_inverse, weight, result, channels,
    COUNTED: tl.constexpr, COLUMNS: tl.constexpr, PARTS: tl.constexpr,  # noqa: N803
):  # fmt: skip
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    known = column < channels
    count = tl.cast(rows, tl.float64)
    if COUNTED:
        count = tl.load(count_at)
    own_slope = _sum_of_parts(own, own_programs, 2 * channels, column, known, COLUMNS, PARTS)
    own_product = _sum_of_parts(own + channels, own_programs, 2 * channels, column, known, COLUMNS, PARTS)
    slope = own_slope
    product = own_product
    if COUNTED:
        slope = _sum_of_parts(total, programs, 2 * channels, column, known, COLUMNS, PARTS)
        product = _sum_of_parts(total + channels, programs, 2 * channels, column, known, COLUMNS, PARTS)
    share = tl.where(count > 1, 1.0 / tl.maximum(count, 1.0), 0.0)  # running statistics do not depend on the input
    mean = tl.load(mean_inverse + column, mask=known, other=0.0).to(tl.float64)
    inverse = tl.load(mean_inverse + channels + column, mask=known, other=0.0).to(tl.float64)
    slope = slope * share
    product = product * share
    a = tl.load(weight + column, mask=known, other=0.0).to(tl.float64) * inverse
    b = -a * inverse * inverse * product
    c = -a * slope - b * mean
    to_weight = own_product * inverse
    tl.store(result + column, to_weight.to(tl.float32), mask=known)
    tl.store(result + channels + column, own_slope.to(tl.float32), mask=known)
    tl.store(result + 2 * channels + column, a.to(tl.float32), mask=known)
    tl.store(result + 3 * channels + column, b.to(tl.float32), mask=known)
    tl.store(result + 4 * channels + column, c.to(tl.float32), mask=known)


@triton.jit(do_not_specialize=["rows", "tiles"])
def _input_gradient(
    gradient, values, output, factors, to_input, to_residual, rows, gradient_stride, stride, channels,
    RELU: tl.constexpr, RESIDUAL: tl.constexpr, tiles, BLOCK: tl.constexpr, CHANNELS: tl.constexpr,  # noqa: N803
):  # fmt: skip
    column = tl.arange(0, CHANNELS)
    known = column < channels
    a = tl.load(factors + column, mask=known, other=0.0)[None, :]
    b = tl.load(factors + channels + column, mask=known, other=0.0)[None, :]
    c = tl.load(factors + 2 * channels + column, mask=known, other=0.0)[None, :]
    first = tl.program_id(0).to(tl.int64) * BLOCK * tiles + tl.arange(0, BLOCK)
    for tile in range(tiles):
        row = first + tile * BLOCK
        inside = (row < rows)[:, None] & known[None, :]
        slope = tl.load(gradient + row[:, None] * gradient_stride + column[None, :], mask=inside, other=0.0)
        slope = slope.to(tl.float32)
        if RELU:
            seen = tl.load(output + row[:, None] * channels + column[None, :], mask=inside, other=0.0)
            slope = tl.where(seen.to(tl.float32) <= 0, 0.0, slope)
        value = tl.load(values + row[:, None] * stride + column[None, :], mask=inside, other=0.0).to(tl.float32)
        place = row[:, None] * channels + column[None, :]
        tl.store(to_input + place, (a * slope + b * value + c).to(to_input.dtype.element_ty), mask=inside)
        if RESIDUAL:
            tl.store(to_residual + place, slope.to(to_residual.dtype.element_ty), mask=inside)
