"""Packed AdamW against torch's fused one, on the CPU, where both run too."""

import copy
import warnings
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from detection3d.training.optimizer import CycleWithTail, Optimization, restore_optimizer
from detection3d.training.packed_adamw import PackedAdamW

CLIP = 0.02


class Net(nn.Module):
    """Weights of several shapes, one of them channels-last, and a scalar."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.image = nn.Conv2d(3, 4, 3, padding=1).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.end = nn.Linear(4, 2)
        self.scale = nn.Parameter(torch.tensor(0.5))

    def forward(self, values: Tensor) -> Tensor:
        return self.end(self.image(values).tanh().mean((2, 3))) * self.scale


def groups(model: nn.Module) -> list[dict[str, Any]]:
    large = [weight for weight in model.parameters() if weight.ndim > 1]
    small = [weight for weight in model.parameters() if weight.ndim <= 1]
    return [{"params": large, "weight_decay": 0.1}, {"params": small, "weight_decay": 0.0}]


def pair() -> tuple[tuple[nn.Module, PackedAdamW], tuple[nn.Module, torch.optim.AdamW]]:
    first = Net()
    second = copy.deepcopy(first)
    packed = PackedAdamW(groups(first), 0.01, (0.9, 0.99))
    return (first, packed), (second, torch.optim.AdamW(groups(second), lr=0.01, betas=(0.9, 0.99), fused=True))


def backward(model: nn.Module, number: int) -> None:
    values = torch.randn(5, 3, 6, 6, generator=torch.Generator().manual_seed(number))
    model.zero_grad(set_to_none=True)
    model(values).square().sum().backward()


def gradients(model: nn.Module, optimizer: torch.optim.AdamW) -> tuple[Any, Sequence[Any]]:
    schedule: Any = None
    return Optimization(optimizer, schedule).gradients(list(model.parameters()))


def step(model: nn.Module, optimizer: torch.optim.AdamW, number: int, left_out: bool = False) -> Tensor:
    backward(model, number)
    whole, holders = gradients(model, optimizer)
    assert (whole is optimizer) != isinstance(optimizer, PackedAdamW)
    norm = torch.nn.utils.clip_grad_norm_(holders, CLIP)
    optimizer.found_inf = torch.tensor(float(left_out))  # pyright: ignore[reportAttributeAccessIssue]
    optimizer.step()
    return norm


def assert_same(first: nn.Module, packed: PackedAdamW, second: nn.Module, plain: torch.optim.AdamW) -> None:
    close = {"rtol": 1e-5, "atol": 1e-7}
    torch.testing.assert_close(dict(first.state_dict()), dict(second.state_dict()), **close)
    torch.testing.assert_close(packed.state_dict()["state"], plain.state_dict()["state"], **close)


def test_steps_are_torch_s() -> None:
    (first, packed), (second, plain) = pair()
    before = first.state_dict()["image.weight"].clone()
    for number in range(6):
        for optimizer in (packed, plain):
            optimizer.param_groups[0]["lr"] = 0.01 * (1 + number)
            optimizer.param_groups[1]["betas"] = (0.8 + 0.01 * number, 0.99)
        norms = [step(first, packed, number, number == 2), step(second, plain, number, number == 2)]
        torch.testing.assert_close(norms[0], norms[1])
        assert norms[0] > CLIP, "clipping acts"
        assert_same(first, packed, second, plain)
    assert not torch.equal(before, first.state_dict()["image.weight"])
    assert packed.state_dict()["state"][0]["step"] == 5, "the step that was left out does not count"
    assert first.get_parameter("image.weight").is_contiguous(memory_format=torch.channels_last)


def test_a_step_that_is_not_finite_leaves_no_trace() -> None:
    (first, packed), _ = pair()
    step(first, packed, 0)
    before = copy.deepcopy({"model": first.state_dict(), "optimizer": packed.state_dict()})
    backward(first, 1)
    weight = first.get_parameter("end.weight")
    assert weight.grad is not None
    weight.grad[0, 0] = torch.nan
    _, holders = gradients(first, packed)
    assert torch.nn.utils.clip_grad_norm_(holders, CLIP).isnan()
    packed.found_inf = torch.ones(())  # pyright: ignore[reportAttributeAccessIssue]
    packed.step()
    torch.testing.assert_close(dict(first.state_dict()), dict(before["model"]), rtol=0, atol=0)
    torch.testing.assert_close(packed.state_dict()["state"], before["optimizer"]["state"], rtol=0, atol=0)
    assert step(first, packed, 2).isfinite()


def test_a_scaler_takes_the_packed_gradients() -> None:
    (first, packed), _ = pair()
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for number, spoilt in enumerate((False, True)):
        backward(first, number)
        expected = [weight.grad.clone() / 4 for weight in first.parameters() if weight.grad is not None]
        if spoilt:
            first.get_parameter("scale").grad = torch.tensor(torch.inf)
        whole, holders = gradients(first, packed)
        scaler.scale(torch.ones(()))
        scaler.unscale_(whole)
        total = torch.nn.utils.get_total_norm([holder.grad for holder in holders])
        assert total.isfinite() != spoilt
        if not spoilt:
            torch.testing.assert_close(total, torch.nn.utils.get_total_norm(expected))
        packed.step()
        scaler.update()
    assert scaler.get_scale() == 2.0


@pytest.mark.parametrize("packed_first", [True, False])
def test_states_go_from_one_to_the_other(packed_first: bool) -> None:
    (first, packed), (second, plain) = pair()
    for number in range(3):
        step(first, packed, number)
        step(second, plain, number)
    source, model = (packed, first) if packed_first else (plain, second)
    saved = copy.deepcopy({"optimizer": source.state_dict(), "model": model.state_dict()})
    (third, packed_too), (fourth, plain_too) = pair()
    for target, optimizer in ((third, packed_too), (fourth, plain_too)):
        step(target, optimizer, 77)  # something to be forgotten
        target.load_state_dict(saved["model"])
        restore_optimizer(optimizer, copy.deepcopy(saved["optimizer"]))  # which torch does not copy
    for number in range(3, 6):
        step(first, packed, number)
        step(third, packed_too, number)
        step(fourth, plain_too, number)
    assert_same(third, packed_too, fourth, plain_too)
    assert_same(third, packed_too, first, packed)  # pyright: ignore[reportArgumentType] both are packed


def test_where_a_weight_has_no_gradient_torch_steps() -> None:
    (first, packed), (second, plain) = pair()
    for number in range(4):
        for model, optimizer in ((first, packed), (second, plain)):
            backward(model, number)
            if number % 2:
                model.get_parameter("scale").grad = None
            took = isinstance(optimizer, PackedAdamW) and optimizer.take_gradients()
            assert took == (optimizer is packed and number == 0), "counts of steps are not equal any more"
            optimizer.step()
        assert_same(first, packed, second, plain)
    (third, packed_too), _ = pair()
    third.load_state_dict(first.state_dict())
    restore_optimizer(packed_too, copy.deepcopy(packed.state_dict()))
    backward(third, 5)
    assert not packed_too.take_gradients()


def test_no_warning_of_a_schedule_before_its_optimiser() -> None:
    (first, packed), _ = pair()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        schedule = CycleWithTail(packed, max_lr=0.01, total_steps=50)
        for number in range(3):
            backward(first, number)
            packed.take_gradients()
            packed.step()
            schedule.step()
