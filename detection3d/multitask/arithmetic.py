"""Sums, products and norms of stacked gradients, exact where it matters."""

from collections.abc import Sequence

import torch
from torch import Tensor

from detection3d.multitask.ranks import Ranks

_BLOCK = 2**14  # elements of a row that are multiplied at once


def working_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the type in which gradients of `dtype` are combined: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def stack_gradients(gradients: Sequence[Tensor] | Tensor) -> Tensor:
    """Stack K gradients of one shape to [K, ...] in their `working_dtype`.

    The slices keep the memory format of the first gradient, in which the convolutions before the fork work.

    Raises:
        ValueError: no gradient.
    """
    if isinstance(gradients, Tensor):
        return gradients.to(working_dtype(gradients.dtype))
    if not gradients:
        raise ValueError("at least one task's gradient is needed, found none")
    order = _memory_order(gradients[0])
    stacked = torch.stack([gradient.permute(order) for gradient in gradients])
    return stacked.to(working_dtype(stacked.dtype)).permute(0, *[place + 1 for place in _inverse(order)])


def plain_sum(gradients: Tensor) -> Tensor:
    """Add up K gradients, [K, ...] to [...], in the memory format of the gradients."""
    # A reduction's result is contiguous, whatever its input; so the dims are brought into their order in memory first.
    order = _memory_order(gradients[0])
    return gradients.permute(0, *[dim + 1 for dim in order]).sum(0).permute(_inverse(order))


def weighted_sum(coefficients: Tensor, gradients: Tensor) -> Tensor:
    """Return sum_i c_i g_i, added up in the same order as `plain_sum`.

    Coefficients multiply and never select, so that an inf or NaN in a gradient comes through a coefficient of 0 as NaN
    and a loss scaler sees it.

    Args:
        coefficients: [K, ...], broadcasts onto the gradients.
        gradients: [K, ...].
    """
    # The gradient comes first, so that the products have its memory format.
    return plain_sum(gradients * coefficients)


def norm_ratio(reference: Tensor, result: Tensor, ranks: Ranks) -> Tensor:
    """Return ||reference|| / ||result|| over all ranks, 1 where ||result|| is 0, in the type of `result`."""
    exponent = _exponent(torch.stack([reference, result]), ranks) if result.dtype == torch.float64 else None
    squares = [_square_sum(values, exponent) for values in (reference, result)]
    reference_square, result_square = ranks.sum(torch.stack(squares)).unbind()
    return torch.where(result_square == 0, 1.0, (reference_square / result_square).sqrt()).to(result.dtype)


def gram_matrix(gradients: Tensor, ranks: Ranks) -> Tensor:
    """Return the products of each pair of gradients, float64 [K, K], over all ranks.

    Losses are scaled by the number of ranks, whose gradients DistributedDataParallel averages; this is undone here, so
    that the products are those of one rank with all samples. Those of float64 gradients with norms beyond 1e150, or
    below 1e-150, leave the range of float64; those of any other type never do.

    Args:
        gradients: [K, ...].
        ranks: over which the products are summed.
    """
    order = _memory_order(gradients[0])
    flat = gradients.permute(0, *[dim + 1 for dim in order]).flatten(1).double()
    return ranks.sum(_products(flat)) / ranks.size**2


def _products(rows: Tensor) -> Tensor:
    """Return `rows @ rows.T`, [K, K] of [K, N], in blocks: a GPU leaves one product of long rows to few cores."""
    whole = rows.shape[1] // _BLOCK * _BLOCK
    blocks = rows[:, :whole].reshape(len(rows), -1, _BLOCK).transpose(0, 1)
    rest = rows[:, whole:]
    return (blocks @ blocks.transpose(1, 2)).sum(0) + rest @ rest.T


def _square_sum(values: Tensor, exponent: Tensor | None) -> Tensor:
    """Sum the squares in float64, where those of a float32 neither overflow nor vanish."""
    scaled = values if exponent is None else torch.ldexp(values, -exponent)
    return torch.linalg.vector_norm(scaled, dtype=torch.float64).square()


def _exponent(values: Tensor, ranks: Ranks) -> Tensor:
    """Exponent of the largest magnitude: dividing by this power of two, squares of float64 stay in range."""
    largest = values.abs().amax() if values.numel() else values.new_zeros(())
    return torch.frexp(ranks.max(largest)).exponent


def _memory_order(values: Tensor) -> list[int]:
    """Dims from the farthest apart in memory to the nearest."""
    return sorted(range(values.ndim), key=lambda dim: -values.stride(dim))


def _inverse(order: list[int]) -> list[int]:
    """The permutation that undoes `order`."""
    return sorted(range(len(order)), key=order.__getitem__)
