"""NormOverRanks on two ranks of the CPU, where the formulas of torch's CUDA kernels stand in for them."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from detection3d.model.norm import BatchNorm, synchronize_norms
from tests.model.test_norm import SHAPES, STEPS, assert_like_one_rank, run_norm, shares
from tests.rank_group import RankGroup


def over(values: Tensor) -> list[int]:
    return [dim for dim in range(values.ndim) if dim != 1]


def wide(numbers: Tensor, values: Tensor) -> Tensor:
    return numbers.view([1, -1] + [1] * (values.ndim - 2))


def stats(values: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    variance, mean = torch.var_mean(values, over(values), correction=0)
    return mean, (variance + epsilon).rsqrt()


def gather_stats(
    values: Tensor, means: Tensor, inverses: Tensor, mean: Tensor, variance: Tensor, momentum: float, epsilon: float,
    counts: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Join the ranks' statistics one after another, and move the running ones."""
    total, average, squares = torch.zeros((), dtype=mean.dtype), torch.zeros_like(mean), torch.zeros_like(mean)
    for own, inverse, count in zip(means, inverses, counts, strict=True):
        factor = 1 / (total + count)
        squares = squares + (inverse**-2 - epsilon) * count + (average - own).square() * total * count * factor
        average = total * factor * average + count * factor * own
        total = total + count
    mean.lerp_(average, momentum)
    variance.lerp_(squares / (total - 1), momentum)
    return average, (squares / total + epsilon).rsqrt()


def normalize(values: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, inverse: Tensor, epsilon: float) -> Tensor:
    return (values - wide(mean, values)) * wide(inverse * weight, values) + wide(bias, values)


def backward_reduce(
    gradient: Tensor, values: Tensor, mean: Tensor, inverse: Tensor, weight: Tensor, *_: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    total = gradient.sum(over(values))
    product = (gradient * (values - wide(mean, values))).sum(over(values))
    return total, product, product * inverse, total


def backward_normalize(
    gradient: Tensor, values: Tensor, mean: Tensor, inverse: Tensor, weight: Tensor, total: Tensor, product: Tensor,
    counts: Tensor,
) -> Tensor:  # fmt: skip
    count = counts.sum()
    own = gradient - wide(total / count, values)
    own = own - (values - wide(mean, values)) * wide(product / count * inverse.square(), values)
    return own * wide(inverse * weight, values)


KERNELS = {
    "batch_norm_stats": stats,
    "batch_norm_gather_stats_with_counts": gather_stats,
    "batch_norm_elemt": normalize,
    "batch_norm_backward_reduce": backward_reduce,
    "batch_norm_backward_elemt": backward_normalize,
}


class OnCuda(BatchNorm):
    """Normalises as it would on CUDA over several ranks."""

    def _normalize(self, input: Tensor) -> Tensor:
        return self._normalize_on_cuda(input)


def norm_on_rank(rank: int, steps: list[Tensor], second: bool, variance: float = 1.0) -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        for name, kernel in KERNELS.items():
            patch.setattr(torch, name, kernel)
        norm = OnCuda(4).to(steps[0].dtype)
        with torch.no_grad():
            norm.weight.copy_(torch.linspace(-1, 2, 4))
        assert norm.running_var is not None
        norm.running_var.fill_(variance)
        synchronize_norms(norm)
        return run_norm(norm, steps, second)


@pytest.fixture(scope="module")
def two_ranks() -> Iterator[RankGroup]:
    with RankGroup(2) as group:
        yield group


def run_shares(rank: int, shapes: list[tuple[int, ...]], second: bool, layout: torch.memory_format) -> dict[str, Any]:
    steps = [shares(shapes, step, torch.float64, 5.0)[rank] for step in range(STEPS)]
    return norm_on_rank(rank, [step.contiguous(memory_format=layout) for step in steps], second)


@pytest.mark.parametrize("second", [False, True], ids=["gradient", "second derivative"])
@pytest.mark.parametrize("shapes", SHAPES, ids=str)
def test_two_ranks_equal_one_with_all_rows(two_ranks: RankGroup, shapes: list[tuple[int, ...]], second: bool) -> None:
    layouts = [torch.contiguous_format, torch.channels_last][: len(shapes[0]) - 2 or 1]
    for layout in layouts:
        found = two_ranks.run(run_shares, shapes, second, layout)
        assert_like_one_rank(found, shapes, second, {"rtol": 1e-9, "atol": 1e-10})


def test_gaps_between_values_change_nothing(two_ranks: RankGroup) -> None:
    """A slice of channels, whose second derivative a copy inside would cut off."""
    for sliced, packed in two_ranks.run(run_sliced):
        torch.testing.assert_close(sliced, packed)


def run_sliced(rank: int) -> tuple[dict[str, Any], dict[str, Any]]:
    generator = torch.Generator().manual_seed(rank)
    whole = torch.randn(2, 9, 3, 4, generator=generator, dtype=torch.float64)
    return norm_on_rank(rank, [Sliced.of(whole)], True), norm_on_rank(rank, [whole[:, :4].contiguous()], True)


class Sliced(Tensor):
    """Values whose copies keep their gaps."""

    @staticmethod
    def of(whole: Tensor) -> Tensor:
        return whole[:, :4].as_subclass(Sliced)

    def clone(self, **_: Any) -> Tensor:
        room = torch.zeros(2, 9, 3, 4, dtype=torch.float64)
        room[:, :4] = self.as_subclass(Tensor)
        return room[:, :4]


@pytest.mark.parametrize("variance", [1e-4, 1e-12, 0.0])
def test_a_rank_without_rows_adds_nothing(two_ranks: RankGroup, variance: float) -> None:
    """Whatever the running variance, which has died away where a channel is constant."""
    for empty_first in (False, True):
        found = two_ranks.run(run_one_sided, empty_first, variance)
        rows = shares([(1000, 4)], 0, torch.float32, 0.0)[0] * 1e-3
        expected = (rows - rows.mean(0)) / (rows.var(0, correction=0) + 1e-3).sqrt()
        output = found[int(empty_first)]["outputs"][0]
        torch.testing.assert_close(output, expected * torch.linspace(-1, 2, 4), rtol=1e-4, atol=1e-5)
        for one in found:
            moved = 0.99 * variance + 0.01 * rows.var(0)
            torch.testing.assert_close(one["state"]["running_var"], moved, rtol=1e-2, atol=1e-10)


def run_one_sided(rank: int, empty_first: bool, variance: float) -> dict[str, Any]:
    rows = shares([(1000, 4)], 0, torch.float32, 0.0)[0] * 1e-3
    return norm_on_rank(rank, [rows[:0] if (rank == 0) == empty_first else rows], False, variance)
