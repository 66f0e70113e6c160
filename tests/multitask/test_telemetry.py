"""What the fork measures, against the same quantities written out in numpy."""

import numpy as np
import pytest
import torch

from detection3d.multitask import GradDrop, Method, Sum, TaskFork, Telemetry

TASKS = ("a", "b", "c")


def measured(method: Method, weights: torch.Tensor, shared: torch.Tensor, every: int = 1) -> Telemetry:
    """Telemetry of a fork whose tasks' gradients are `weights` [K, ...]."""
    fork = TaskFork(TASKS, method, telemetry_every=every)
    backward(fork, weights, shared)
    telemetry = fork.read_telemetry()
    assert telemetry is not None
    assert fork.read_telemetry() is None  # read once
    return telemetry


def backward(fork: TaskFork, weights: torch.Tensor, shared: torch.Tensor) -> torch.Tensor:
    leaf = shared.clone().requires_grad_()
    features = fork(leaf)
    sum((features[task] * weight).sum() for task, weight in zip(TASKS, weights, strict=True)).backward()
    assert leaf.grad is not None
    return leaf.grad


def problem(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(3, 2, 4, 5, generator=generator) * (torch.rand(3, 2, 4, 5, generator=generator) > 0.6)
    return weights, torch.randn(2, 4, 5, generator=generator)


def test_values_equal_numpy() -> None:
    weights, shared = problem()
    telemetry = measured(Sum(), weights, shared)
    flat = weights.reshape(3, -1).double().numpy()
    norms = np.linalg.norm(flat, axis=1)
    np.testing.assert_allclose(telemetry.gradient_norm, norms, rtol=1e-12)
    np.testing.assert_allclose(telemetry.cosine, flat @ flat.T / np.outer(norms, norms), atol=1e-12)
    positions = (weights * shared.sign()).sum(1).numpy()
    positive, negative = (positions > 0).any(0), (positions < 0).any(0)
    assert 0.1 < (positive & negative).mean() < 0.9
    assert telemetry.conflict_share == pytest.approx((positive & negative).mean())
    assert telemetry.active_share == pytest.approx((positions != 0).any(0).mean())
    assert telemetry.nonpositive_share == pytest.approx((shared <= 0).double().mean().item())
    assert telemetry.kept_mass.tolist() == [1, 1, 1]
    assert telemetry.passes == 1


def test_kept_mass_is_what_the_result_holds_of_each_task() -> None:
    # Tasks with gradients in different samples: each one's share of the result can be read off.
    weights = torch.zeros(3, 3, 50)
    values = torch.randn(3, 50, generator=torch.Generator().manual_seed(1))
    for task in range(3):
        weights[task, task] = values[task]
    shared = torch.ones(3, 50)
    method = GradDrop(preserve_norm=False, leak={"b": 0.5})
    result = backward(TaskFork(TASKS, method), weights, shared)
    telemetry = measured(method, weights, shared)
    np.testing.assert_allclose(telemetry.kept_mass, (result.abs().sum(1) / values.abs().sum(1)).double(), rtol=1e-6)
    assert 0.2 < telemetry.kept_mass[0] < 0.9
    assert 0.6 < telemetry.kept_mass[1] < 1.0


def test_measuring_changes_no_gradient() -> None:
    weights, shared = problem(1)
    quiet, loud = (TaskFork(TASKS, GradDrop(), telemetry_every=every) for every in (0, 1))
    assert torch.equal(backward(quiet, weights, shared), backward(loud, weights, shared))
    assert quiet.read_telemetry() is None


def test_only_every_nth_step_is_measured() -> None:
    fork = TaskFork(TASKS, GradDrop(), telemetry_every=3)
    seen = []
    for step in range(7):
        fork.set_step(step)
        backward(fork, *problem(step))
        seen.append(fork.read_telemetry() is not None)
    assert seen == [True, False, False, True, False, False, True]


def test_several_passes_give_the_mean() -> None:
    fork = TaskFork(TASKS, GradDrop(), telemetry_every=1)
    singles = []
    for seed in (0, 1):
        backward(fork, *problem(seed))
        singles.append(fork.read_telemetry())
    for seed in (0, 1):
        backward(fork, *problem(seed))
    together = fork.read_telemetry()
    assert together is not None
    assert together.passes == 2
    for name, value in together.scalars().items():
        assert value == pytest.approx(sum(single.scalars()[name] for single in singles) / 2), name


def test_zero_gradients_and_tiny_ones() -> None:
    weights, shared = problem(2)
    weights[1] = 0
    weights[0] *= 1e-30  # squares vanish in float32
    telemetry = measured(GradDrop(), weights, shared)
    flat = weights.reshape(3, -1).double()
    assert telemetry.gradient_norm.tolist() == pytest.approx(flat.norm(dim=1).tolist())
    assert telemetry.cosine[0, 0].item() == pytest.approx(1.0)
    assert telemetry.cosine[1].tolist() == [0, 0, 0]
    assert telemetry.kept_mass[1].item() == 1.0


def test_loss_scale_and_names() -> None:
    weights, shared = problem(3)
    plain = measured(Sum(), weights, shared).scalars()
    fork = TaskFork(TASKS, Sum(), telemetry_every=1)
    backward(fork, weights * 1024, shared)
    scaled = fork.read_telemetry(loss_scale=1024)
    assert scaled is not None
    assert scaled.scalars() == pytest.approx(plain)
    assert set(plain) == {
        *(f"gradient_norm/{task}" for task in TASKS),
        *(f"kept_mass/{task}" for task in TASKS),
        *("cosine/a/b", "cosine/a/c", "cosine/b/c"),
        *("conflict_share", "active_share", "nonpositive_share"),
    }


def test_positions_follow_the_method() -> None:
    # Two samples in conflict inside each task only: none over the batch, everywhere in single elements.
    weights = torch.zeros(3, 2, 1)
    weights[0, :, 0] = torch.tensor([2.0, -1.0])
    weights[1, :, 0] = torch.tensor([-1.0, 2.0])
    shared = torch.ones(2, 1)
    assert measured(GradDrop(), weights, shared).conflict_share == 0.0
    assert measured(GradDrop(marginalize="none"), weights, shared).conflict_share == 1.0
