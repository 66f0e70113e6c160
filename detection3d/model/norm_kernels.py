"""Triton kernels of batch normalisation with what follows it, an addition and a ReLU; `norm.py` is the oracle.

Batch normalisation is bound by memory: torch's own kernels read the values of a channels-last map at a fifth of the
speed that an H200 has, and a ReLU and an addition of their own read and write them again. Here they are read twice and
written once on the way forward, and the same with their gradients on the way back.

All kernels see [N, C] values whose rows lie `stride` apart. Sums are those of differences from a reference, which
keeps the digits where the mean is large beside the deviation; a program adds up a share of the rows in float32, the
programs' sums are added in float64, always in the same order: the same bits in every run.
"""

import torch
from torch import Tensor

from detection3d.model import norm_programs
from detection3d.multitask.exchange import Site
from detection3d.multitask.launching import Launcher

_TILE = 4096  # values that a program holds at once
_PROGRAMS = 1056  # eight for each multiprocessor of an H100 or H200
_CHANNELS_AT_ONCE = 16
_PARTS_AT_ONCE = 64

_sums = Launcher(norm_programs.sums_kernel)
_add = Launcher(norm_programs.add_kernel)
_finish = Launcher(norm_programs.finish_kernel)
_normalize = Launcher(norm_programs.normalize_kernel)
_gradient_sums = Launcher(norm_programs.gradient_sums_kernel)
_finish_gradient = Launcher(norm_programs.finish_gradient_kernel)
_input_gradient = Launcher(norm_programs.input_gradient_kernel)


def programs_for(channels: int) -> int:
    """Return how many programs finish the sums of so many channels: what a `Site` for them is made for."""
    return -(-channels // _CHANNELS_AT_ONCE)


def sums(values: Tensor, reference: Tensor) -> Tensor:
    """Return sums of `values - reference` and of their squares over parts of the rows, float32 [P, 2 C].

    Args:
        values: [N, C], channels next to each other.
        reference: float32 [C].
    """
    rows, channels = values.shape
    programs, shape = _share(rows, channels)
    parts = _room_for(programs, values)
    _sums(max(programs, 1), values, reference, parts, rows, values.stride(0), channels, *shape)
    return parts


def added(parts: Tensor, rows: int) -> Tensor:
    """Return the sum of sums of parts [P, 2 C] and the number of rows, float64 [2 C + 1], to be added up over ranks."""
    programs, numbers = parts.shape
    result = torch.empty(numbers + 1, dtype=torch.float64, device=parts.device)
    _add(programs_for(numbers), parts, result, programs, numbers, rows, _CHANNELS_AT_ONCE, _PARTS_AT_ONCE)
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
    site: Site | None = None,
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
        site: where the ranks meet to add up their parts here; `parts` and `rows` are this rank's then.
    """
    channels = len(weight)
    result = torch.empty((4, channels), dtype=torch.float32, device=weight.device)
    _finish(
        programs_for(channels), parts, len(parts), rows, count, reference, weight, bias, *running, result, channels,
        momentum, epsilon, *_meeting(count, site), _CHANNELS_AT_ONCE, _PARTS_AT_ONCE,
    )  # fmt: skip
    return result


def normalize(values: Tensor, scale_shift: Tensor, residual: Tensor | None, relu: bool, like: Tensor) -> Tensor:
    """Return `relu(values * scale + shift + residual)` in the shape of `like`, channels next to each other.

    Args:
        values: [N, C].
        scale_shift: float32 [2 or more, C].
        residual: [N, C], or None.
        relu: whether there is one.
        like: what the values are a view of.
    """
    result = _empty_like(like)
    rows, channels = values.shape
    programs, shape = _share(rows, channels)
    step = 0 if residual is None else residual.stride(0)
    _normalize(
        max(programs, 1), values, scale_shift, residual, rows_of(result), rows, values.stride(0), step, channels,
        residual is not None, relu, *shape,
    )  # fmt: skip
    return result


def gradient_sums(gradient: Tensor, values: Tensor, output: Tensor | None, numbers: Tensor) -> Tensor:
    """Return sums of g and of `g (values - mean)` over parts of the rows, float32 [P, 2 C].

    Args:
        gradient: [N, C], of the result; g is the gradient where the output is above 0.
        values: [N, C], the input.
        output: [N, C], the result; None where no ReLU was.
        numbers: float32 [4, C], as `finish` returns them.
    """
    rows, channels = values.shape
    programs, shape = _share(rows, channels)
    parts = _room_for(programs, values)
    _gradient_sums(
        max(programs, 1), gradient, values, output, numbers, parts, rows, gradient.stride(0), values.stride(0),
        channels, output is not None, *shape,
    )  # fmt: skip
    return parts


def finish_gradient(
    own: Tensor,
    total: Tensor,
    rows: int,
    count: Tensor | None,
    numbers: Tensor,
    weight: Tensor,
    site: Site | None = None,
) -> Tensor:
    """Return the gradients of weight and bias, and a, b and c of `input_gradient`: float32 [5, C].

    Args:
        own: as `gradient_sums` returns them, of this rank.
        total: of all ranks, as in `finish`.
        rows: N.
        count: as in `finish`.
        numbers: as in `gradient_sums`.
        weight: float32 [C].
        site: as in `finish`; `total` is without use then.
    """
    channels = len(weight)
    result = torch.empty((5, channels), dtype=torch.float32, device=weight.device)
    _finish_gradient(
        programs_for(channels), own, len(own), total, len(total), rows, count, numbers, weight, result, channels,
        *_meeting(count, site), _CHANNELS_AT_ONCE, _PARTS_AT_ONCE,
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
        factors: float32 [5, C], as `finish_gradient` returns them.
        like: what the values are a view of.
        residual: whether there was one.
    """
    to_input = _empty_like(like)
    to_residual = _empty_like(like) if residual else None
    rows, channels = values.shape
    programs, shape = _share(rows, channels)
    _input_gradient(
        max(programs, 1), gradient, values, output, factors, rows_of(to_input),
        None if to_residual is None else rows_of(to_residual), rows, gradient.stride(0), values.stride(0), channels,
        output is not None, residual, *shape,
    )  # fmt: skip
    return to_input, to_residual


def rows_of(values: Tensor) -> Tensor:
    """Return [V, C], or [B, C, H, W] as [B H W, C]: a view of channels-last memory, else a copy."""
    rows = values if values.ndim == 2 else values.permute(0, 2, 3, 1).reshape(-1, values.shape[1])
    return rows if rows.stride(1) == 1 else rows.contiguous()


def _meeting(count: Tensor | None, site: Site | None) -> tuple[Tensor | None, bool, int, int]:
    """Return the arguments that say how sums of several ranks come together."""
    if site is None:
        return None, count is not None, 0, 1
    return site.addresses, False, site.rank, site.size


def _share(rows: int, channels: int) -> tuple[int, tuple[int, int, int]]:
    """Return how many programs have rows, and the rest of their launch: tiles of each, rows and columns of a tile."""
    # Triton's own functions for this arithmetic take microseconds each, and a step has hundreds of them.
    padded = 1 << (channels - 1).bit_length()
    block = max(_TILE // padded, 1)
    tiles = -(-rows // (block * _PROGRAMS))
    return (-(-rows // (block * tiles)) if rows else 0), (tiles, block, padded)


def _empty_like(values: Tensor) -> Tensor:
    """Return room of this shape whose `rows_of` are a view, whatever the layout of the values."""
    layout = torch.contiguous_format if values.ndim == 2 else torch.channels_last
    return torch.empty_like(values, memory_format=layout)


def _room_for(programs: int, values: Tensor) -> Tensor:
    """Return room for the programs' sums, [programs, 2 C]."""
    return torch.empty((programs, 2 * values.shape[1]), dtype=torch.float32, device=values.device)
