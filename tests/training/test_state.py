"""A state that is captured and restored must go on with the same bits."""

import pytest
import torch

from detection3d.errors import UserError
from detection3d.model.heads import TASKS
from detection3d.training.checkpoint import load_checkpoint, save_checkpoint
from detection3d.training.loop import train_step
from tests.small_run import small_config
from tests.training.steps import CPU, batches, differences, fresh_state


@pytest.mark.parametrize("settings", [(), ("training.ema_decay=0", "multitask.method=sum")])
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
    assert (other.average is None) == bool(settings)


def test_everything_that_a_step_changes_is_captured(store):
    """Restored into a state that went elsewhere, nothing of that is left."""
    config = small_config()
    first, second, *_ = batches(config, store, 2)
    state = fresh_state(config)
    train_step(state, first, config)
    captured = {"step": state.step, **state.capture()}

    elsewhere = fresh_state(small_config("seed=9"))
    for _ in range(3):
        train_step(elsewhere, second, small_config("seed=9"))
    torch.rand(3)
    elsewhere.restore(captured)
    assert differences({"step": elsewhere.step, **elsewhere.capture()}, captured) == []


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
