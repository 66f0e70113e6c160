"""Stacks, sums and norms of gradients: memory formats, types, and the range of each type."""

import math
from fractions import Fraction

import pytest
import torch
from torch import Tensor

from detection3d.multitask.arithmetic import (
    gram_matrix,
    norm_ratio,
    plain_sum,
    stack_gradients,
    weighted_sum,
    working_dtype,
)
from detection3d.multitask.ranks import Ranks

ALONE = Ranks()


def values(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def formats() -> dict[str, list[Tensor]]:
    """Pairs of gradients [2, 3, 4, 6] as heads return them, by the layout of the first."""
    dense, last = values(2, 3, 4, 6), values(2, 3, 4, 6).to(memory_format=torch.channels_last)
    return {
        "contiguous": [dense, values(2, 3, 4, 6, seed=1)],
        "channels_last": [last, values(2, 3, 4, 6, seed=1)],
        "contiguous, then channels_last": [values(2, 3, 4, 6, seed=1), last],
        "every other column": [values(2, 3, 4, 12)[..., ::2], dense],
        "transposed": [values(6, 4, 3, 2).permute(3, 2, 1, 0), dense],
        "a sum's gradient": [torch.tensor(2.5).expand(2, 3, 4, 6), dense],
        "a spatial mean's gradient": [values(2, 3, 1, 1).expand(2, 3, 4, 6), dense],
        "a sum over samples": [values(3, 4, 6).expand(2, 3, 4, 6), last],
    }


@pytest.mark.parametrize("layout", formats())
def test_stacks_hold_the_gradients_whatever_their_layout(layout: str) -> None:
    gradients = formats()[layout]
    stacked = stack_gradients(gradients)
    assert stacked.shape == (2, 2, 3, 4, 6)
    assert all(torch.equal(*pair) for pair in zip(stacked, gradients, strict=True))
    # Dense in memory, each task in one piece: no element is stored twice or skipped.
    assert stacked.untyped_storage().nbytes() == stacked.numel() * 4
    assert stacked.stride(0) == 2 * 3 * 4 * 6
    last = torch.channels_last
    assert stacked[0].is_contiguous(memory_format=last) == gradients[0].is_contiguous(memory_format=last)
    stacked.zero_()
    assert all(gradient.any() for gradient in gradients)  # a copy


def test_stacks_of_plain_features_and_scalars() -> None:
    for shape in ((5, 3), (5,), (0, 3), ()):
        gradients = [values(*shape, seed=seed) for seed in range(3)]
        assert torch.equal(stack_gradients(gradients), torch.stack(gradients))
    with pytest.raises(ValueError, match="at least one task's gradient is needed, found none"):
        stack_gradients([])


@pytest.mark.parametrize(
    ("dtype", "working"),
    [
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_working_type(dtype: torch.dtype, working: torch.dtype) -> None:
    gradients = values(2, 3, 4, dtype=dtype)
    assert working_dtype(dtype) == working
    for given in (gradients, list(gradients)):
        stacked = stack_gradients(given)
        assert stacked.dtype == working
        assert torch.equal(stacked, gradients.to(working))


@pytest.mark.parametrize("tasks", [1, 2, 3, 40])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_a_weighted_sum_with_ones_is_the_plain_sum_to_the_bit(tasks: int, layout: str) -> None:
    format = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    gradients = [values(2, 3, 4, 5, seed=seed).to(memory_format=format) for seed in range(tasks)]
    stacked = stack_gradients(gradients)
    total = plain_sum(stacked)
    for shape in ((tasks, 1, 1, 1, 1), (tasks, 1, 3, 4, 5), stacked.shape):
        assert torch.equal(weighted_sum(torch.ones(shape), stacked), total)
    assert total.stride() == gradients[0].stride()
    assert weighted_sum(torch.ones(tasks, 1, 3, 4, 5), stacked).stride() == gradients[0].stride()
    exact = sum(gradient.double() for gradient in gradients)
    torch.testing.assert_close(total.double(), exact, rtol=0, atol=tasks * 1e-6)


def test_a_weight_of_zero_lets_an_overflow_through() -> None:
    stacked = torch.tensor([[math.inf, 1.0, math.nan], [1.0, 2.0, 3.0]])
    result = weighted_sum(torch.tensor([[0.0], [1.0]]), stacked)
    assert result.isnan().tolist() == [True, False, True]


RANGES = [
    (torch.float32, 1e38),
    (torch.float32, 1.0),
    (torch.float32, 1e-37),
    (torch.float64, 1e300),
    (torch.float64, 1e-300),
    (torch.float64, 1e-30),
]


@pytest.mark.parametrize(("dtype", "scale"), RANGES)
def test_ratio_of_norms_over_the_range_of_the_type(dtype: torch.dtype, scale: float) -> None:
    # Squares of these magnitudes do not exist in their own type.
    reference = values(50, seed=1).double().clamp(-3, 3).mul(scale).to(dtype)
    result = values(50, seed=2).double().clamp(-3, 3).mul(scale / 7).to(dtype)
    exact = math.sqrt(
        sum(Fraction(x) ** 2 for x in reference.double().tolist())
        / sum(Fraction(x) ** 2 for x in result.double().tolist())
    )
    found = norm_ratio(reference, result, ALONE)
    assert found.dtype == dtype
    assert found.item() == pytest.approx(exact, rel=1e-7 if dtype == torch.float32 else 1e-14)


def test_ratio_of_one_and_of_nothing() -> None:
    for dtype in (torch.float32, torch.float64):
        gradient = values(30, dtype=dtype)
        assert norm_ratio(gradient, gradient.clone(), ALONE).item() == 1.0
        assert norm_ratio(gradient, torch.zeros_like(gradient), ALONE).item() == 1.0
        assert norm_ratio(torch.zeros_like(gradient), gradient, ALONE).item() == 0.0
        assert norm_ratio(gradient[:0], gradient[:0], ALONE).item() == 1.0
        assert norm_ratio(gradient, gradient * math.nan, ALONE).isnan()


@pytest.mark.parametrize("scale", [1e38, 1.0, 1e-37])
def test_gram_matrix_over_the_range_of_float32(scale: float) -> None:
    gradients = values(3, 2, 4, 5).clamp(-3, 3).double().mul(scale).float()
    flat = [[Fraction(x) for x in gradient.double().flatten().tolist()] for gradient in gradients]
    wanted = [[float(sum(x * y for x, y in zip(a, b, strict=True))) for b in flat] for a in flat]
    found = gram_matrix(gradients, ALONE)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, torch.tensor(wanted, dtype=torch.float64), rtol=1e-13, atol=1e-13 * scale**2)


@pytest.mark.parametrize("layout", formats())
def test_gram_matrix_of_any_layout(layout: str) -> None:
    gradients = formats()[layout]
    flat = torch.stack([gradient.flatten() for gradient in gradients]).double()
    torch.testing.assert_close(gram_matrix(stack_gradients(gradients), ALONE), flat @ flat.T, rtol=1e-13, atol=1e-13)
    assert gram_matrix(torch.zeros(3, 0, 4), ALONE).tolist() == [[0.0] * 3] * 3


@pytest.mark.parametrize("size", [2**14 - 1, 2**14, 2**14 + 1, 3 * 2**14 + 5])
def test_gram_matrix_of_more_than_a_block(size: int) -> None:
    gradients = torch.randn(3, size, generator=torch.Generator().manual_seed(size), dtype=torch.float64)
    torch.testing.assert_close(gram_matrix(gradients, ALONE), gradients @ gradients.T, rtol=1e-11, atol=1e-9)
