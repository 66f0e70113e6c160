"""The Triton programs of `norm_kernels`, which launches them and says what each computes."""
# pyright: reportMissingImports=false, reportIndexIssue=false
# Triton comes with torch's CUDA builds only, and its decorator is opaque to the type checker.

import triton
import triton.language as tl

from detection3d.multitask.exchange_programs import over_ranks


@triton.jit(do_not_specialize=["rows", "tiles"])
def sums_kernel(values, reference, parts, rows, stride, channels, tiles, BLOCK: tl.constexpr, CHANNELS: tl.constexpr):
    """Add up a share of the rows, less the reference, and their squares."""
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
def _sum_of_parts(parts, programs, numbers, column, known, COLUMNS: tl.constexpr, PARTS: tl.constexpr):
    total = tl.zeros((PARTS, COLUMNS), tl.float64)
    for start in range(0, programs, PARTS):
        part = start + tl.arange(0, PARTS)
        inside = (part < programs)[:, None] & known[None, :]
        total += tl.load(parts + part[:, None] * numbers + column[None, :], mask=inside, other=0.0).to(tl.float64)
    return tl.sum(total, 0)


@triton.jit(do_not_specialize=["rows", "programs"])
def add_kernel(parts, result, programs, numbers, rows, COLUMNS: tl.constexpr, PARTS: tl.constexpr):
    """Add up the shares."""
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    known = column < numbers
    tl.store(result + column, _sum_of_parts(parts, programs, numbers, column, known, COLUMNS, PARTS), mask=known)
    if tl.program_id(0) == 0:
        tl.store(result + numbers, rows.to(tl.float64))


@triton.jit(do_not_specialize=["rows", "programs"])
def finish_kernel(
    parts, programs, rows, count_at, reference, weight, bias, running_mean, running_variance, batches, result,
    channels, momentum, epsilon, addresses,
    COUNTED: tl.constexpr, RANK: tl.constexpr, RANKS: tl.constexpr,
    COLUMNS: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """Turn sums into scale, shift, mean and 1 / deviation, and move the running statistics."""
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    known = column < channels
    count = tl.cast(rows, tl.float64)
    if COUNTED:
        count = tl.load(count_at)
    offset = _sum_of_parts(parts, programs, 2 * channels, column, known, COLUMNS, PARTS)
    square = _sum_of_parts(parts + channels, programs, 2 * channels, column, known, COLUMNS, PARTS)
    if RANKS > 1:
        offset, square, count = over_ranks(offset, square, count, addresses, RANK, RANKS, COLUMNS)
    enough = count > 1
    old_mean = tl.load(running_mean + column, mask=known, other=0.0)
    old_variance = tl.load(running_variance + column, mask=known, other=1.0)
    divisor = tl.maximum(count, 1.0)
    offset = offset / divisor
    mean = offset + tl.load(reference + column, mask=known, other=0.0).to(tl.float64)
    variance = tl.maximum(square / divisor - offset * offset, 0.0)
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
def normalize_kernel(
    values, scale_shift, residual, result, rows, stride, residual_stride, channels,
    RESIDUAL: tl.constexpr, RELU: tl.constexpr, tiles, BLOCK: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Scale, shift, add and clip a share of the rows."""
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
def gradient_sums_kernel(
    gradient, values, output, numbers, parts, rows, gradient_stride, stride, channels,
    RELU: tl.constexpr, tiles, BLOCK: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Add up a share of the rows' gradients, and of their products with the rows."""
    column = tl.arange(0, CHANNELS)
    known = column < channels
    middle = tl.load(numbers + 2 * channels + column, mask=known, other=0.0)[None, :]
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
def finish_gradient_kernel(
    own, own_programs, total, programs, rows, count_at, numbers, weight, result, channels, addresses,
    COUNTED: tl.constexpr, RANK: tl.constexpr, RANKS: tl.constexpr,
    COLUMNS: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """Turn sums into the gradients of weight and bias, and the factors of the rows' gradients."""
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
    if RANKS > 1:
        slope, product, count = over_ranks(own_slope, own_product, count, addresses, RANK, RANKS, COLUMNS)
    share = tl.where(count > 1, 1.0 / tl.maximum(count, 1.0), 0.0)  # running statistics do not depend on the input
    mean = tl.load(numbers + 2 * channels + column, mask=known, other=0.0).to(tl.float64)
    inverse = tl.load(numbers + 3 * channels + column, mask=known, other=0.0).to(tl.float64)
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
def input_gradient_kernel(
    gradient, values, output, factors, to_input, to_residual, rows, gradient_stride, stride, channels,
    RELU: tl.constexpr, RESIDUAL: tl.constexpr, tiles, BLOCK: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Write a share of the rows' gradients."""
    column = tl.arange(0, CHANNELS)
    known = column < channels
    a = tl.load(factors + 2 * channels + column, mask=known, other=0.0)[None, :]
    b = tl.load(factors + 3 * channels + column, mask=known, other=0.0)[None, :]
    c = tl.load(factors + 4 * channels + column, mask=known, other=0.0)[None, :]
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
