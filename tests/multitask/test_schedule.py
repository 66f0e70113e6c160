"""Leaks and strength over the steps: values, both ends to the bit, and names of tasks."""

import pytest
import torch
from torch import Tensor

from detection3d.multitask import GradDrop, Ramp, Sum, TaskFork
from detection3d.multitask.schedule import Scheduled, check_share, value_at

TASKS = ("class", "box", "heading")


def at(ramp: Ramp, step: int) -> float:
    return ramp.at(torch.tensor(step)).item()


def test_a_ramp_is_straight_between_its_steps_and_flat_outside() -> None:
    ramp = Ramp(0.2, 0.7, 100, 300)
    assert [at(ramp, step) for step in (0, 100)] == [0.2, 0.2]
    assert [at(ramp, step) for step in (300, 301, 2**40)] == [0.7, 0.7, 0.7]
    assert [at(ramp, step) for step in (150, 200, 250)] == pytest.approx([0.325, 0.45, 0.575], rel=1e-14)
    falling = Ramp(1.0, 0.0, 0, 4)
    assert [at(falling, step) for step in range(6)] == [1.0, 0.75, 0.5, 0.25, 0.0, 0.0]


def test_values_stay_on_the_device_of_the_step() -> None:
    value = value_at(Ramp(0.0, 1.0, 0, 2), torch.zeros((), dtype=torch.int64, device="meta"))
    assert isinstance(value, Tensor)
    assert value.device.type == "meta"
    assert value.dtype == torch.float64
    assert value_at(0.25, torch.tensor(3)) == 0.25


@pytest.mark.parametrize(("start", "stop"), [(5, 5), (5, 4), (-1, 4)])
def test_ramps_without_length(start: int, stop: int) -> None:
    with pytest.raises(ValueError, match=f"a ramp from step {start} to step {stop} has no length"):
        Ramp(0.0, 1.0, start, stop)


@pytest.mark.parametrize("value", [1.5, -0.1, float("nan"), Ramp(0.0, 1.1, 0, 1), Ramp(-0.1, 1.0, 0, 1)])
def test_shares_outside_the_unit_interval(value: Scheduled) -> None:
    with pytest.raises(ValueError, match=r"leak is .*; it must lie in \[0, 1\]"):
        check_share("leak", value)
    with pytest.raises(ValueError, match="strength is "):
        TaskFork(TASKS, GradDrop(strength=value))
    with pytest.raises(ValueError, match='leak of task "box" is '):
        TaskFork(TASKS, GradDrop(leak={"box": value}))


def gradient(method: GradDrop | Sum, step: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """What the fork hands to the backbone in a fixed problem."""
    generator = torch.Generator().manual_seed(4)
    weights = torch.randn(3, 2, 5, 7, generator=generator).to(dtype)
    leaf = torch.randn(2, 5, 7, generator=generator).to(dtype).requires_grad_()
    fork = TaskFork(TASKS, method, seed=1)
    fork.set_step(step)
    sum((alias * weight).sum() for alias, weight in zip(fork(leaf).values(), weights, strict=True)).backward()
    assert leaf.grad is not None
    return leaf.grad


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("preserve_norm", [True, False])
def test_strength_goes_from_the_sum_to_graddrop(dtype: torch.dtype, preserve_norm: bool) -> None:
    for leak in (0.0, 0.1, {"box": 0.3, "heading": 1e-9}):
        full = GradDrop(leak=leak, preserve_norm=preserve_norm)
        off = GradDrop(leak=leak, preserve_norm=preserve_norm, strength=0.0)
        assert torch.equal(gradient(off, dtype=dtype), gradient(Sum(), dtype=dtype))
        on = GradDrop(leak=leak, preserve_norm=preserve_norm, strength=1.0)
        assert torch.equal(gradient(on, dtype=dtype), gradient(full, dtype=dtype))
        assert not torch.allclose(gradient(full, dtype=dtype), gradient(Sum(), dtype=dtype))


def test_strength_in_between_mixes_the_two() -> None:
    # Without rescaling: every leak l becomes 1 - s (1 - l), so the result is s times GradDrop's + (1 - s) the sum.
    for leak in (0.0, {"box": 0.5}):
        mixed = gradient(GradDrop(leak=leak, preserve_norm=False, strength=0.3), dtype=torch.float64)
        full = gradient(GradDrop(leak=leak, preserve_norm=False), dtype=torch.float64)
        total = gradient(Sum(), dtype=torch.float64)
        torch.testing.assert_close(mixed, 0.3 * full + 0.7 * total, rtol=1e-12, atol=1e-14)


def test_a_ramp_equals_the_number_it_has_at_the_step() -> None:
    ramp = Ramp(0.0, 1.0, 2, 6)
    for step, share in ((0, 0.0), (2, 0.0), (3, 0.25), (5, 0.75), (6, 1.0), (9, 1.0)):
        for scheduled, constant in (
            (GradDrop(strength=ramp), GradDrop(strength=share)),
            (GradDrop(leak=ramp), GradDrop(leak=share)),
            (GradDrop(leak={"box": ramp}), GradDrop(leak={"box": share})),
        ):
            assert torch.equal(gradient(scheduled, step), gradient(constant, step))
    assert torch.equal(gradient(GradDrop(strength=ramp), 1), gradient(Sum(), 1))


def test_leaks_go_by_name() -> None:
    # What a leak adds is the dropped part of that task's gradient.
    generator = torch.Generator().manual_seed(4)
    weights = torch.randn(3, 2, 5, 7, generator=generator)
    none = gradient(GradDrop(preserve_norm=False))
    for index, task in enumerate(TASKS):
        added = gradient(GradDrop(leak={task: 1.0}, preserve_norm=False)) - none
        ratio = added / weights[index]
        dropped = ratio.abs() > 0.5
        assert 0.1 < dropped.float().mean() < 0.6
        torch.testing.assert_close(ratio, dropped.float(), rtol=0, atol=1e-4)
    swapped = GradDrop(leak={"heading": 0.2, "class": 0.6}, preserve_norm=False)
    ordered = GradDrop(leak={"class": 0.6, "heading": 0.2}, preserve_norm=False)
    assert torch.equal(gradient(swapped), gradient(ordered))
