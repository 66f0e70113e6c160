"""What the fork measures, against the same quantities written out in numpy."""

import numpy as np
import pytest
import torch

from detection3d.multitask import Cells, Context, GradDrop, Method, Ranks, Sum, TaskFork, Telemetry
from detection3d.multitask.positions import DensePositions
from detection3d.multitask.telemetry import PURITY_BINS, measure, read

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
    shared[0, 1] = 0.0  # which a ReLU stops, too
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
    assert together.purity_histogram.sum().item() == pytest.approx(1.0)


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
        *("conflict_share", "active_share", "nonpositive_share", "expected_noise"),
    }


def test_positions_follow_the_method() -> None:
    # Two samples in conflict inside each task only: none over the batch, everywhere in single elements.
    weights = torch.zeros(3, 2, 1)
    weights[0, :, 0] = torch.tensor([2.0, -1.0])
    weights[1, :, 0] = torch.tensor([-1.0, 2.0])
    shared = torch.ones(2, 1)
    assert measured(GradDrop(), weights, shared).conflict_share == 0.0
    assert measured(GradDrop(marginalize="none"), weights, shared).conflict_share == 1.0


def purity_counts(positions: np.ndarray) -> np.ndarray:
    """The histogram of G [K, ...], position by position."""
    counts = np.zeros(PURITY_BINS + 2)
    for column in positions.reshape(len(positions), -1).T:
        positive, negative = column[column > 0].sum(), -column[column < 0].sum()
        if positive and negative:
            counts[1 + min(int(PURITY_BINS * positive / (positive + negative)), PURITY_BINS - 1)] += 1
        elif positive:
            counts[-1] += 1
        elif negative:
            counts[0] += 1
    return counts


@pytest.mark.parametrize("marginalize", ["batch", "batch+space", "none"])
def test_purity_histogram_and_noise_equal_numpy(marginalize: str) -> None:
    weights, shared = problem(4)
    telemetry = measured(GradDrop(marginalize=marginalize), weights.double(), shared.double())
    signed = (weights * shared.sign()).double().numpy()
    positions = {"batch": signed.sum(1), "batch+space": signed.sum((1, 3)), "none": weights.double().numpy()}[
        marginalize
    ]
    counts = purity_counts(positions)
    assert counts[1:-1].sum() > 0
    np.testing.assert_allclose(telemetry.purity_histogram, counts / counts.sum(), atol=1e-12)
    in_conflict = float(telemetry.purity_histogram[1:-1].sum()) * telemetry.active_share
    assert in_conflict == pytest.approx(telemetry.conflict_share)
    positive, negative = np.maximum(positions, 0).sum(0), np.maximum(-positions, 0).sum(0)
    noise = np.sqrt((positive * negative).sum()) / np.linalg.norm(positions.sum(0))
    assert noise > 0.2
    assert telemetry.expected_noise == pytest.approx(noise, rel=1e-10)


def test_purity_bins() -> None:
    # One position each: all negative, all positive, a tie, 3/4, a minority whose purity rounds to 1, and no gradient.
    first = torch.tensor([[-1.0, 1.0, 1.0, 3.0, 1.0, 0.0]])
    second = torch.tensor([[-2.0, 0.0, -1.0, -1.0, -1e-12, 0.0]])
    weights = torch.stack([first, second, torch.zeros(1, 6)])
    telemetry = measured(Sum(), weights, torch.ones(1, 6))
    filled = {bin: float(share) for bin, share in enumerate(telemetry.purity_histogram) if share}
    assert filled == dict.fromkeys((0, 21, 1 + 10, 1 + 15, 20), 0.2)
    assert telemetry.conflict_share == pytest.approx(3 / 6)
    assert telemetry.active_share == pytest.approx(5 / 6)


def test_noise_is_the_spread_of_the_draw() -> None:
    weights = torch.randn(3, 5, 800, generator=torch.Generator().manual_seed(5))
    fork = TaskFork(TASKS, GradDrop(marginalize="none", preserve_norm=False), telemetry_every=1)
    total = weights.sum(0)
    variance = 0.0
    for step in range(50):
        fork.set_step(step)
        variance += float((backward(fork, weights, torch.ones(5, 800)) - total).square().sum()) / 50
    telemetry = fork.read_telemetry()
    assert telemetry is not None
    # 200,000 draws in all: the spread of this estimate is below 1 %.
    assert telemetry.expected_noise == pytest.approx(np.sqrt(variance) / float(total.norm()), rel=0.03)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_noise_and_purity_do_not_depend_on_the_scale(scale: float) -> None:
    weights, shared = problem(5)
    plain, scaled = measured(Sum(), weights, shared), measured(Sum(), weights * scale, shared)
    assert scaled.expected_noise == pytest.approx(plain.expected_noise, rel=1e-5)
    assert torch.equal(scaled.purity_histogram, plain.purity_histogram)


def test_noise_without_conflict_and_without_signal() -> None:
    weights = torch.ones(3, 2, 4)
    assert measured(Sum(), weights, torch.ones(2, 4)).expected_noise == 0.0
    assert measured(Sum(), weights * 0, torch.ones(2, 4)).expected_noise == 0.0
    weights[0] = -2.0
    assert measured(Sum(), weights, torch.ones(2, 4)).expected_noise == float("inf")


@pytest.mark.parametrize("tasks", [1, 2, 7, 40])
@pytest.mark.parametrize(("shape", "channel_dim"), [((3, 5), 1), ((2, 3, 4), 2), ((2, 3, 4, 5), 1), ((0, 4), 1)])
def test_any_number_of_tasks_and_any_shape(tasks: int, shape: tuple[int, ...], channel_dim: int) -> None:
    generator = torch.Generator().manual_seed(6)
    gradients = torch.randn(tasks, *shape, generator=generator, dtype=torch.float64)
    activation = torch.randn(shape, generator=generator, dtype=torch.float64)
    for marginalize in ("batch", "batch+space", "none"):
        telemetry = measure_alone(gradients, activation, DensePositions(marginalize, channel_dim))
        dims = {"batch": (1,), "none": ()}.get(marginalize, [d + 1 for d in range(len(shape)) if d != channel_dim])
        positions = gradients.numpy()
        if dims:
            positions = (gradients * activation.sign()).sum(tuple(dims)).numpy()
        counts = purity_counts(positions)
        wanted = counts / counts.sum() if counts.sum() else counts
        np.testing.assert_allclose(telemetry.purity_histogram, wanted, atol=1e-12)
        assert len(telemetry.gradient_norm) == tasks
        if 0 in shape:
            assert (telemetry.expected_noise, telemetry.active_share, telemetry.nonpositive_share) == (0, 0, 0)


def test_sparse_rows_equal_the_dense_map() -> None:
    generator = torch.Generator().manual_seed(7)
    indices = torch.tensor([[0, 0, 1, 2], [1, 0, 1, 2], [0, 0, 0, 0], [1, 0, 1, 1], [0, 0, 1, 1]])
    rows, values = torch.randn(3, 5, 4, generator=generator), torch.randn(5, 4, generator=generator)
    cells = Cells.of(indices, (1, 2, 3))
    fork = TaskFork(TASKS, GradDrop(marginalize="coordinates"), telemetry_every=1)
    leaf = values.clone().requires_grad_()
    features = fork(leaf, cells=cells)
    sum((features[task] * row).sum() for task, row in zip(TASKS, rows, strict=True)).backward()
    sparse = fork.read_telemetry()
    assert sparse is not None
    grid, activation = torch.zeros(3, 2, 4, 6), torch.zeros(2, 4, 6)
    for row, (sample, cell) in enumerate(zip(indices[:, 0], cells.index, strict=True)):
        grid[:, sample, :, cell], activation[sample, :, cell] = rows[:, row], values[row]
    dense = measured(GradDrop(), grid, activation)
    np.testing.assert_allclose(sparse.purity_histogram, dense.purity_histogram, atol=1e-12)
    assert sparse.expected_noise == pytest.approx(dense.expected_noise, rel=1e-6)


class Remembered(Ranks):
    """The second of two ranks, whose sums add what the first one gave, in the same order."""

    def __init__(self, first: list[torch.Tensor] | None = None) -> None:
        object.__setattr__(self, "size", 2)
        object.__setattr__(self, "given", [])
        object.__setattr__(self, "first", iter(first) if first is not None else None)

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        self.given.append(values)
        return values if self.first is None else values + next(self.first)


def measure_alone(
    gradients: torch.Tensor, activation: torch.Tensor, positions: DensePositions, ranks: Ranks | None = None
) -> Telemetry:
    tasks = tuple(f"task {number}" for number in range(len(gradients)))
    context = Context(tasks, (0, 0), torch.zeros((), dtype=torch.int64), positions, ranks or Ranks())
    return read(measure(gradients, Sum().combine(gradients, activation, context), activation, context), tasks)


def test_two_ranks_with_unequal_shares_equal_one() -> None:
    generator = torch.Generator().manual_seed(8)
    gradients = torch.randn(3, 4, 5, 6, generator=generator, dtype=torch.float64)
    activation = torch.randn(4, 5, 6, generator=generator, dtype=torch.float64)
    positions = DensePositions("none")
    wanted = measure_alone(gradients, activation, positions)
    first = Remembered()
    measure_alone(2 * gradients[:, :1], activation[:1], positions, first)  # losses are scaled by the number of ranks
    found = measure_alone(2 * gradients[:, 1:], activation[1:], positions, Remembered(first.given))
    assert found.scalars() == pytest.approx(wanted.scalars(), rel=1e-12)
    np.testing.assert_allclose(found.purity_histogram, wanted.purity_histogram, rtol=1e-12)
