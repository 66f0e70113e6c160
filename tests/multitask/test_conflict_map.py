"""The map of conflict against the same sums written out cell by cell, and what it costs where none is due."""

import numpy as np
import pytest
import torch
from torch import Tensor

from detection3d.multitask import ConflictMap, GradDrop, Method, Ranks, Sum, TaskFork
from detection3d.multitask.conflict_map import measure_map, read_conflict_map

TASKS = ("a", "b", "c")


def problem(seed: int = 0, shape: tuple[int, ...] = (2, 3, 4, 5)) -> tuple[Tensor, Tensor]:
    """Gradients of three tasks, most of them 0, and an activation; float64."""
    generator = torch.Generator().manual_seed(seed)
    options = {"generator": generator, "dtype": torch.float64}
    weights = torch.randn(3, *shape, **options) * (torch.rand(3, *shape, **options) > 0.6)
    return weights, torch.randn(shape, **options)


def backward(fork: TaskFork, weights: Tensor, shared: Tensor) -> Tensor:
    leaf = shared.clone().requires_grad_()
    features = fork(leaf)
    sum((features[task] * weight).sum() for task, weight in zip(TASKS, weights, strict=True)).backward()
    assert leaf.grad is not None
    return leaf.grad


def mapped(weights: Tensor, shared: Tensor, method: Method | None = None) -> ConflictMap:
    fork = TaskFork(TASKS, method or GradDrop(), map_every=1)
    backward(fork, weights, shared)
    result = fork.read_map()
    assert result is not None
    assert fork.read_map() is None  # read once
    return result


def cell_by_cell(weights: Tensor) -> tuple[np.ndarray, np.ndarray]:
    _, samples, channels, height, width = weights.shape
    mass, cancelled = np.zeros((height, width)), np.zeros((height, width))
    for row in range(height):
        for column in range(width):
            for sample in range(samples):
                for channel in range(channels):
                    values = weights[:, sample, channel, row, column].numpy()
                    mass[row, column] += np.abs(values).sum()
                    cancelled[row, column] += np.abs(values).sum() - abs(values.sum())
    return mass, cancelled


@pytest.mark.parametrize("method", [Sum(), GradDrop(), GradDrop(marginalize="batch+space"), GradDrop(leak=1.0)])
def test_maps_equal_sums_cell_by_cell_whatever_the_method(method: Method) -> None:
    weights, shared = problem()
    found = mapped(weights, shared, method)
    mass, cancelled = cell_by_cell(weights)
    np.testing.assert_allclose(found.mass, mass, rtol=1e-12)
    np.testing.assert_allclose(found.cancelled, cancelled, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(found.share, cancelled / mass, rtol=1e-12, atol=1e-12)
    assert (found.mass.shape, found.passes) == ((4, 5), 1)


def test_cells_in_agreement_and_empty_ones_are_exactly_0() -> None:
    weights = torch.rand(3, 2, 8, 1, 4, generator=torch.Generator().manual_seed(1)) + 0.1  # float32
    weights[0, ..., 1] *= -1
    weights[..., 2] = 0
    weights[..., 3] = torch.tensor([1.0, -1.0, 0.0])[:, None, None, None]
    share = mapped(weights, torch.ones(2, 8, 1, 4)).share[0]
    assert (share[0], share[2], share[3]) == (0, 0, 1)
    assert 0.1 < share[1] < 0.9


def test_channels_may_come_last() -> None:
    weights, shared = problem(2)
    last = mapped(weights.permute(0, 1, 3, 4, 2), shared.permute(0, 2, 3, 1), GradDrop(channel_dim=-1))
    first = mapped(weights, shared)
    torch.testing.assert_close(last.mass, first.mass)
    torch.testing.assert_close(last.cancelled, first.cancelled)


def test_only_every_nth_step_is_mapped_and_the_rest_computes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    patched = "detection3d.multitask.fork_function.measure_map"
    monkeypatch.setattr(patched, lambda *arguments: calls.append(step) or measure_map(*arguments))
    fork = TaskFork(TASKS, GradDrop(), telemetry_every=1, map_every=3)
    for step in range(1, 8):
        fork.set_step(step)
        backward(fork, *problem(step))
        assert (fork._map_probe is not None and fork._map_probe.grad is not None) == (step in (3, 6))
        assert (fork.read_map() is not None) == (step in (3, 6))
    assert calls == [3, 6]


def test_without_maps_there_is_no_probe_and_the_gradient_is_the_same() -> None:
    quiet, loud = (TaskFork(TASKS, GradDrop(), map_every=every) for every in (0, 1))
    assert torch.equal(backward(quiet, *problem(3)), backward(loud, *problem(3)))
    assert quiet._map_probe is None
    assert quiet.read_map() is None


def test_several_passes_give_the_mean_and_the_loss_scale_is_undone() -> None:
    fork = TaskFork(TASKS, GradDrop(), map_every=1)
    for seed in (4, 5):
        weights, shared = problem(seed)
        backward(fork, 1024 * weights, shared)
    found = fork.read_map(loss_scale=1024)
    assert found is not None
    assert found.passes == 2
    singles = [mapped(*problem(seed)) for seed in (4, 5)]
    torch.testing.assert_close(found.mass, (singles[0].mass + singles[1].mass) / 2)
    torch.testing.assert_close(found.cancelled, (singles[0].cancelled + singles[1].cancelled) / 2)


class Remembered(Ranks):
    """The second of two ranks, whose sum adds what the first one gave."""

    def __init__(self, first: list[Tensor] | None = None) -> None:
        object.__setattr__(self, "size", 2)
        object.__setattr__(self, "given", [])
        object.__setattr__(self, "first", first)

    def sum(self, values: Tensor) -> Tensor:
        self.given.append(values)
        return values if self.first is None else values + self.first[0]


def test_two_ranks_with_unequal_shares_equal_one() -> None:
    weights, shared = problem(6, (4, 3, 2, 5))
    first = Remembered()
    measure_map(2 * weights[:, :1], 1, first)  # losses are scaled by the number of ranks
    both = read_conflict_map(measure_map(2 * weights[:, 1:], 1, Remembered(first.given)), (2, 5))
    one = mapped(weights, shared)
    torch.testing.assert_close(both.mass, one.mass, rtol=1e-12, atol=0)
    torch.testing.assert_close(both.cancelled, one.cancelled, rtol=1e-12, atol=1e-14)
    assert both.passes == 1


def test_maps_of_another_size() -> None:
    fork = TaskFork(TASKS, GradDrop(), map_every=1)
    for width in (5, 3):
        backward(fork, *problem(7, (2, 3, 4, width)))
        result = fork.read_map()
        assert result is not None
        assert result.mass.shape == (4, width)
    backward(fork, *problem(8))
    with pytest.raises(ValueError, match=r"map was \(4, 5\) and is \(4, 3\) now; read_map\(\)"):
        backward(fork, *problem(9, (2, 3, 4, 3)))


def test_what_has_no_map_is_refused() -> None:
    for shape in ((2, 3), (2, 3, 4), (2, 3, 4, 5, 6)):
        with pytest.raises(ValueError, match="needs an activation of 4 dims") as caught:
            backward(TaskFork(TASKS, GradDrop(), map_every=1), *problem(10, shape))
        assert str(shape) in str(caught.value)
    with pytest.raises(ValueError, match="map_every is -1"):
        TaskFork(TASKS, Sum(), map_every=-1)


# torch.compile itself creates an instance of autograd.Function while it traces one, and looks at the gradient of the
# graph's input, which is no leaf.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.slow
def test_compiled_equals_eager() -> None:
    eager, fork = (TaskFork(TASKS, GradDrop(), map_every=2) for _ in range(2))
    compiled = torch.compile(fork, backend="aot_eager")
    for step in range(1, 6):
        weights, shared = problem(step)
        eager.set_step(step)
        fork.set_step(step)
        wanted = backward(eager, weights, shared)
        leaf = shared.clone().requires_grad_()
        features = compiled(leaf)
        sum((features[task] * weight).sum() for task, weight in zip(TASKS, weights, strict=True)).backward()
        assert leaf.grad is not None
        assert torch.equal(leaf.grad, wanted)
        found, expected = fork.read_map(), eager.read_map()
        assert (found is None) == (expected is None) == (step % 2 == 1)
        if found is not None and expected is not None:
            assert torch.equal(found.mass, expected.mass)
            assert torch.equal(found.cancelled, expected.cancelled)
    torch.compiler.reset()
