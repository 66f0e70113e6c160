"""GradDrop as a pure function: a loop oracle, exact cases and properties over shapes and scales."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from detection3d.multitask import graddrop
from detection3d.multitask.graddrop import purity
from detection3d.multitask.positions import DensePositions, Marginalize
from detection3d.multitask.ranks import Ranks
from tests.multitask.problems import MODES, draw, problem
from tests.oracles.graddrop_loop import graddrop_loop

shapes = st.lists(st.integers(1, 4), min_size=2, max_size=4).map(tuple)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**20),
    tasks=st.integers(1, 4),
    shape=shapes,
    mode=st.sampled_from(MODES),
    preserve_norm=st.booleans(),
    log_scale=st.integers(-30, 30),
    last_channel=st.booleans(),
)
def test_equals_the_loop(
    seed: int,
    tasks: int,
    shape: tuple[int, ...],
    mode: Marginalize,
    preserve_norm: bool,
    log_scale: int,
    last_channel: bool,
) -> None:
    gradients, activation, uniform = problem(seed, tasks, shape)
    gradients *= 10.0**log_scale
    leak = np.random.default_rng(seed).uniform(0, 1, tasks).tolist()
    channel_dim = len(shape) - 1 if last_channel else 1
    uniform = draw(uniform, mode, channel_dim)
    found = graddrop(
        gradients,
        activation,
        uniform,
        leak=leak,
        marginalize=mode,
        channel_dim=channel_dim,
        preserve_norm=preserve_norm,
    )
    wanted = graddrop_loop(
        list(gradients.numpy()), activation.numpy(), uniform.numpy(), leak, mode, channel_dim, preserve_norm
    )
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-12, atol=1e-13 * 10.0**log_scale)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**20),
    shape=shapes,
    mode=st.sampled_from(MODES),
    log_scale=st.integers(-30, 30),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]),
)
def test_unanimous_signs_pass_exactly(
    seed: int, shape: tuple[int, ...], mode: Marginalize, log_scale: int, dtype: torch.dtype
) -> None:
    # Oracle 2. Each position has one sign for all tasks; uniform 0 and almost 1 are the hardest cases.
    generator = torch.Generator().manual_seed(seed)
    sign = torch.randn(DensePositions(mode, 1).shape(shape), generator=generator).sign()
    activation = torch.randn(shape, generator=generator)
    signed = sign if mode == "none" else sign * activation.sign()
    log_scale = max(-4, min(4, log_scale)) if dtype == torch.float16 else log_scale
    gradients = (torch.rand(3, *shape, generator=generator).double() * signed * 10.0**log_scale).to(dtype)
    total = sum(gradient.to(torch.float64 if dtype == torch.float64 else torch.float32) for gradient in gradients)
    for uniform in (0.0, 1 - 2**-24):
        result = graddrop(gradients, activation, torch.full_like(sign, uniform), marginalize=mode)
        assert torch.equal(result, total)


def test_purity_cases() -> None:
    # Oracle 3. The paper's figure 1 has (3, 1) and (7, -3). In float32 the magnitudes of the last pair have no sum.
    pairs = [[3.0, 1.0], [7.0, -3.0], [2.0, -2.0], [0.0, 0.0], [-1e-38, 0.0], [1e30, -1e30], [3e38, -1e38]]
    wanted = [1.0, 0.7, 0.5, 0.5, 0.0, 0.5, 0.75]
    torch.testing.assert_close(purity(torch.tensor(pairs).T), torch.tensor(wanted))


@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(st.floats(-(2.0**126), 2.0**126, width=32), min_size=2, max_size=3),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_purity_is_a_share(values: list[float], dtype: torch.dtype) -> None:
    # Oracle 3. Up to numbers whose sum is still in the range of float32.
    positive, negative = math.fsum(max(v, 0) for v in values), math.fsum(max(-v, 0) for v in values)
    found = purity(torch.tensor(values, dtype=dtype)[:, None]).item()
    assert 0 <= found <= 1
    assert found == pytest.approx(0.5 if positive + negative == 0 else positive / (positive + negative), abs=3e-7)
    if positive == 0 or negative == 0:
        assert found == (0.5 if positive == negative else float(positive > 0))


@pytest.mark.parametrize("mode", MODES)
def test_one_sign_survives_and_the_rest_is_zero(mode: Marginalize) -> None:
    # Oracle 4.
    gradients, activation, uniform = problem(1)
    result = graddrop(gradients, activation, draw(uniform, mode), marginalize=mode, preserve_norm=False)
    positions = DensePositions(mode).sum(gradients, activation, Ranks())
    survivors = [(gradients * (positions * sign >= 0)).sum(0) for sign in (1, -1)]
    matches = [torch.isclose(result, survivor, rtol=1e-14, atol=0.0) for survivor in survivors]
    assert bool((matches[0] | matches[1]).all())
    for match in matches:  # one sign for the whole position, not element by element
        assert bool((~match).any())
    if mode == "none":
        positive, negative = gradients.clamp(min=0).sum(0), gradients.clamp(max=0).sum(0)
        assert bool(((result == positive) | (result == negative)).all())


MANY = 200_000


def sample(values: list[float], keep=None) -> Tensor:
    """GradDrop of the same K numbers at many positions, each with a draw of its own."""
    gradients = torch.tensor(values, dtype=torch.float64)[:, None, None].expand(-1, MANY, 1)
    uniform = torch.rand(MANY, 1, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    options = {} if keep is None else {"keep": keep}
    return graddrop(gradients, torch.ones(MANY, 1), uniform, marginalize="none", preserve_norm=False, **options)


def test_unbiased_with_variance_of_the_product_of_the_signs() -> None:
    # Oracle 5: S+ = 9, S- = 8, so mean 1 and variance 72.
    result = sample([7, -3, 2, -5])
    assert result.mean().item() == pytest.approx(1.0, abs=4 * math.sqrt(72 / MANY))
    assert result.var().item() == pytest.approx(72.0, rel=0.01)


def test_random_sign_has_other_moments() -> None:
    # Oracle 15: mean (S+ - S-) / 2 and variance (S+ + S-)^2 / 4 tell it from GradDrop.
    result = sample([7, -1, 2], keep=lambda purity: torch.full_like(purity, 0.5))
    assert result.mean().item() == pytest.approx(4.0, abs=4 * 5 / math.sqrt(MANY))
    assert result.var().item() == pytest.approx(25.0, rel=0.01)


def test_batch_separated_is_unbiased_after_contraction() -> None:
    # Oracle 6: single elements are biased, their sum over the batch with sgn(A) is not.
    gradients, activation, _ = problem(2, shape=(4, 1))
    repeated = gradients.repeat(1, 1, MANY)
    uniform = torch.rand(MANY, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    result = graddrop(repeated, activation.repeat(1, MANY), uniform, preserve_norm=False).mean(1)
    positions = DensePositions("batch").sum(gradients, activation, Ranks()).flatten()
    contracted = (activation.sign().flatten() * result).sum()
    assert contracted.item() == pytest.approx(
        positions.sum().item(), abs=4 * positions.abs().sum().item() / math.sqrt(MANY)
    )
    assert (result - gradients.sum(0).flatten()).abs().max() > 0.1


@pytest.mark.parametrize("preserve_norm", [True, False])
@pytest.mark.parametrize("mode", MODES)
def test_leaks(mode: Marginalize, preserve_norm: bool) -> None:
    # Oracle 7.
    gradients, activation, uniform = problem(3)
    uniform = draw(uniform, mode)
    options = {"marginalize": mode, "preserve_norm": preserve_norm}
    total = gradients[0] + gradients[1] + gradients[2]
    assert torch.equal(graddrop(gradients, activation, uniform, leak=1.0, **options), total)
    assert not torch.allclose(graddrop(gradients, activation, uniform, **options), total)
    # Without rescaling the result is affine in each leak, and a leak of 1 adds what was dropped of that task.
    none, half, whole = (
        graddrop(gradients, activation, uniform, leak=[0, leak, 0], marginalize=mode, preserve_norm=False)
        for leak in (0.0, 0.5, 1.0)
    )
    torch.testing.assert_close(half, (none + whole) / 2)
    positions = DensePositions(mode).sum(gradients, activation, Ranks())
    keep_positive = uniform < purity(positions)
    dropped = torch.where(keep_positive, positions[1] < 0, positions[1] > 0)
    torch.testing.assert_close(whole - none, dropped * gradients[1])


def test_equal_leaks_keep_the_mean_and_unequal_ones_do_not() -> None:
    # Oracle 7. Below P the positive sign is kept, above it the negative one, so two draws tell the exact expectation.
    gradients = torch.tensor([7.0, -3.0, 2.0, -5.0], dtype=torch.float64)[:, None, None]
    share = purity(gradients).item()

    def mean(leak: list[float]) -> float:
        kept = [
            graddrop(
                gradients,
                torch.ones(1, 1),
                torch.full((1, 1), number),
                leak=leak,
                marginalize="none",
                preserve_norm=False,
            ).item()
            for number in (0.0, 1 - 2**-24)
        ]
        return share * kept[0] + (1 - share) * kept[1]

    assert mean([0.0] * 4) == pytest.approx(1.0, abs=1e-14)
    assert mean([0.3] * 4) == pytest.approx(1.0, abs=1e-14)
    assert abs(mean([0.3, 0.0, 0.0, 0.0]) - 1.0) > 0.5


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**20),
    mode=st.sampled_from(MODES),
    power=st.integers(-90, 90),
    preserve_norm=st.booleans(),
)
def test_scale_passes_through(seed: int, mode: Marginalize, power: int, preserve_norm: bool) -> None:
    # Oracle 8, in float32 by powers of two, which are exact. Gradients are kept away from float32's subnormal numbers.
    gradients, activation, uniform = problem(seed, dtype=torch.float32)
    gradients = torch.where(gradients.abs() < 2**-20, 0.0, gradients)
    uniform, factor = draw(uniform, mode), 2.0**power
    options = {"marginalize": mode, "preserve_norm": preserve_norm}
    once = graddrop(gradients, activation, uniform, **options)
    assert torch.equal(graddrop(gradients * factor, activation, uniform, **options), once * factor)


@pytest.mark.parametrize("mode", MODES)
def test_symmetries(mode: Marginalize) -> None:
    # Oracle 9.
    gradients, activation, uniform = problem(4)
    uniform, leak = draw(uniform, mode), [0.1, 0.6, 0.3]
    options = {"marginalize": mode}
    result = graddrop(gradients, activation, uniform, leak=leak, **options)

    order = [2, 0, 1]
    swapped = graddrop(gradients[order], activation, uniform, leak=[leak[i] for i in order], **options)
    torch.testing.assert_close(swapped, result)

    flipped_draw = uniform if mode != "none" else uniform.flip(0)
    flipped = graddrop(gradients.flip(1), activation.flip(0), flipped_draw, leak=leak, **options)
    torch.testing.assert_close(flipped, result.flip(0))

    torch.testing.assert_close(graddrop(-gradients, activation, 1 - uniform, leak=leak, **options), -result)
    assert torch.equal(graddrop(gradients, 3 * activation, uniform, leak=leak, **options), result)
    if mode != "none":  # turning A around turns every G_i around
        torch.testing.assert_close(graddrop(gradients, -activation, 1 - uniform, leak=leak, **options), result)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**20), mode=st.sampled_from(MODES), log_scale=st.integers(-30, 30))
def test_norm_of_the_sum_is_preserved(seed: int, mode: Marginalize, log_scale: int) -> None:
    # Oracle 10. In float32 the squares of 1e-30 and of 1e30 do not exist.
    gradients, activation, uniform = problem(seed)
    gradients = (gradients * 10.0**log_scale).float()
    result = graddrop(gradients, activation, draw(uniform, mode), marginalize=mode)
    wanted = math.sqrt(math.fsum(gradients.sum(0).double().square().flatten().tolist()))
    found = math.sqrt(math.fsum(result.double().square().flatten().tolist()))
    assert found == pytest.approx(wanted, rel=1e-5)
    assert wanted > 0


def test_nothing_in_nothing_out() -> None:
    for mode in MODES:
        zeros = torch.zeros(3, 2, 4, 3)
        assert torch.equal(
            graddrop(zeros, torch.ones(2, 4, 3), draw(torch.rand(2, 4, 3), mode), marginalize=mode), zeros[0]
        )
        empty = torch.zeros(3, 0, 4, 3)
        uniform = torch.rand(DensePositions(mode, 1).shape((0, 4, 3)))
        assert graddrop(empty, empty[0], uniform, marginalize=mode).shape == (0, 4, 3)


def test_samples_share_their_mask() -> None:
    # Oracle 11. The two samples' conflicts cancel: the first task is neutral at the position, so it always passes.
    gradients = torch.tensor([[[1.0], [-1.0]], [[-0.5], [-0.5]]])
    activation = torch.ones(2, 1)
    options = {"preserve_norm": False}
    for uniform in (0.0, 0.9):
        together = graddrop(gradients, activation, torch.tensor([uniform]), **options)
        assert together.flatten().tolist() == [0.5, -1.5]
    apart = graddrop(gradients, activation, torch.full((2, 1), 0.9), marginalize="none", **options)
    assert apart.flatten().tolist() == [-0.5, -1.5]
    # The sign of A counts: turn one sample around, and the first task has the gradient 2 at the position.
    activation = torch.tensor([[1.0], [-1.0]])
    turned = graddrop(gradients, activation, torch.tensor([0.9]), **options)
    assert turned.flatten().tolist() == [0.5, -1.5]  # G = (2, 0): nothing to drop


def test_positions_dead_in_the_whole_batch_pass() -> None:
    # G_i is 0 where A is 0 in every sample, whatever the gradients: there is no sign to drop.
    gradients, _, uniform = problem(7, shape=(2, 5))
    result = graddrop(gradients, torch.zeros(2, 5), uniform[0], preserve_norm=False)
    torch.testing.assert_close(result, gradients.sum(0))


@pytest.mark.parametrize("mode", MODES)
def test_alone_identical_and_neutral_tasks(mode: Marginalize) -> None:
    # Oracle 13: one task alone, or tasks that agree, pass as they are; a task without gradient changes nothing.
    gradients, activation, uniform = problem(8)
    uniform = draw(uniform, mode)
    assert torch.equal(graddrop(gradients[:1], activation, uniform, marginalize=mode), gradients[0])
    same = graddrop([gradients[0]] * 3, activation, uniform, marginalize=mode)
    torch.testing.assert_close(same, 3 * gradients[0])
    two = graddrop(gradients[:2], activation, uniform, marginalize=mode)
    three = graddrop([gradients[0], torch.zeros_like(activation), gradients[1]], activation, uniform, marginalize=mode)
    torch.testing.assert_close(three, two)


def test_stable_points() -> None:
    # Oracle 14: where gradients cancel, GradDrop moves on unless the norm is preserved; where all are 0 it stays.
    gradients = torch.tensor([[[2.0]], [[-2.0]]])
    activation, uniform = torch.ones(1, 1), torch.tensor([0.3])
    assert graddrop(gradients, activation, uniform, preserve_norm=False).abs().item() == 2.0
    assert graddrop(gradients, activation, uniform).item() == 0.0
    assert graddrop(0 * gradients, activation, uniform, preserve_norm=False).item() == 0.0
