"""The toy of conflicting losses in small: its parts, and those of its outcomes that hold on every set of landscapes."""

import math

import pytest
import torch
from torch import Tensor

from detection3d.multitask import graddrop
from docs.experiments import toy_conflict as toy

STEPS = 600


@pytest.fixture(scope="module", params=[0, 1])
def landscapes(request: pytest.FixtureRequest) -> tuple[Tensor, Tensor]:
    """Frequencies [K, 12] and starts [12, 30]."""
    return toy.draw_frequencies(12, request.param), toy.draw_starts(12, 30, request.param)


def test_one_joint_minimum() -> None:
    frequencies = toy.draw_frequencies(100, 0)
    x = torch.linspace(-toy.HALF_LENGTH, toy.HALF_LENGTH, 2001, dtype=torch.float64).expand(100, -1)
    total = toy.losses(frequencies, x).sum(0)
    assert total[:, 1000].abs().max() < 1e-25
    assert total[x.abs() > toy.CLOSE].min() > 0.05
    assert len({tuple(column.tolist()) for column in frequencies.T}) == 100
    with pytest.raises(ValueError, match="choose from 1 to"):
        toy.draw_frequencies(1000, 0)


def test_gradients_are_those_of_the_losses(landscapes: tuple[Tensor, Tensor]) -> None:
    frequencies, starts = landscapes
    x = starts.clone().requires_grad_()
    for task, gradient in enumerate(toy.gradients(frequencies, starts)):
        (wanted,) = torch.autograd.grad(toy.losses(frequencies, x)[task].sum(), x)
        torch.testing.assert_close(gradient, wanted, rtol=1e-12, atol=1e-14)


def test_preserved_norms_are_the_librarys(landscapes: tuple[Tensor, Tensor]) -> None:
    gradients = toy.gradients(*landscapes)
    uniform = torch.rand(12, 30, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    together, alone = toy.norm_together(gradients, uniform), toy.norm_alone(gradients, uniform)
    for row in range(12):
        run = gradients[:, row], gradients[0, row], uniform[row]
        torch.testing.assert_close(together[row], graddrop(*run, marginalize="none"), rtol=1e-12, atol=0)
        one = [values[..., 3:4] for values in run]
        torch.testing.assert_close(alone[row, 3:4], graddrop(*one, marginalize="none"), rtol=1e-12, atol=0)


def test_matched_noise_has_the_moments_of_graddrop() -> None:
    # S+ = 9 and S- = 1: mean 8 and variance 9. The uniform numbers are an even grid, with the draw's smallest, 0.
    gradients = torch.tensor([7.0, -1.0, 2.0, 0.0], dtype=torch.float64)[:, None].expand(-1, 2**16)
    result = toy.matched_noise(gradients, torch.arange(2**16, dtype=torch.float64) / 2**16)
    assert result.mean().item() == pytest.approx(8.0, abs=0.01)
    assert result.var().item() == pytest.approx(9.0, rel=0.01)


def test_only_free_signs_leave_a_minimum_of_the_sum(landscapes: tuple[Tensor, Tensor]) -> None:
    frequencies, starts = landscapes
    minima = toy.local_minima(frequencies, starts[:, :20])
    inside, minima = ~minima.isnan(), minima.nan_to_num()
    assert inside.double().mean() > 0.5
    gradients = toy.gradients(frequencies, minima)
    assert gradients.sum(0)[inside].abs().max() < 1e-9
    assert gradients.abs().amax(0)[inside].min() > 0.05  # a true conflict, or theory would promise nothing

    def left(method: toy.Method, *rates: float) -> list[float]:
        ends = toy.descend(method, frequencies, minima, rates, STEPS)
        return toy.share((toy.wrap(ends - minima).abs() > toy.CLOSE).flatten(1), inside.flatten()).tolist()

    assert left(toy.plain_sum, 0.05) == [0]
    assert left(toy.norm_alone, 0.02) == [0]
    slow, fast = left(toy.free, 0.02, 0.05)
    assert 0.02 < slow < fast
    assert fast > 0.25
    assert left(toy.random_sign, 0.05)[0] > fast


def test_free_signs_end_lower_than_the_sum(landscapes: tuple[Tensor, Tensor]) -> None:
    def loss(method: toy.Method, *rates: float) -> Tensor:
        ends = toy.descend(method, *landscapes, rates, STEPS)
        return toy.losses(landscapes[0], ends).sum(0).mean((1, 2))

    assert loss(toy.free, 0.07).item() < loss(toy.plain_sum, 0.01, 0.05, 0.07).min().item() - 0.2


def test_one_number_of_preserved_norm_gets_stuck_on_maxima(landscapes: tuple[Tensor, Tensor]) -> None:
    # Near a maximum at which gradients cancel the step is +-|sum g|, either sign as likely: the logarithm of the
    # distance falls on average, by (rate * curvature)^2 / 2 a step.
    def on_maxima(method: toy.Method) -> float:
        ends = toy.descend(method, *landscapes, [0.05], STEPS)
        return toy.on_cancelling_maximum(landscapes[0], ends).double().mean().item()

    assert on_maxima(toy.norm_alone) > 0.08
    for method in (toy.plain_sum, toy.free, toy.norm_together):
        assert on_maxima(method) < 0.05


def test_distance_from_a_stationary_point_of_the_sum() -> None:
    # Two tasks with the gradients h x / 2 +- s at each of 400 numbers: the sum has its minimum at 0, against conflict.
    # S+ S- is s^2 - (h x)^2 / 4, so at a constant rate r the mean square q of x is stationary where
    # q = q (1 - r h)^2 + r^2 (s^2 - h^2 q / 4): q = r s^2 / (2 h - 3/4 r h^2). With the norm preserved the step shrinks
    # by c ~ h sqrt(q) / s, and r c takes the place of r: to leading order sqrt(q) = r s / 2.
    curvature, conflict, rate = 1.0, 1.0, 0.2
    push = torch.tensor([[conflict], [-conflict]], dtype=torch.float64)
    generator = torch.Generator().manual_seed(5)
    free = conflict * math.sqrt(rate / (2 * curvature - 0.75 * rate * curvature**2))
    for preserve_norm, wanted in ((False, free), (True, rate * conflict / 2)):
        x = torch.full((400,), 1e-6, dtype=torch.float64)
        squares = []
        for step in range(2500):
            gradients = curvature * x / 2 + push
            uniform = torch.rand(400, generator=generator, dtype=torch.float64)
            x = x - rate * graddrop(gradients, x, uniform, marginalize="none", preserve_norm=preserve_norm)
            if step >= 1500:
                squares.append(x.square().mean())
        assert torch.stack(squares).mean().sqrt().item() == pytest.approx(wanted, rel=0.03)


def test_the_script_writes_tables_and_picture(tmp_path, capsys) -> None:
    path = tmp_path / "picture.png"
    toy.main(["--output", str(path), "--landscapes", "3", "--starts", "4", "--steps", "3"])
    assert path.read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert all(printed.count(name) >= 5 for name in toy.METHODS)
