"""Triton kernels for what takes many small operations otherwise; the torch code beside each caller is the oracle.

A training step at the fork is bound by the time to launch operations, not by the GPU: the draw takes some 40 of them,
the choice of the sign 14, MGDA's solver hundreds. Each is one launch here, with the same bits where it says so. Triton
launches on the current device, so each launch names that of its tensors.
"""
# pyright: reportMissingImports=false, reportIndexIssue=false
# Triton comes with torch's CUDA builds only, and its decorator is opaque to the type checker.

import torch
import triton
import triton.language as tl
from torch import Tensor

from detection3d.multitask.launching import Launcher

_BLOCK = 1024
_FLAT, _BY_SAMPLE, _BY_INDEX = 0, 1, 2

_UNFUSED = {"enable_fp_fusion": False}
"""For the solvers. Threads that hold copies of a sum each add what they get from the others to their own product; fused
with the addition, their own is not rounded, theirs are, so the copies differ in the last bit. After a line search two
slopes tie, the bit decides which one is steeper, and the threads go different ways: on an H100, the weights of four
tasks were off by 0.008."""


def draw(
    shape: tuple[int, ...], words: tuple[int, int], step: Tensor, sample_index: Tensor | None, index: Tensor | None
) -> Tensor:
    """Draw what `draw.uniform_from_words` does, or with `index` what `draw.uniform_at` does, to the bit."""
    result = torch.empty(shape, dtype=torch.float32, device=step.device)
    count = result.numel()
    if count == 0:
        return result
    mode = _FLAT if sample_index is None else _BY_SAMPLE
    places = None if sample_index is None else sample_index.contiguous()
    if index is not None:
        mode, places = _BY_INDEX, index.contiguous()
    a_sample = count if sample_index is None else count // shape[0]
    _launch_draw(-(-count // _BLOCK), result, step, places, words[0], words[1], count, a_sample, mode, _BLOCK)
    return result


def sign_coefficients(position_gradients: Tensor, uniform: Tensor, leak: float, purity: bool) -> Tensor:
    """Return what `graddrop.sign_coefficients` does for one leak, to the bit for up to four tasks.

    Args:
        position_gradients: float32 G, [K, ...].
        uniform: float32, shaped like one G_i.
        leak: of all tasks.
        purity: keep the positive sign with a probability of the purity; else of 1/2.
    """
    gradients = position_gradients.contiguous()
    result = torch.empty_like(gradients)
    positions = uniform.numel()
    if positions:
        programs = -(-positions // _BLOCK)
        _launch_sign(programs, result, gradients, uniform.contiguous(), positions, leak, len(gradients), purity, _BLOCK)
    return result


def shortest_in_hull(gram: Tensor, iterations: int) -> Tensor:
    """Return what `mgda.shortest_in_hull` does, to rounding."""
    result = torch.empty(len(gram), dtype=torch.float64, device=gram.device)
    with torch.cuda.device_of(result):
        _hull[(1,)](result, gram.contiguous(), len(gram), iterations, _padded(len(gram)), **_UNFUSED)
    return result


def projected_sum(gram: Tensor, order: Tensor) -> Tensor:
    """Return the column sums of `pcgrad.projected_coefficients`, to rounding."""
    result = torch.empty(len(gram), dtype=torch.float64, device=gram.device)
    with torch.cuda.device_of(result):
        _project[(1,)](result, gram.contiguous(), order.contiguous(), len(gram), _padded(len(gram)), **_UNFUSED)
    return result


def conflict_averse(gram: Tensor, c: float, iterations: int) -> Tensor:
    """Return the point on the simplex that `CAGrad` looks for, to rounding."""
    result = torch.empty(len(gram), dtype=torch.float64, device=gram.device)
    with torch.cuda.device_of(result):
        _averse[(1,)](result, gram.contiguous(), len(gram), c, iterations, _padded(len(gram)), **_UNFUSED)
    return result


def _padded(tasks: int) -> int:
    return max(triton.next_power_of_2(tasks), 2)


@triton.jit
def _mix(bits):
    bits = bits ^ (bits >> 16)
    bits = bits * 0x7FEB352D
    bits = bits ^ (bits >> 15)
    bits = bits * 0x846CA68B
    return bits ^ (bits >> 16)


@triton.jit
def _absorb(key, value):
    key = _mix(key ^ (value & 0xFFFFFFFF).to(tl.uint32))
    return _mix(key ^ ((value >> 32) & 0xFFFFFFFF).to(tl.uint32))


@triton.jit(do_not_specialize=["first", "second", "count", "a_sample"])
def _draw(result, step_at, places_at, first, second, count, a_sample, MODE: tl.constexpr, BLOCK: tl.constexpr):
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < count
    step = tl.load(step_at)
    one = _absorb(tl.cast(first, tl.uint32), step)
    two = _absorb(tl.cast(second, tl.uint32), step)
    low = place
    high = tl.zeros_like(place)
    if MODE == 1:
        sample = tl.load(places_at + place // a_sample, mask=inside, other=0)
        one = _absorb(one, sample)
        two = _absorb(two, sample)
        low = place % a_sample
    if MODE == 2:
        index = tl.load(places_at + place, mask=inside, other=0)
        low = index & 0xFFFFFFFF
        high = index >> 32
    bits = _mix(_mix(low.to(tl.uint32) ^ one) ^ two)
    if MODE == 2:
        bits = tl.where(high == 0, bits, _mix(bits ^ high.to(tl.uint32)))
    tl.store(result + place, (bits >> 8).to(tl.float32) * 5.9604644775390625e-08, mask=inside)


@triton.jit(do_not_specialize=["positions"])
def _sign(result, gradients, uniform, positions, leak, TASKS: tl.constexpr, PURITY: tl.constexpr, BLOCK: tl.constexpr):
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < positions
    stride = tl.cast(positions, tl.int64)
    probability = tl.full((BLOCK,), 0.5, tl.float32)
    if PURITY:
        positive = tl.zeros((BLOCK,), tl.float32)
        negative = tl.zeros((BLOCK,), tl.float32)
        for task in range(TASKS):
            gradient = tl.load(gradients + task * stride + place, mask=inside, other=0.0)
            # A NaN must reach the purity, as it does through torch's clamp.
            positive += tl.maximum(gradient, 0.0, propagate_nan=tl.PropagateNan.ALL)
            negative += tl.maximum(-gradient, 0.0, propagate_nan=tl.PropagateNan.ALL)
        purity = tl.div_rn(1.0, 1.0 + tl.div_rn(negative, positive))
        probability = tl.where((positive == 0.0) & (negative == 0.0), 0.5, purity)
    keep_positive = tl.load(uniform + place, mask=inside, other=0.0) < probability
    for task in range(TASKS):
        gradient = tl.load(gradients + task * stride + place, mask=inside, other=0.0)
        kept = tl.where(keep_positive, gradient >= 0.0, gradient <= 0.0)
        tl.store(result + task * stride + place, tl.where(kept, 1.0, leak), mask=inside)


_launch_draw, _launch_sign = Launcher(_draw), Launcher(_sign)


@triton.jit
def _load_square(gram, tasks, N: tl.constexpr):
    row = tl.arange(0, N)[:, None]
    column = tl.arange(0, N)[None, :]
    return tl.load(gram + row * tasks + column, mask=(row < tasks) & (column < tasks), other=0.0)


@triton.jit
def _hull(result, gram_at, tasks, ITERATIONS: tl.constexpr, N: tl.constexpr):
    task = tl.arange(0, N)
    gram = _load_square(gram_at, tasks, N)
    squares = tl.load(gram_at + task * (tasks + 1), mask=task < tasks, other=0.0)
    active = (task < tasks) & (squares != 0.0)
    largest = tl.max(squares, 0)
    gram = gram / tl.where(largest == 0.0, 1.0, largest)
    count = tl.sum(active.to(tl.float64), 0)
    point = tl.where(active, 1.0 / tl.maximum(count, 1.0), 0.0)
    for _ in range(ITERATIONS):
        slopes = tl.sum(gram * point[None, :], 1)
        best = tl.argmin(tl.where(active, slopes, float("inf")), 0)
        worst = tl.argmax(tl.where(point > 0.0, slopes, float("-inf")), 0)
        direction = (task == best).to(tl.float64) - (task == worst).to(tl.float64)
        curvature = tl.sum(direction * tl.sum(gram * direction[None, :], 1), 0)
        gain = -tl.sum(slopes * direction, 0)
        step = tl.where(curvature > 0.0, gain / tl.where(curvature > 0.0, curvature, 1.0), 0.0)
        weight = tl.sum(tl.where(task == worst, point, 0.0), 0)
        point += tl.minimum(tl.maximum(step, 0.0), weight) * direction
    tl.store(result + task, point, mask=task < tasks)


@triton.jit
def _project(result, gram_at, order_at, tasks: tl.constexpr, N: tl.constexpr):
    task = tl.arange(0, N)
    column = task[None, :]
    inside = task < tasks
    coefficients = ((task[:, None] == column) & inside[:, None]).to(tl.float64)
    for turn in range(tasks):
        other = tl.load(order_at + task * tasks + turn, mask=inside, other=0)
        row = tl.load(gram_at + other[:, None] * tasks + column, mask=inside[:, None] & (column < tasks), other=0.0)
        length = tl.load(gram_at + other * (tasks + 1), mask=inside, other=0.0)
        common = tl.sum(coefficients * row, 1)
        against = (common < 0.0) & (other != task) & (length > 0.0)
        share = tl.where(against, common / tl.where(length > 0.0, length, 1.0), 0.0)
        coefficients -= tl.where(column == other[:, None], share[:, None], 0.0)
    tl.store(result + task, tl.sum(coefficients, 0), mask=inside)


@triton.jit
def _averse(result, gram_at, tasks, C: tl.constexpr, ITERATIONS: tl.constexpr, N: tl.constexpr):
    task = tl.arange(0, N)
    inside = task < tasks
    gram = _load_square(gram_at, tasks, N)
    with_mean = tl.sum(gram, 1) / tasks
    # A constant: as an argument it would come in float32.
    pull = C * tl.sqrt(tl.maximum(tl.sum(with_mean, 0) / tasks, 0.0))
    logits = tl.where(inside, 0.0, float("-inf")).to(tl.float64)
    simplex = tl.where(inside, tl.full((), 1.0, tl.float64) / tasks, 0.0)
    best = simplex
    lowest = tl.full((), float("inf"), tl.float64)
    for turn in range(ITERATIONS):
        products = tl.sum(gram * simplex[None, :], 1)
        norm = tl.sqrt(tl.maximum(tl.sum(simplex * products, 0), 0.0))
        value = tl.sum(with_mean * simplex, 0) + pull * norm
        best = tl.where(value < lowest, simplex, best)
        lowest = tl.minimum(value, lowest)
        slope = with_mean + tl.where(norm > 0.0, pull / tl.where(norm > 0.0, norm, 1.0), 0.0) * products
        slope -= tl.min(tl.where(inside, slope, float("inf")), 0)
        largest = tl.max(tl.where(inside, slope, 0.0), 0)
        rate = 4.0 / tl.sqrt(tl.full((), 1.0, tl.float64) + turn)
        logits -= rate * slope / tl.where(largest > 0.0, largest, 1.0)
        logits -= tl.max(logits, 0)
        simplex = tl.where(inside, tl.exp(logits), 0.0)
        simplex /= tl.sum(simplex, 0)
    tl.store(result + task, best, mask=inside)
