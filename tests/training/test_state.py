"""A state that is captured and restored must go on with the same bits."""

import pytest
import torch

from detection3d.errors import UserError
from detection3d.model.heads import TASKS
from detection3d.training import state
from detection3d.training.checkpoint import load_checkpoint, save_checkpoint
from detection3d.training.state import TrainState
from detection3d.training.step import train_step
from detection3d.types.tensors import make_current
from tests.small_run import small_config
from tests.training import spoiling
from tests.training.steps import CPU, batches, differences, fresh_state


@pytest.mark.parametrize(
    "settings",
    [
        (),
        ("training.ema_decay=0", "multitask.method=sum"),
        ("multitask.method={kind: gradnorm, then: graddrop}",),
        ("multitask.method=uncertainty",),
        ("training.freeze=[backbone, shared_norm]",),
    ],
)
def test_restored_it_goes_on_with_the_same_bits(tmp_path, store, settings):
    config = small_config(*settings)
    first, *rest = batches(config, store, 4)
    state = fresh_state(config)
    train_step(state, first, config)
    path = save_checkpoint(tmp_path, state.step, state.capture(), keep=1)
    for batch in rest:
        train_step(state, batch, config)

    other = fresh_state(small_config(*settings, "seed=0"))
    other.restore(load_checkpoint(path))
    assert other.step == 1
    for batch in rest:
        train_step(other, batch, config)
    assert differences(state.capture(), other.capture()) == []
    assert (other.average is None) == ("training.ema_decay=0" in settings)


def test_everything_that_a_step_changes_is_captured(store):
    """Restored into a state that went elsewhere, nothing of that is left."""
    method = "multitask.method={kind: gradnorm, then: graddrop}"
    config, other_config = small_config(method), small_config(method, "seed=9")
    first, second, *_ = batches(config, store, 2)
    state = scaled(fresh_state(config))
    for batch in (first, spoiling.points(second), first):
        train_step(state, batch, config)
    captured = {"step": state.step, **state.capture()}
    assert captured["skipped"].tolist() == [1, 0]
    assert captured["scaler"]["scale"] == 2.0**9, "halved by the step that was left out"
    assert int(captured["model"]["fork.step"]) == captured["schedule"]["last_epoch"] == 3
    assert not torch.equal(captured["model"]["fork.state.loss_weight"], torch.ones(3, dtype=torch.float64))
    assert int(captured["average"]["n_averaged"]) == 2

    elsewhere = scaled(fresh_state(other_config))
    for _ in range(4):
        train_step(elsewhere, second, other_config)
    torch.rand(3)
    assert len(differences({"step": elsewhere.step, **elsewhere.capture()}, captured)) > 100
    elsewhere.restore(captured)
    assert differences({"step": elsewhere.step, **elsewhere.capture()}, captured) == []


def scaled(state: TrainState) -> TrainState:
    """The state with a loss scaler at work, as on CUDA in float16."""
    state.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=2)
    return state


def test_a_loss_scaler_changes_no_step_and_its_scale_is_restored(store):
    config = small_config("multitask.method={kind: gradnorm, then: graddrop}", "training.clip_norm=1")
    plain, state = fresh_state(config), scaled(fresh_state(config))
    for batch in batches(config, store, 3):
        results = [train_step(either, batch, config) for either in (plain, state)]
        without, found = (result.gradient_norm for result in results)
        torch.testing.assert_close(found, without, rtol=1e-6, atol=0)
        told = [
            either.fork.read_telemetry(result.loss_scale)
            for either, result in zip((plain, state), results, strict=True)
        ]
        assert told[0] is not None
        assert told[1] is not None
        assert told[1].scalars() == pytest.approx(told[0].scalars(), rel=1e-4, abs=1e-6)
    captured = {"step": state.step, **state.capture()}
    for name, value in plain.model.state_dict().items():
        torch.testing.assert_close(captured["model"][name], value, rtol=1e-5, atol=1e-6)
    assert captured["scaler"]["scale"] == 2.0**11
    assert not torch.equal(captured["model"]["fork.state.loss_weight"], torch.ones(3, dtype=torch.float64)), "it learns"
    other = scaled(fresh_state(config))
    other.restore(captured)
    assert differences(other.capture(), state.capture()) == []
    other.restore({**captured, "scaler": {}})  # trained so far on a device that needs no scaler
    assert other.scaler.get_scale() == 2.0**11


def test_a_step_that_overflows_is_left_out_and_the_scale_halved(store, monkeypatch):
    config = small_config()
    state = scaled(fresh_state(config))
    first, second = batches(config, store, 2)
    train_step(state, first, config)
    before = {name: value.detach().clone() for name, value in state.model.named_parameters()}
    monkeypatch.setattr(state.scaler, "scale", lambda loss: loss * float("inf"))
    train_step(state, second, config)
    assert differences(dict(state.model.named_parameters()), before) == []
    assert state.scaler.get_scale() == 2.0**9
    assert state.step == 2


def test_weights_depend_on_the_seed_alone():
    torch.manual_seed(1)
    first = fresh_state(small_config("seed=4")).model.state_dict()
    torch.manual_seed(2)
    assert differences(first, fresh_state(small_config("seed=4")).model.state_dict()) == []
    assert differences(first, fresh_state(small_config("seed=5")).model.state_dict()) != []


def test_the_average_is_an_exponential_one_of_weights_and_statistics(store):
    config = small_config("training.ema_decay=0.75")
    state = fresh_state(config)
    assert state.average is not None
    expected: dict[str, torch.Tensor] = {}
    for batch in batches(config, store, 3):
        train_step(state, batch, config)
        now = {name: value.clone() for name, value in state.model.state_dict().items() if value.is_floating_point()}
        expected = {name: 0.75 * expected[name] + 0.25 * now[name] for name in now} if expected else now
    averaged = state.average.module.state_dict()
    assert any("running_mean" in name for name in expected)
    for name, value in expected.items():
        torch.testing.assert_close(averaged[name], value, rtol=1e-5, atol=1e-7)


def test_the_fork_has_the_tasks_of_the_heads():
    assert fresh_state(small_config()).fork.tasks == TASKS


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_needs_cuda(precision):
    with pytest.raises(UserError, match=f"training.precision={precision} needs a CUDA device, found {CPU}"):
        fresh_state(small_config(f"training.precision={precision}"))


def test_the_device_becomes_the_current_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """spconv launches its kernels there, wherever its tensors are."""
    seen = []
    monkeypatch.setattr(torch.cuda, "set_device", seen.append)
    for name in ("cpu", "cuda", "cuda:1"):  # torch refuses one without a number
        make_current(torch.device(name))
    assert seen == [torch.device("cuda:1")]
    monkeypatch.setattr(state, "make_current", seen.append)
    fresh_state(small_config())
    assert seen[1:] == [CPU]
