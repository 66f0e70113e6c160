"""What GradDrop's theory promises and what it does not, by exact integration over the draw.

At a position the result depends on the uniform number through one comparison, so it is piecewise constant with one
jump. The jump is searched for by bisection, without any formula for the purity, and expectations over the draw are sums
of two terms. docs/theory.md derives what is tested here.
"""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from detection3d.multitask import GradDrop, Sigmoid, TaskFork, graddrop
from detection3d.multitask.positions import DensePositions, Marginalize

ALMOST_ONE = 1 - 2**-53


class Law:
    """The law of the result, element by element: `early` with probability `chance`, else `late`."""

    def __init__(self, gradients: Tensor, activation: Tensor, mode: Marginalize = "none", **options) -> None:
        shape = DensePositions(mode).shape(activation.shape)
        pooled = [dim for dim, size in enumerate(shape) if size == 1]

        def result(uniform: Tensor) -> Tensor:
            return graddrop(gradients, activation, uniform, marginalize=mode, preserve_norm=False, **options)

        low, high = torch.zeros(shape, dtype=torch.float64), torch.full(shape, ALMOST_ONE, dtype=torch.float64)
        self.early, self.late = result(low), result(high)
        for _ in range(60):
            middle = (low + high) / 2
            before = result(middle) == self.early
            if pooled:  # what shares a position jumps together
                before = before.all(dim=pooled, keepdim=True)
            low, high = torch.where(before, middle, low), torch.where(before, high, middle)
        self.chance = high
        # There is one jump only.
        for number in torch.rand(20, generator=torch.Generator().manual_seed(0), dtype=torch.float64):
            wanted = torch.where(number < self.chance, self.early, self.late)
            assert torch.equal(result(torch.full(shape, number.item(), dtype=torch.float64)), wanted)

    def mean(self) -> Tensor:
        return self.chance * self.early + (1 - self.chance) * self.late

    def variance(self) -> Tensor:
        return self.chance * (1 - self.chance) * (self.early - self.late) ** 2


def problem(seed: int, tasks: int = 3, shape: tuple[int, ...] = (2, 5, 3)) -> tuple[Tensor, Tensor]:
    """Gradients and activation with some zeros."""
    generator = torch.Generator().manual_seed(seed)
    gradients = torch.randn(tasks, *shape, generator=generator, dtype=torch.float64)
    gradients *= torch.rand(gradients.shape, generator=generator) > 0.2
    activation = torch.randn(shape, generator=generator, dtype=torch.float64)
    return gradients, activation * (torch.rand(shape, generator=generator) > 0.2)


def signs(values: Tensor) -> tuple[Tensor, Tensor]:
    """Sums S+ and S- of the positive and the negative parts over the tasks."""
    return values.clamp(min=0).sum(0), (-values).clamp(min=0).sum(0)


def position_gradients(gradients: Tensor, activation: Tensor, mode: Marginalize) -> Tensor:
    """G_i, kept dims as size 1; written out again, so that it does not rest on the code under test."""
    dims = {"none": [], "batch": [1], "batch+space": [dim for dim in range(1, gradients.ndim) if dim != 2]}[mode]
    return (gradients * activation.sign()).sum(dims, keepdim=True) if dims else gradients


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**20),
    tasks=st.integers(1, 5),
    log_scale=st.integers(-30, 30),
    leak=st.sampled_from([0.0, 0.25, 0.9]),
)
def test_unbiased_with_the_variance_of_the_signs(seed: int, tasks: int, log_scale: int, leak: float) -> None:
    gradients, activation = problem(seed, tasks)
    scale = 10.0**log_scale
    law = Law(gradients * scale, activation, leak=leak)
    mean, variance = law.mean() / scale, law.variance() / scale**2
    total = gradients.sum(0)
    positive, negative = signs(gradients)
    torch.testing.assert_close(mean, total, rtol=0, atol=1e-13 * tasks)
    torch.testing.assert_close(variance, (1 - leak) ** 2 * positive * negative, rtol=1e-11, atol=1e-13)
    # First-order change of the total loss for a step of -1 along the result: that of the plain sum, -|sum g|^2.
    change = -(total * mean).sum().item()
    assert change == pytest.approx(-total.square().sum().item(), rel=1e-12, abs=1e-12)


def test_unequal_leaks_another_keep_and_a_preserved_norm_are_biased() -> None:
    gradients = torch.tensor([3.0, -1.0], dtype=torch.float64).reshape(2, 1, 1)
    activation = torch.ones(1, 1, dtype=torch.float64)
    assert Law(gradients, activation).mean().item() == pytest.approx(2.0, rel=1e-12)
    # sum_i (l_i + (1 - l_i) q_i) g_i with q = (3/4, 1/4): 3 of the leaking task, -1/4 of the other.
    assert Law(gradients, activation, leak=[1.0, 0.0]).mean().item() == pytest.approx(2.75, rel=1e-12)
    # q = (sigmoid(1), 1 - sigmoid(1)).
    probability = 1 / (1 + math.exp(-1))
    biased = 3 * probability - (1 - probability)
    assert Law(gradients, activation, keep=Sigmoid(1.0)).mean().item() == pytest.approx(biased, rel=1e-12)
    # At one element alone a preserved norm leaves the size |sum g| = 2 and draws the sign: 2 (2 P - 1) = 1.
    results = [
        graddrop(gradients, activation, torch.full((1, 1), uniform), marginalize="none").item()
        for uniform in (0.7499, 0.7501)
    ]
    assert results == [2.0, -2.0]


def grid(tasks: int, samples: int) -> tuple[Tensor, Tensor]:
    """All gradients [K, B, C] of -1, 0 and 1, one case for each of the C channels, and A = 1."""
    cases = list(itertools.product([-1.0, 0.0, 1.0], repeat=tasks * samples))
    gradients = torch.tensor(cases, dtype=torch.float64).T.reshape(tasks, samples, -1)
    return gradients, torch.ones(samples, len(cases), dtype=torch.float64)


@pytest.mark.parametrize(("tasks", "leak"), [(1, 0.0), (2, 0.0), (3, 0.0), (4, 0.0), (3, 0.5), (2, 0.9)])
def test_vanishes_with_certainty_only_where_every_gradient_does(tasks: int, leak: float) -> None:
    gradients, activation = grid(tasks, 1)
    law = Law(gradients, activation, leak=leak)
    nothing = (gradients == 0).all(0)
    assert torch.equal((law.early == 0) & (law.late == 0), nothing)
    assert int(nothing.sum()) == 1
    if leak == 0:  # then no draw at all gives 0, as one sign alone never cancels
        assert torch.equal((law.early == 0) | (law.late == 0), nothing)
    stationary = gradients.sum(0) == 0
    assert int(stationary.sum()) > 1 or tasks == 1  # where the plain sum is stuck


@pytest.mark.parametrize("mode", ["batch", "batch+space"])
@pytest.mark.parametrize(("tasks", "samples"), [(2, 2), (3, 2), (2, 3)])
def test_pooled_result_vanishes_where_all_pooled_gradients_do(mode: Marginalize, tasks: int, samples: int) -> None:
    gradients, activation = grid(tasks, samples)
    if mode == "batch+space":  # the same cases with the samples laid out as two rows of one cell's width
        gradients, activation = (x.movedim(-2, -1).unsqueeze(-3) for x in (gradients, activation))
    law = Law(gradients, activation, mode)
    pooled = [dim for dim in range(law.early.ndim) if dim != 1]
    early, late = ((result == 0).all(dim=pooled) for result in (law.early, law.late))
    silent = (position_gradients(gradients, activation, mode) == 0).all(0).flatten()
    stuck = silent & (gradients.sum(0) == 0).all(dim=pooled)
    assert torch.equal(early, stuck)
    assert torch.equal(late, stuck)
    # More cases than the one in which every gradient is 0: the theorem does not hold.
    assert int(stuck.sum()) > int((gradients == 0).all(0).all(dim=pooled).sum()) == 1


def test_pooled_conflict_can_be_stuck_for_every_draw() -> None:
    first = torch.tensor([1.0, -1.0], dtype=torch.float64)
    for shape, mode in (((2, 1), "batch"), ((2, 1, 1), "batch+space"), ((1, 1, 2), "batch+space")):
        gradients = torch.stack([first, -first]).reshape(2, *shape)
        activation = torch.full(shape, 0.5, dtype=torch.float64)
        law = Law(gradients, activation, mode)
        assert law.early.abs().sum() == law.late.abs().sum() == 0
        apart = Law(gradients, activation)
        assert torch.equal(apart.early.abs(), torch.ones(shape, dtype=torch.float64))
        assert torch.equal(apart.late, -apart.early)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**20), tasks=st.integers(1, 4), mode=st.sampled_from(["batch", "batch+space"]))
def test_pooled_is_unbiased_only_after_contraction(seed: int, tasks: int, mode: Marginalize) -> None:
    gradients, activation = problem(seed, tasks, (3, 4, 2))
    mean = Law(gradients, activation, mode).mean()
    pooled = position_gradients(gradients, activation, mode)
    contracted = position_gradients(mean[None], activation, mode)[0]
    torch.testing.assert_close(contracted, pooled.sum(0), rtol=0, atol=1e-12)
    # Element by element what is missing is sum_i (1 - q_i) g_i, q_i the probability that G_i's sign is kept.
    positive, negative = signs(pooled)
    purity = torch.where(positive + negative == 0, 0.5, positive / (positive + negative))
    missing = torch.where(pooled > 0, 1 - purity, torch.where(pooled < 0, purity, 0.0)) * gradients
    torch.testing.assert_close(gradients.sum(0) - mean, missing.sum(0), rtol=0, atol=1e-12)


@pytest.mark.parametrize("mode", ["batch", "batch+space"])
def test_pooled_is_biased_element_by_element(mode: Marginalize) -> None:
    gradients, activation = problem(0, shape=(4, 50, 6))
    total = gradients.sum(0)
    shortfall = (total - Law(gradients, activation, mode).mean()).norm() / total.norm()
    assert shortfall.item() > 0.3  # no rounding: a third of the gradient or more is missing on average
    # With one sample "batch" pools nothing. Where its activation is 0, nothing is dropped, which is unbiased too.
    alone = gradients[:, :1], activation[:1]
    torch.testing.assert_close(Law(*alone, "batch").mean(), total[:1], rtol=0, atol=1e-13)


def test_pooled_expected_step_may_climb() -> None:
    # G = (1, -3), so P = 1/4 and E[result] = (g_1 + 3 g_2) / 4: uphill for the total loss, whatever the step size.
    gradients = torch.tensor([[8.0, -7.0], [-5.0, 2.0]], dtype=torch.float64).unsqueeze(-1)
    activation = torch.ones(2, 1, dtype=torch.float64)
    mean, total = Law(gradients, activation, "batch").mean(), gradients.sum(0)
    torch.testing.assert_close(mean.flatten(), torch.tensor([-1.75, -0.25], dtype=torch.float64))
    assert (mean * total).sum().item() == pytest.approx(-4.0, rel=1e-12)
    assert (Law(gradients, activation).mean() * total).sum().item() == pytest.approx(34.0, rel=1e-12)


@pytest.mark.parametrize("mode", ["batch", "batch+space", "none"])
def test_preserved_norm_keeps_every_stationary_point_of_the_sum(mode: Marginalize) -> None:
    generator = torch.Generator().manual_seed(3)
    first = torch.randint(-4, 5, (2, 3, 4, 5), generator=generator).double()
    gradients = torch.cat([first, -first.sum(0, keepdim=True)])  # integers: the sum is exactly 0
    activation = torch.randn(3, 4, 5, generator=generator, dtype=torch.float64)
    for uniform in torch.rand(10, *DensePositions(mode).shape(activation.shape), generator=generator).double():
        assert graddrop(gradients, activation, uniform, marginalize=mode).abs().max() == 0
        free = graddrop(gradients, activation, uniform, marginalize=mode, preserve_norm=False)
        assert free.norm() > 1


@pytest.mark.parametrize(("correlation", "shrinkage"), [(0.0, 0.8709), (0.5, 0.9738)])
def test_preserved_norm_shortens_the_mean_step(correlation: float, shrinkage: float) -> None:
    # Without rescaling E|result|^2 = |g|^2 + sum S+ S-; so the step along g shrinks by |g| / sqrt(|g|^2 + sum S+ S-).
    # The two numbers are its value for many positions and three normal gradients of this correlation, in closed form:
    # E[S+ S-] = 6 E[max(x, 0) max(-y, 0)] = 6 (sqrt(1 - c^2) - c arccos c) / (2 pi), E[(sum g)^2] = 3 + 6 c.
    square = 3 + 6 * correlation
    product = 6 * (math.sqrt(1 - correlation**2) - correlation * math.acos(correlation)) / (2 * math.pi)
    assert math.sqrt(square / (square + product)) == pytest.approx(shrinkage, abs=1e-4)

    generator = torch.Generator().manual_seed(4)
    noise = torch.randn(4, 1, 40_000, generator=generator, dtype=torch.float64)
    gradients = math.sqrt(correlation) * noise[3] + math.sqrt(1 - correlation) * noise[:3]
    total = gradients.sum(0)
    law = Law(gradients, total)
    positive, negative = signs(gradients)
    second_moment = (law.mean().square() + law.variance()).sum().item()
    assert second_moment == pytest.approx((total.square().sum() + (positive * negative).sum()).item(), rel=1e-12)

    uniform = torch.rand(1, 40_000, generator=generator, dtype=torch.float64)
    step = graddrop(gradients, total, uniform, marginalize="none")
    along = (step * total).sum() / total.square().sum()
    # Over seeds the standard deviation of one draw at 40,000 positions is 0.0014 or less; this is four of them.
    assert along.item() == pytest.approx(shrinkage, abs=0.006)


def test_the_forks_own_draw_keeps_signs_at_the_right_rate() -> None:
    # Monte Carlo through the fork: each of these gradients at 64 channels over 64 steps, 4,096 draws in all.
    cases = torch.tensor(
        [[3.0, -1.0, 0.0], [7.0, -3.0, 2.0], [1.0, -1.0, 0.0], [0.5, -4.0, 0.25], [1.0, 2.0, -27.0]],
        dtype=torch.float64,
    )
    copies, steps = 64, 64
    gradients = cases.T[:, None, :, None].expand(3, 1, len(cases), copies)
    fork = TaskFork(("a", "b", "c"), GradDrop(marginalize="none", preserve_norm=False), seed=7)
    shared = torch.ones(1, len(cases), copies, dtype=torch.float64, requires_grad=True)
    results = []
    for step in range(steps):
        fork.set_step(step)
        aliases = fork(shared)
        torch.autograd.backward(list(aliases.values()), list(gradients))
        assert shared.grad is not None
        results.append(shared.grad)
        shared.grad = None
    drawn = torch.stack(results, dim=-1).reshape(len(cases), copies * steps)
    for values, positive, negative in zip(drawn, *signs(cases.T), strict=True):
        assert bool(((values == positive) | (values == -negative)).all())
        purity = (positive / (positive + negative)).item()
        # Four standard deviations of the binomial rate; the draw is fixed, so it never flickers.
        band = 4 * math.sqrt(purity * (1 - purity) / len(values))
        assert (values == positive).double().mean().item() == pytest.approx(purity, abs=band)
        # The mean is off by (S+ + S-) times the rate's error, which is 4 sqrt(S+ S- / n) at most.
        band = 4 * math.sqrt((positive * negative).item() / len(values))
        assert values.mean().item() == pytest.approx((positive - negative).item(), abs=band)
