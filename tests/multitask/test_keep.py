"""The functions from purity to the probability of the positive sign, and what is asked of one's own."""

import math

import pytest
import torch
from torch import Tensor

from detection3d.multitask import GradDrop, Identity, RandomSign, Sigmoid, TaskFork, graddrop, uniform
from detection3d.multitask.keep import GRID, Half, check_keep

PURITY = torch.tensor([0.0, 0.25, 0.5, 0.9, 1.0], dtype=torch.float64)


def test_identity_is_the_purity() -> None:
    assert torch.equal(Identity()(PURITY), PURITY)


@pytest.mark.parametrize("scale", [0.5, 1.0, 2.0])
def test_sigmoid(scale: float) -> None:
    keep = Sigmoid(scale)
    wanted = [1 / (1 + math.exp(-4 * scale * (p - 0.5))) for p in PURITY.tolist()]
    assert keep(PURITY).tolist() == pytest.approx(wanted, rel=1e-14)
    # Odd about (1/2, 1/2) with slope `scale` there.
    torch.testing.assert_close(keep(1 - PURITY), 1 - keep(PURITY))
    step = torch.tensor([0.5 - 1e-6, 0.5 + 1e-6], dtype=torch.float64)
    assert keep(step).diff().item() / 2e-6 == pytest.approx(scale, rel=1e-6)


@pytest.mark.parametrize(("scale", "share"), [(1.0, 0.12), (2.0, 0.018)])
def test_sigmoid_drops_what_all_agree_on(scale: float, share: float) -> None:
    # The shares that the docstring names; the identity drops none.
    gradients, activation = torch.ones(2, 1, 10_000), torch.ones(1, 10_000)
    numbers = torch.linspace(0, 1 - 2**-24, 10_000)
    for keep, wanted in ((Sigmoid(scale), share), (Identity(), 0.0)):
        result = graddrop(gradients, activation, numbers, keep=keep, preserve_norm=False)
        assert (result == 0).double().mean().item() == pytest.approx(wanted, abs=0.001)


def fork_gradient(method: GradDrop, gradients: Tensor, activation: Tensor) -> Tensor:
    fork, leaf = TaskFork(("a", "b"), method), activation.clone().requires_grad_()
    sum((alias * gradient).sum() for alias, gradient in zip(fork(leaf).values(), gradients, strict=True)).backward()
    assert leaf.grad is not None
    return leaf.grad


@pytest.mark.parametrize(
    "keep",
    [Sigmoid(3.0), lambda purity: purity**2 * (3 - 2 * purity), lambda purity: (purity > 0.5).to(purity.dtype)],
    ids=["sigmoid", "smoothstep", "majority"],
)
def test_the_fork_keeps_the_sign_where_the_number_is_below_the_function(keep) -> None:
    generator = torch.Generator().manual_seed(1)
    gradients = torch.randn(2, 1, 500, generator=generator, dtype=torch.float64)
    found = fork_gradient(GradDrop(keep=keep, preserve_norm=False), gradients, torch.ones(1, 500).double())
    numbers = uniform((1, 500), 0, 0, "fork", "cpu").double()
    positive, negative = gradients.clamp(min=0).sum(0), gradients.clamp(max=0).sum(0)
    chosen = numbers < keep(positive / (positive - negative))
    assert torch.equal(found, torch.where(chosen, positive, negative))
    other = fork_gradient(GradDrop(preserve_norm=False), gradients, torch.ones(1, 500).double())
    assert not torch.equal(found, other)


def test_random_sign_ignores_the_purity() -> None:
    gradients = torch.tensor([100.0, -0.01]).reshape(2, 1, 1).expand(2, 1, 4000).double()
    found = fork_gradient(RandomSign(preserve_norm=False), gradients, torch.ones(1, 4000).double())
    numbers = uniform((1, 4000), 0, 0, "fork", "cpu")
    assert torch.equal(found > 0, numbers < 0.5)
    assert (found > 0).double().mean().item() == pytest.approx(0.5, abs=4 * 0.5 / math.sqrt(4000))
    assert torch.equal(Half()(PURITY), torch.full_like(PURITY, 0.5))


@pytest.mark.parametrize("keep", [Identity(), Sigmoid(), Sigmoid(50.0), Half(), torch.sqrt, torch.round])
def test_monotone_functions_are_taken(keep) -> None:
    check_keep(keep)


def dip(purity: Tensor) -> Tensor:
    """Fall in one place only, between 0.3 and 0.301."""
    return torch.where(purity > 0.3005, purity - 0.01, purity)


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        (lambda purity: 1 - purity, r"keep falls between the purities 0 and 0\.001; a purer positive sign"),
        (dip, r"keep falls between the purities 0\.3 and 0\.301"),
        (lambda purity: 2 * purity - 0.5, r"keep gives values from -0\.5 to 1\.5; they are probabilities"),
        (lambda purity: purity * math.nan, r"keep gives values from nan to nan; they are probabilities"),
        (lambda purity: purity.mean(), rf"keep turns purities \[{GRID}\] into \(\); it must keep the shape"),
        (lambda purity: purity[::2], rf"keep turns purities \[{GRID}\] into \({GRID // 2 + 1},\)"),
    ],
)
def test_other_functions_are_refused_when_the_fork_is_built(keep, message: str) -> None:
    for refuse in (lambda: check_keep(keep), lambda: TaskFork(("a", "b"), GradDrop(keep=keep))):
        with pytest.raises(ValueError, match=message):
            refuse()


@pytest.mark.parametrize("scale", [0.0, -1.0, math.nan, math.inf])
def test_scales_that_no_sigmoid_has(scale: float) -> None:
    with pytest.raises(ValueError, match=f"scale of the sigmoid is {scale}; it must be above 0"):
        Sigmoid(scale)
