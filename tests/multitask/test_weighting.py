"""The weighting methods against slow solutions of the same problems, and what all methods have in common."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from detection3d.multitask import (
    MGDA,
    CAGrad,
    GradDrop,
    GradNorm,
    Method,
    PCGrad,
    RandomSign,
    Sum,
    TaskClipping,
    TaskFork,
    Uncertainty,
    Weighting,
)
from detection3d.multitask.method import Context
from detection3d.multitask.mgda import shortest_in_hull
from detection3d.multitask.pcgrad import projected_coefficients
from detection3d.multitask.positions import DensePositions

METHODS: list[Method] = [
    Sum(),
    TaskClipping(0.5),
    MGDA(),
    MGDA(normalize="norm"),
    PCGrad(),
    CAGrad(),
    GradNorm(),
    GradNorm(then=GradDrop()),
    Uncertainty(),
    RandomSign(),
    GradDrop(),
]
METHOD_NAMES = [
    *("sum", "clipping", "mgda", "mgda norm", "pcgrad", "cagrad", "gradnorm"),
    *("gradnorm graddrop", "uncertainty", "random sign", "graddrop"),
]


def context(tasks: int, step: int = 0) -> Context:
    names = tuple(f"task{number}" for number in range(tasks))
    return Context(names, (1, 2), torch.tensor(step), DensePositions())


def vectors(seed: int, tasks: int, size: int = 12) -> Tensor:
    return torch.randn(tasks, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def weights(method: Weighting, gradients: Tensor, step: int = 0) -> Tensor:
    return method.weights(gradients @ gradients.T, context(len(gradients), step))


def through_fork(method: Method, gradients: Tensor, step: int = 0) -> Tensor:
    """Gradient that leaves a fork whose tasks' gradients are `gradients` [K, ...]."""
    names = tuple(f"task{number}" for number in range(len(gradients)))
    fork = TaskFork(names, method)
    fork.set_step(step)
    leaf = torch.ones(gradients.shape[1:], dtype=gradients.dtype, requires_grad=True)
    features = fork(leaf)
    sum((features[name] * gradient).sum() for name, gradient in zip(names, gradients, strict=True)).backward()
    assert leaf.grad is not None
    return leaf.grad


# --- clipping


def test_clipping_shortens_what_is_too_long_and_nothing_else() -> None:
    gradients = torch.tensor([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0]], dtype=torch.float64)
    found = weights(TaskClipping(1.0), gradients)
    torch.testing.assert_close(found, torch.tensor([0.2, 1.0, 1.0], dtype=torch.float64), rtol=1e-15, atol=0)


# --- MGDA


def shortest_by_faces(vectors: np.ndarray) -> float:
    """Least squared length over the hull: the least over all faces, on each by a linear system."""
    best = math.inf
    count = len(vectors)
    for size in range(1, count + 1):
        for face in itertools.combinations(range(count), size):
            gram = vectors[list(face)] @ vectors[list(face)].T
            system = np.block([[gram, np.ones((size, 1))], [np.ones((1, size)), np.zeros((1, 1))]])
            answer, *_ = np.linalg.lstsq(system, np.r_[np.zeros(size), 1.0], rcond=None)
            point = answer[:size]
            if (point >= -1e-9).all() and abs(point.sum() - 1) < 1e-9:
                best = min(best, float(point @ gram @ point))
    return best


@pytest.mark.parametrize("tasks", [2, 3, 4])
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_mgda_finds_the_shortest_vector_of_the_hull(tasks: int, scale: float) -> None:
    for seed in range(20):
        exact = vectors(seed, tasks, size=5) + 0.3
        found = weights(MGDA(), exact * scale)
        assert found.min() >= 0
        assert float(found.sum()) == pytest.approx(1, abs=1e-12)
        length = float((found @ exact).square().sum())
        shortest = shortest_by_faces(exact.numpy())
        assert shortest - 1e-9 <= length <= shortest + 1e-6


def test_mgda_of_two_tasks_is_the_closed_form() -> None:
    for seed in range(20):
        first, second = vectors(seed, 2)
        share = float(((second - first) @ second / (first - second).square().sum()).clamp(0, 1))
        found = weights(MGDA(iterations=1), torch.stack([first, second]))
        assert found.tolist() == pytest.approx([share, 1 - share], abs=1e-12)


def test_mgda_of_40_tasks_comes_close_in_its_usual_number_of_steps() -> None:
    for size in (10, 100):
        gradients = vectors(0, 40, size) + 0.3
        gram = gradients @ gradients.T
        usual, many = (shortest_in_hull(gram, steps) for steps in (MGDA().iterations, 20_000))
        # At the minimum no vector lies nearer to 0 along the point than the point itself.
        assert float((gram @ many).min() - many @ gram @ many) > -1e-9
        assert float(usual @ gram @ usual - many @ gram @ many) < 0.01 * float(gram.diagonal().mean())


def test_mgda_leaves_out_tasks_without_a_gradient() -> None:
    gradients = vectors(3, 3)
    gradients[1] = 0
    found = weights(MGDA(), gradients)
    assert found[1] == 0
    assert torch.equal(found[[0, 2]], weights(MGDA(), gradients[[0, 2]]))
    assert not weights(MGDA(), torch.zeros(3, 4, dtype=torch.float64)).any()


def test_mgda_with_gradients_of_length_1() -> None:
    gradients = vectors(4, 3)
    units = gradients / gradients.norm(dim=1, keepdim=True)
    torch.testing.assert_close(
        weights(MGDA(normalize="norm"), gradients), weights(MGDA(), units), rtol=1e-9, atol=1e-12
    )


# --- PCGrad


def project_in_turn(gradients: np.ndarray, order: np.ndarray) -> np.ndarray:
    """The paper's Algorithm 1 on the vectors themselves; one row for each task's projected gradient."""
    projected = gradients.copy()
    for i in range(len(gradients)):
        for j in order[i]:
            common = projected[i] @ gradients[j]
            if j != i and common < 0:
                projected[i] -= common / (gradients[j] @ gradients[j]) * gradients[j]
    return projected


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**20), tasks=st.integers(1, 6), size=st.integers(3, 12), log_scale=st.integers(-30, 30))
@example(seed=1, tasks=6, size=3, log_scale=0)  # in few dimensions a projected gradient can turn against its own
def test_pcgrad_equals_the_algorithm_on_the_vectors(seed: int, tasks: int, size: int, log_scale: int) -> None:
    gradients = vectors(seed, tasks, size) * 10.0**log_scale
    order = torch.rand(tasks, tasks, generator=torch.Generator().manual_seed(seed)).argsort(dim=1)
    found = projected_coefficients(gradients @ gradients.T, order) @ gradients
    wanted = project_in_turn(gradients.numpy(), order.numpy())
    np.testing.assert_allclose(found, wanted, rtol=1e-8, atol=1e-10 * 10.0**log_scale)


def test_pcgrad_draws_another_order_at_every_step() -> None:
    gradients = vectors(5, 6, size=3)
    assert len({tuple(weights(PCGrad(), gradients, step).tolist()) for step in range(10)}) > 5
    assert torch.equal(weights(PCGrad(), gradients, 7), weights(PCGrad(), gradients, 7))


def test_pcgrad_without_conflict_is_the_sum() -> None:
    assert weights(PCGrad(), vectors(6, 5).abs()).tolist() == [1.0] * 5


def test_pcgrad_of_two_opposite_tasks() -> None:
    gradients = torch.tensor([[1.0, 0.0], [-2.0, 2.0]], dtype=torch.float64)
    # (1, 0) loses its part along (-2, 2) and becomes (1/2, 1/2); (-2, 2) becomes (0, 2).
    assert (weights(PCGrad(), gradients) @ gradients).tolist() == pytest.approx([0.5, 2.5])


# --- CAGrad


def cagrad_value(point: np.ndarray, gram: np.ndarray, c: float) -> float:
    mean = gram.mean(1)
    return float(point @ mean + c * math.sqrt(gram.mean()) * math.sqrt(max(point @ gram @ point, 0)))


@pytest.mark.parametrize("c", [0.2, 0.5, 0.9])
@pytest.mark.parametrize("tasks", [2, 3])
def test_cagrad_minimises_its_dual(tasks: int, c: float) -> None:
    ticks = np.linspace(0, 1, 201)
    grid = [
        np.array([*head, 1 - sum(head)])
        for head in itertools.product(ticks, repeat=tasks - 1)
        if sum(head) <= 1 + 1e-12
    ]
    for seed in range(8):
        gradients = vectors(seed, tasks, size=4)
        gram = (gradients @ gradients.T).numpy()
        method = CAGrad(c)
        point = method._solve(torch.from_numpy(gram), torch.tensor(gram.mean()).sqrt()).numpy()
        lowest = min(cagrad_value(candidate, gram, c) for candidate in grid)
        scale = float(np.diag(gram).max())
        assert cagrad_value(point, gram, c) <= lowest + 0.01 * scale


def test_cagrad_stays_within_c_of_the_sum_and_serves_the_worst_task_better() -> None:
    better = 0
    for seed in range(20):
        gradients = vectors(seed, 3, size=4)
        total = gradients.sum(0)
        update = weights(CAGrad(0.5), gradients) @ gradients
        assert float((update - total).norm()) <= 0.5 * float(total.norm()) * (1 + 1e-9)
        better += float((gradients @ update).min()) > float((gradients @ total).min())
    assert better >= 18
    assert weights(CAGrad(0.0), gradients).tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("iterations", [50, 500, 3000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_cagrad_leaves_out_tasks_without_a_gradient(iterations: int, dtype: torch.dtype) -> None:
    gradients = vectors(3, 3, size=30).to(dtype)
    gradients[[0, 2]] = 0
    found = through_fork(CAGrad(0.5, iterations), gradients)
    torch.testing.assert_close(found, 1.5 * gradients[1], rtol=8 * torch.finfo(dtype).eps, atol=0)
    gradients[2] = -0.3 * gradients[1] + 0.1
    found = through_fork(CAGrad(0.5, iterations), gradients)
    # The stand-in changes the way to the minimum, whose direction 50 steps know to some 1e-2.
    wanted = through_fork(CAGrad(0.5, iterations), gradients[1:])
    assert float((found - wanted).norm()) < 0.02 * float(wanted.norm())
    assert not weights(CAGrad(), torch.zeros(3, 4, dtype=torch.float64)).sub(1).any()


def test_cagrad_of_opposite_tasks_does_not_drown_the_third() -> None:
    one, other = torch.randn(2, 1, 50, generator=torch.Generator().manual_seed(0))
    other -= (other * one).sum() / one.square().sum() * one
    gradients = torch.stack([one, other, -one])  # the shortest vector is 0, to which the solver comes ever closer
    found, total = through_fork(CAGrad(0.5, iterations=300), gradients), gradients.double().sum(0)
    assert float((found - total).norm()) <= 0.5 * float(total.norm()) * (1 + 1e-3)


def test_cagrad_of_40_tasks_comes_close_in_its_usual_number_of_steps() -> None:
    for size in (10, 100):
        gradients = vectors(0, 40, size) + 0.3
        gram = gradients @ gradients.T
        norm = gram.mean().sqrt()
        usual, many = (
            cagrad_value(CAGrad(0.5, steps)._solve(gram, norm).numpy(), gram.numpy(), 0.5)
            for steps in (CAGrad().iterations, 5000)
        )
        assert usual - many < 0.01 * float(gram.diagonal().mean())


# --- all


@pytest.mark.parametrize("method", METHODS, ids=METHOD_NAMES)
@pytest.mark.parametrize("tasks", [2, 3, 40])
def test_the_scale_of_all_losses_only_scales_the_result(method: Method, tasks: int) -> None:
    gradients = torch.randn(tasks, 2, 5, generator=torch.Generator().manual_seed(tasks), dtype=torch.float64)
    if isinstance(method, TaskClipping):
        method = TaskClipping(1e99)  # its threshold is absolute
    plain = through_fork(method, gradients)
    for scale in (2.0**-90, 2.0**90):
        torch.testing.assert_close(through_fork(method, gradients * scale), plain * scale, rtol=1e-9, atol=0)


@pytest.mark.parametrize("method", METHODS, ids=METHOD_NAMES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_agreeing_tasks_of_one_direction(method: Method, dtype: torch.dtype) -> None:
    one = torch.tensor([[0.1, -0.2, 0.05, 0.0]]).to(dtype)
    gradients = torch.stack([one, one, one])
    found = through_fork(method, gradients).double()
    if isinstance(method, RandomSign):
        return  # drops them with probability 1/2
    share = 1 / 3 if isinstance(method, MGDA) else 1.5 if isinstance(method, CAGrad) else 1.0
    torch.testing.assert_close(found, share * 3 * one.double(), rtol=4 * float(torch.finfo(dtype).eps), atol=0)


@pytest.mark.parametrize("method", METHODS, ids=METHOD_NAMES)
@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("task", [0, 2])
def test_what_is_not_finite_reaches_the_backbone(method: Method, bad: float, task: int) -> None:
    gradients = torch.randn(3, 2, 4, generator=torch.Generator().manual_seed(0))
    gradients[task, 1, 2] = bad
    assert not through_fork(method, gradients).isfinite().all()


@pytest.mark.parametrize("method", METHODS, ids=METHOD_NAMES)
def test_zero_gradients(method: Method) -> None:
    gradients = torch.randn(3, 2, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert not through_fork(method, torch.zeros_like(gradients)).any()
    gradients[1] = 0
    found = through_fork(method, gradients)
    assert found.isfinite().all()
    if not isinstance(method, CAGrad | RandomSign | GradDrop | GradNorm):  # CAGrad has a test of its own
        torch.testing.assert_close(found, through_fork(method, gradients[[0, 2]]), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("method", METHODS, ids=METHOD_NAMES)
def test_the_host_never_waits_for_the_device(method: Method) -> None:
    # Tensors of the device "meta" have no values: whatever asks for one raises.
    fork = TaskFork(("a", "b", "c"), method, telemetry_every=1, map_every=1).to("meta")
    leaf = torch.zeros(2, 3, 4, 5, device="meta", requires_grad=True)
    features = fork(leaf)
    losses = fork.weigh({task: alias.square().mean() for task, alias in features.items()}, features)
    sum(losses.values()).backward()
    fork.update()
    assert leaf.grad is not None


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: TaskClipping(0.0), "max_norm is 0.0"),
        (lambda: TaskClipping(math.inf), "max_norm is inf"),
        (lambda: MGDA(iterations=0), "iterations is 0"),
        (lambda: MGDA(normalize="length"), 'normalize is "length"'),  # pyright: ignore
        (lambda: CAGrad(c=1.0), "c is 1.0"),
        (lambda: CAGrad(iterations=0), "iterations is 0"),
        (lambda: GradNorm(alpha=-1.0), "alpha is -1.0"),
        (lambda: GradNorm(learning_rate=0.0), "learning_rate is 0.0"),
        (lambda: GradNorm(then=GradNorm()), "GradNorm learns from the gradients, too"),
        (lambda: TaskFork(("a", "b"), GradNorm(then=GradDrop(leak={"c": 1.0}))), "leak names c"),
    ],
)
def test_wrong_settings(build, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
