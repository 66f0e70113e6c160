"""Relative speed, with a clock that the steps themselves set."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from detection3d.errors import UserError
from detection3d.multitask import GradDrop, Sum
from detection3d.training import comparison_speed
from detection3d.training.comparison_speed import measure_speed, read_speeds, write_speeds
from detection3d.training.state import TrainState
from tests.small_run import small_config
from tests.training.steps import CPU

LOG_EVERY = 10
CONFIG = ("multitask.method=graddrop", f"training.log_every={LOG_EVERY}", "training.map_every=1")


class Steps:
    """Stands in for the training step: notes who stepped, and lets the clock run for as long as `cost` says."""

    def __init__(self, cost: Callable[[bool, bool, int], float]) -> None:
        self.cost, self.now, self.order = cost, 0.0, []

    def __call__(self, state: TrainState, batch: object, config: object) -> SimpleNamespace:
        ours = isinstance(state.fork.method, GradDrop)
        assert ours or isinstance(state.fork.method, Sum)
        assert state.fork.map_every == 0
        telemetry = state.fork.telemetry_every == 1
        self.order.append((ours, telemetry))
        self.now += self.cost(ours, telemetry, len(self.order))
        return SimpleNamespace(loss_scale=1.0)


def measure(monkeypatch: pytest.MonkeyPatch, store: Path, cost: Callable[[bool, bool, int], float], pairs: int = 20):
    steps = Steps(cost)
    monkeypatch.setattr(comparison_speed, "train_step", steps)
    monkeypatch.setattr(comparison_speed, "time", SimpleNamespace(perf_counter=lambda: steps.now))
    return measure_speed({"graddrop": small_config(*CONFIG, data=store)}, CPU, pairs)["graddrop"], steps


def test_telemetry_counts_as_often_as_it_runs(monkeypatch, store):
    speed, steps = measure(monkeypatch, store, lambda ours, telemetry, _: 1.0 + 0.25 * ours + 1.0 * telemetry)
    assert speed.relative == pytest.approx(1 / (0.9 * 1.25 + 0.1 * 2.25))
    assert speed.telemetry_step == pytest.approx(1 / 2.25)
    assert (speed.step_seconds, speed.baseline_seconds) == (1.25, 1.0)
    assert speed.quartiles == pytest.approx((0.8, 0.8))
    assert all(ours for ours, telemetry in steps.order if telemetry), "the baseline measures none"


def test_steps_alternate(monkeypatch, store):
    _, steps = measure(monkeypatch, store, lambda *_: 1.0, pairs=21)
    owners = [ours for ours, _ in steps.order]
    assert owners == [False, True] * (len(owners) // 2)
    warm_up = 2 * comparison_speed.WARM_UP
    assert [telemetry for ours, telemetry in steps.order[warm_up:] if ours] == [False] * 21 + [True] * 21


def test_a_machine_that_is_disturbed_shifts_no_ratio(monkeypatch, store):
    # every step takes 2 % longer than the one before, and one hangs
    def cost(ours: bool, _: bool, number: int) -> float:
        return 1e6 if number == 15 else (1.0 + ours) * 1.02**number

    speed, _ = measure(monkeypatch, store, cost)
    assert speed.relative == pytest.approx(1 / (2 * 1.02))


def test_too_few_pairs(store):
    with pytest.raises(UserError, match="5 pairs of steps; the median needs at least 20"):
        measure_speed({}, CPU, 5)


def test_speeds_are_kept_for_the_same_settings_and_device(monkeypatch, store, tmp_path):
    speed, _ = measure(monkeypatch, store, lambda *_: 1.0)
    path = tmp_path / "speed.json"
    configs = {"graddrop": small_config(*CONFIG, data=store)}
    assert read_speeds(path, configs, "cpu") == {}
    write_speeds(path, configs, "cpu", {"graddrop": speed})
    assert read_speeds(path, configs, "cpu") == {"graddrop": speed}
    assert read_speeds(path, configs, "cuda") == {}
    assert read_speeds(path, {"graddrop": small_config(*CONFIG, "training.batch_size=1", data=store)}, "cpu") == {}
    assert read_speeds(path, {}, "cpu") == {}
    path.write_text("{")
    assert read_speeds(path, configs, "cpu") == {}
