"""Random signs, the paper's control: its mean and variance, which GradDrop's differ from."""

import pytest
import torch

from detection3d.multitask import GradDrop, Method, RandomSign, TaskFork

GRADIENTS = (7.0, -3.0, 2.0, -5.0)
POSITIVE, NEGATIVE = 9.0, 8.0
COUNT = 400_000


def drawn(method: Method) -> torch.Tensor:
    """What the fork makes of the same four gradients at many positions."""
    names = tuple(f"task{number}" for number in range(len(GRADIENTS)))
    leaf = torch.ones(1, COUNT, dtype=torch.float64, requires_grad=True)
    features = TaskFork(names, method)(leaf)
    sum(features[name].sum() * value for name, value in zip(names, GRADIENTS, strict=True)).backward()
    assert leaf.grad is not None
    return leaf.grad


def test_mean_and_variance() -> None:
    found = drawn(RandomSign(preserve_norm=False))
    assert set(found.unique().tolist()) == {POSITIVE, -NEGATIVE}
    deviation = (POSITIVE + NEGATIVE) / 2
    # Five standard errors of the mean; the variance of two equally likely values is known far better.
    assert float(found.mean()) == pytest.approx((POSITIVE - NEGATIVE) / 2, abs=5 * deviation / COUNT**0.5)
    assert float(found.var()) == pytest.approx(deviation**2, rel=1e-3)


def test_graddrop_has_the_mean_of_the_sum() -> None:
    found = drawn(GradDrop(preserve_norm=False))
    variance = POSITIVE * NEGATIVE
    assert float(found.mean()) == pytest.approx(POSITIVE - NEGATIVE, abs=5 * (variance / COUNT) ** 0.5)
    assert float(found.var()) == pytest.approx(variance, rel=1e-3)


def test_tasks_that_agree_are_dropped_half_the_time() -> None:
    leaf = torch.ones(1, 4000, requires_grad=True)
    features = TaskFork(("a", "b"), RandomSign(preserve_norm=False))(leaf)
    (features["a"] + 2 * features["b"]).sum().backward()
    assert leaf.grad is not None
    assert set(leaf.grad.unique().tolist()) == {0.0, 3.0}
    assert float((leaf.grad == 3).double().mean()) == pytest.approx(0.5, abs=4 * 0.5 / 4000**0.5)
