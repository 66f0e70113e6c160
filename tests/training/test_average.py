"""The average as CUDA moves it, by a rate that the host does not know; on the CPU the sums are the same."""

import pytest
import torch
from torch import nn

from detection3d.training.average import WeightAverage


class OnTheDevice(torch.Tensor):
    """A bool that says of itself that it lies on a GPU."""

    is_cuda = True  # pyright: ignore[reportAssignmentType]


def answer(left_out: bool) -> torch.Tensor:
    return torch.tensor(left_out).as_subclass(OnTheDevice)


def changed(model: nn.Module, step: int) -> nn.Module:
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(step)
    model.get_buffer("num_batches_tracked").add_(1)
    return model


def test_it_moves_as_on_the_cpu_but_not_in_steps_that_are_left_out() -> None:
    model = nn.BatchNorm1d(3)
    host, device = WeightAverage(model, 0.75), WeightAverage(model, 0.75)
    for step, left_out in enumerate((False, False, True, False)):
        if not left_out:  # else the model is as before
            changed(model, step)
        host.update(model, torch.tensor(left_out))
        device.update(model, answer(left_out))
        for ours, theirs in zip(device.module.state_dict().values(), host.module.state_dict().values(), strict=True):
            torch.testing.assert_close(ours, theirs)
    changed(model, 1)
    for average in (host, device):
        average.update_parameters(model)
    for ours, theirs in zip(device.module.state_dict().values(), host.module.state_dict().values(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_what_is_left_of_each_update() -> None:
    model = nn.BatchNorm1d(3)
    device = WeightAverage(model, 0.75)
    for step, left_out in enumerate((False, False, True, False)):
        if not left_out:
            changed(model, step)
        device.update(model, answer(left_out))
    # 1, then a quarter of the way to 2, then of that to 5
    assert device.module.get_parameter("weight").tolist() == pytest.approx([0.75 * 1.25 + 0.25 * 5] * 3)
    assert int(device.module.get_buffer("num_batches_tracked")) == 3


def test_a_warm_up_forgets_the_first_weights() -> None:
    model = nn.BatchNorm1d(1)
    average = WeightAverage(model, 0.8, warm_up=True)
    expected = 1.0
    for update in range(60):
        changed(model, 1)
        average.update_parameters(model)
        left = 0.0 if update == 0 else min(0.8, (1 + update) / (10 + update))
        expected = left * expected + (1 - left) * (update + 2)
        assert average.module.get_parameter("weight").item() == pytest.approx(expected)
    assert average.rate == pytest.approx(0.2)
