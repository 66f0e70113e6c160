"""BatchNorm against torch's, where torch's refuses, and over several ranks."""

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from detection3d.model import fused_norm
from detection3d.model.norm import EPSILON, MOMENTUM, BatchNorm, synchronize_norms
from detection3d.multitask.exchange import open_exchange
from detection3d.multitask.ranks import Ranks, current_ranks
from tests.rank_group import RankGroup


@pytest.mark.parametrize("shape", [(50, 4), (2, 4, 5, 3), (1, 4, 2, 1)])
def test_equals_torch(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    ours = BatchNorm(4)
    theirs = (nn.BatchNorm1d if len(shape) == 2 else nn.BatchNorm2d)(4, eps=EPSILON, momentum=MOMENTUM)
    for _ in range(3):
        values = torch.randn(shape, generator=generator) * 3 + 1
        torch.testing.assert_close(ours(values), theirs(values))
    assert ours.running_mean is not None
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict())
    ours.eval(), theirs.eval()
    torch.testing.assert_close(ours(values), theirs(values))


@pytest.mark.parametrize("rows", [0, 1])
def test_too_few_rows_take_the_running_statistics_and_leave_them(rows: int) -> None:
    norm = BatchNorm(3)
    norm(torch.randn(40, 3, generator=torch.Generator().manual_seed(1)) * 2 + 5)
    before = {name: value.clone() for name, value in norm.state_dict().items()}
    values = torch.full((rows, 3), 7.0, requires_grad=True)
    result = norm(values)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    torch.testing.assert_close(result, (values - norm.running_mean) / torch.sqrt(norm.running_var + EPSILON))
    torch.testing.assert_close(norm.state_dict(), before)
    result.sum().backward()
    assert norm.weight.grad is not None


SHAPES = [  # of each rank's share
    [(30, 4), (17, 4)],
    [(30, 4), (0, 4)],
    [(1, 4), (1, 4)],
    [(2, 4, 5, 3), (1, 4, 5, 3)],
    [(0, 4), (1, 4)],
    [(0, 4), (0, 4)],
]
STEPS = 3


def shares(shapes: list[tuple[int, ...]], step: int, dtype: torch.dtype, offset: float) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(10 * step)
    return [(torch.randn(shape, generator=generator, dtype=torch.float64) * 3 + offset).to(dtype) for shape in shapes]


def run_norm(
    norm: nn.Module, steps: list[torch.Tensor], second: bool
) -> dict[str, torch.Tensor | list[torch.Tensor] | dict[str, torch.Tensor]]:
    """Outputs, gradients and state after some steps; `second` takes the gradient of a gradient's square."""
    outputs, gradients = [], []
    for values in steps:
        input = values.clone().requires_grad_()
        output = norm(input)
        loss = (output.sin() * torch.linspace(0.5, 2, 4).to(output).view(1, 4, *[1] * (output.ndim - 2))).sum()
        if second:
            (slope,) = torch.autograd.grad(loss, input, create_graph=True)
            loss = slope.square().sum()
        loss.backward()
        outputs.append(output.detach().cpu())
        assert input.grad is not None
        gradients.append(input.grad.cpu())
    weights = dict(norm.named_parameters())
    parameters = {name: weight.grad.cpu() for name, weight in weights.items() if weight.grad is not None}
    state = {name: value.cpu() for name, value in norm.state_dict().items()}
    return {"outputs": outputs, "inputs": gradients, "parameters": parameters, "state": state}


def run_norm_on_rank(
    rank: int,
    shapes: list[tuple[int, ...]],
    dtype: torch.dtype,
    offset: float,
    second: bool,
    device: str = "cpu",
    layout: torch.memory_format = torch.preserve_format,
    shared: bool = True,
) -> dict[str, object]:
    norm = BatchNorm(4).to(device, dtype)  # "cuda" is the rank's own device
    with torch.no_grad():
        norm.weight.copy_(torch.linspace(-1, 2, 4))
    synchronize_norms(norm, exchange=open_exchange(None, norm.weight.device) if shared else None)
    steps = [shares(shapes, step, dtype, offset)[rank].to(device, memory_format=layout) for step in range(STEPS)]
    return run_norm(norm, steps, second)


@pytest.fixture(scope="module")
def two_ranks() -> Iterator[RankGroup]:
    with RankGroup(2) as group:
        yield group


@pytest.mark.parametrize("second", [False, True], ids=["gradient", "second derivative"])
@pytest.mark.parametrize("shapes", SHAPES, ids=str)
def test_two_ranks_equal_one_with_all_rows(two_ranks: RankGroup, shapes: list[tuple[int, ...]], second: bool) -> None:
    found = two_ranks.run(run_norm_on_rank, shapes, torch.float64, 5.0, second)
    assert_like_one_rank(found, shapes, second, {"rtol": 1e-11, "atol": 1e-12})


def assert_like_one_rank(
    found: list[dict[str, Any]], shapes: list[tuple[int, ...]], second: bool, close: dict[str, float]
) -> None:
    alone = BatchNorm(4).double()
    with torch.no_grad():
        alone.weight.copy_(torch.linspace(-1, 2, 4))
    wanted = run_norm(alone, [torch.cat(shares(shapes, step, torch.float64, 5.0)) for step in range(STEPS)], second)
    for rank in found:
        state = {name: value.to(wanted["state"][name].dtype) for name, value in rank["state"].items()}
        torch.testing.assert_close(state, wanted["state"], **close)
    for name in ("outputs", "inputs"):
        for parts, whole in zip(zip(*[rank[name] for rank in found], strict=True), wanted[name], strict=True):
            torch.testing.assert_close(torch.cat(parts).double(), whole, **close)
    for name, gradient in wanted["parameters"].items():
        torch.testing.assert_close(sum(rank["parameters"][name].double() for rank in found), gradient, **close)


def test_over_ranks_a_large_mean_costs_no_digits(two_ranks: RankGroup) -> None:
    shapes = [(300, 4), (200, 4)]
    found = two_ranks.run(run_norm_on_rank, shapes, torch.float32, 3000.0, False)
    exact = nn.BatchNorm1d(4, eps=EPSILON, momentum=MOMENTUM).double()
    with torch.no_grad():
        exact.weight.copy_(torch.linspace(-1, 2, 4))
    values = [torch.cat(shares(shapes, step, torch.float32, 3000.0)).double() for step in range(STEPS)]
    wanted = run_norm(exact, values, False)
    # float32 keeps 3000 to 1.2e-4, a deviation of 3 makes 4e-5 of it.
    for parts, whole in zip(zip(*[rank["outputs"] for rank in found], strict=True), wanted["outputs"], strict=True):
        torch.testing.assert_close(torch.cat(parts).double(), whole, rtol=0, atol=2e-4)
    variance = found[0]["state"]["running_var"].double()
    torch.testing.assert_close(variance, wanted["state"]["running_var"], rtol=1e-6, atol=0)


def test_half_precision_is_computed_in_single(two_ranks: RankGroup) -> None:
    found = two_ranks.run(run_half)
    for half, single in found:
        assert half.dtype == torch.bfloat16
        torch.testing.assert_close(half, single.bfloat16(), rtol=0, atol=0)


def run_half(rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    values = torch.randn(20, 4, generator=torch.Generator().manual_seed(rank)).bfloat16()
    results = []
    for input in (values, values.float()):
        norm = BatchNorm(4)
        synchronize_norms(norm)
        results.append(norm(input).detach())
    return results[0], results[1]


def test_synced_norms_have_the_same_names_and_evaluate_alone(two_ranks: RankGroup) -> None:
    for same_names, same_output in two_ranks.run(run_evaluation):
        assert same_names
        assert same_output


def run_evaluation(rank: int) -> tuple[bool, bool]:
    plain, synced = (nn.Sequential(BatchNorm(4), nn.ReLU(), BatchNorm(4)) for _ in range(2))
    synchronize_norms(synced)
    same_names = plain.state_dict().keys() == synced.state_dict().keys()
    copied = copy.deepcopy(synced).eval()
    same_output = True
    if rank == 0:  # the other rank does not take part: a collective would hang
        values = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
        same_output = torch.equal(copied(values), plain.eval()(values))
    return same_names, same_output


def test_one_rank_takes_the_fused_path_and_others_norms_are_refused(two_ranks: RankGroup) -> None:
    norm = BatchNorm(4)
    synchronize_norms(nn.Sequential(norm, nn.BatchNorm1d(4)))  # without torch.distributed this changes nothing
    assert norm.ranks.size == 1
    for message in two_ranks.run(refuse_torchs_norm):
        assert message == "1 is a BatchNorm1d, which knows one rank only; use model.norm.BatchNorm"


def refuse_torchs_norm(rank: int) -> str:
    with pytest.raises(ValueError, match="which knows one rank only") as caught:
        synchronize_norms(nn.Sequential(BatchNorm(4), nn.BatchNorm1d(4)))
    return str(caught.value)


def test_kernels_are_taken_where_all_ranks_have_them(two_ranks: RankGroup) -> None:
    assert two_ranks.run(kernels_where, (True, True)) == [True, True]
    assert two_ranks.run(kernels_where, (True, False)) == [False, False]


def kernels_where(rank: int, there: tuple[bool, ...]) -> bool:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused_norm, "_kernels", lambda: torch if there[rank] else None)
        return fused_norm.kernels_on_all(current_ranks(), torch.device("cpu"))


def test_without_kernels_on_all_ranks_none_takes_them(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: torch.Tensor) -> None:
        raise AssertionError

    monkeypatch.setattr("detection3d.model.norm.fused_for", refuse)
    norm = BatchNorm(4)
    norm(torch.randn(3, 4))  # nor on one rank, where nobody asked for them
    norm.ranks, norm.fused, norm.fused_over_ranks = Ranks(size=2), True, False
    with pytest.raises(ValueError, match="process group"):  # of the sums over two ranks, which come afterwards
        norm(torch.randn(3, 4))
    norm.fused_over_ranks = True
    with pytest.raises(AssertionError):
        norm(torch.randn(3, 4))
