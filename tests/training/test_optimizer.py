import pytest
import torch
from pydantic import ValidationError
from torch import nn

from detection3d.config import TrainingConfig
from detection3d.training.leaving_out import step_optimizer
from detection3d.training.optimizer import build_optimization, restore_optimizer


def settings(steps: int = 20, **changes: float) -> TrainingConfig:
    return TrainingConfig.model_validate(
        {"steps": steps, "batch_size": 2, "learning_rate": 0.01, "weight_decay": 0.1, "warmup": 0.25, **changes}
    )


def rates(config: TrainingConfig) -> list[tuple[float, float]]:
    """Learning rate and first momentum of each step."""
    optimization = build_optimization(nn.Linear(2, 2), config)
    seen = []
    for _ in range(config.steps):
        group = optimization.optimizer.param_groups[0]
        seen.append((group["lr"], group["betas"][0]))
        optimization.optimizer.step()
        optimization.schedule.step()
    return seen


def test_norms_and_biases_do_not_decay():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))
    decaying, others = build_optimization(model, settings()).optimizer.param_groups
    assert {weight.data_ptr() for weight in decaying["params"]} == {
        model[0].weight.data_ptr(),
        model[2].weight.data_ptr(),
    }
    assert decaying["weight_decay"] == 0.1
    assert len(others["params"]) == 4
    assert others["weight_decay"] == 0.0


def test_frozen_weights_are_left_alone():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[0].requires_grad_(False)
    groups = build_optimization(model, settings()).optimizer.param_groups
    assert [len(group["params"]) for group in groups] == [1, 1]


def test_the_rate_climbs_to_its_peak_and_ends_near_nothing():
    seen = rates(settings())
    first, peak, last = seen[0], max(seen), seen[-1]
    assert first == pytest.approx((0.001, 0.95))
    assert peak == pytest.approx((0.01, 0.85))
    assert seen.index(peak) == 4  # a quarter of 20 steps, counted from 0
    assert last == pytest.approx((0.001 / 1e4, 0.95))


@pytest.mark.parametrize(("steps", "warmup"), [(10, 0.1), (5, 0.2), (1, 0.5), (2, 0.5), (3, 0.1), (4, 0.25)])
def test_short_runs_have_a_schedule(steps, warmup):
    seen = [rate for rate, _ in rates(settings(steps, warmup=warmup))]
    assert all(0 < rate <= 0.01 for rate in seen)
    if steps > 1:
        assert seen[0] == pytest.approx(0.001)
        assert seen[-1] == pytest.approx(0.001 / 1e4)


def test_the_tail_keeps_the_lowest_rate():
    seen = rates(settings(40, warmup=0.125, tail=0.5, final_divisor=20.0))
    assert seen[:20] == rates(settings(20, final_divisor=20.0))
    assert seen[19:] == [pytest.approx((0.01 / 20, 0.95))] * 21


def test_the_tail_goes_on_after_a_restart():
    def built():
        return build_optimization(nn.Linear(2, 2), settings(40, warmup=0.125, tail=0.5, final_divisor=20.0))

    stopped, resumed = built(), built()
    for _ in range(30):
        stopped.optimizer.step()
        stopped.schedule.step()
    resumed.optimizer.load_state_dict(stopped.optimizer.state_dict())
    resumed.schedule.load_state_dict(stopped.schedule.state_dict())
    for _ in range(10):
        assert resumed.optimizer.param_groups[0]["lr"] == pytest.approx(0.01 / 20)
        resumed.optimizer.step()
        resumed.schedule.step()


def test_a_tail_leaves_steps_for_the_cycle():
    with pytest.raises(ValidationError, match=r"warmup \(0.25\) and tail \(0.75\) leave no steps"):
        settings(tail=0.75)


def test_a_step_is_adamw():
    model = nn.Linear(1, 1)
    weight, bias = (value.detach().clone() for value in model.parameters())
    optimization = build_optimization(model, settings())
    for value in model.parameters():
        value.grad = torch.full_like(value, 3.0)
    optimization.optimizer.step()
    # the first step of Adam moves by the rate, whatever the gradient
    torch.testing.assert_close(model.weight.detach(), weight * (1 - 0.001 * 0.1) - 0.001)
    torch.testing.assert_close(model.bias.detach(), bias - 0.001)


def test_a_state_of_another_device_does_not_switch_the_fused_optimiser_off():
    """Else steps that are not finite would not be left out any more where the device decides it."""
    model = nn.Linear(2, 2)
    saved = _stepped(model, torch.optim.AdamW(model.parameters(), lr=0.5, fused=False)).state_dict()
    fused = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
    restore_optimizer(fused, saved)
    assert (fused.param_groups[0]["fused"], fused.param_groups[0]["lr"]) == (True, 0.5)
    before = [weight.detach().clone() for weight in model.parameters()]
    for weight in model.parameters():
        weight.grad = torch.full_like(weight, torch.nan)
    step_optimizer(fused, torch.tensor(True))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(model.parameters(), before, strict=True))
    step_optimizer(_stepped(model, fused), torch.tensor(False))
    plain = torch.optim.AdamW(model.parameters(), lr=0.1, fused=False)
    restore_optimizer(plain, fused.state_dict())
    assert plain.param_groups[0]["fused"] is False
    assert {float(state["step"]) for state in plain.state.values()} == {3.0}


def _stepped(model: nn.Module, optimizer: torch.optim.AdamW) -> torch.optim.AdamW:
    for weight in model.parameters():
        weight.grad = torch.ones_like(weight)
    step_optimizer(optimizer, torch.tensor(False))
    return optimizer
