"""The benchmark of whole steps: what it tells, and that its steps are those of a training."""

import json
from pathlib import Path

import pytest
import torch

from detection3d.benchmark import step as step_benchmark
from detection3d.benchmark.step import WARM_UP, time_steps
from detection3d.cli import benchmark
from tests.small_run import small_config, small_settings, write_small_store


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_store(tmp_path_factory.mktemp("data") / "store")


def test_it_tells_a_step_its_parts_and_the_points(store: Path) -> None:
    config = small_config("training.steps=1000", data=store)
    timing = time_steps(config, torch.device("cpu"), rounds=2, steps=2, batches=3)
    assert len(timing.step.seconds) == 2
    assert set(timing.parts) == {"time/forward", "time/backward", "time/optimizer"}
    whole = sum(timing.step.seconds) / 2
    assert 0.3 * whole < sum(timing.parts.values()) < whole  # the rest is the input's
    assert timing.points == 400
    assert (timing.skipped, timing.memory > 0) == (0, True)


def test_the_command_writes_what_it_prints(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = small_settings("training.steps=1000", data=store)
    path = tmp_path / "step.json"
    few = ["--rounds", "1", "--steps", "1", "--batches", "1", "--device", "cpu"]
    command = ["step", "tiny", *settings, "--data", str(store), *few, "--output", str(path)]
    assert benchmark.main(command) == 0
    told = json.loads(path.read_text())
    assert told["ranks"] == 1
    assert told["config"]["training"]["batch_size"] == 2
    milliseconds = 1e3 * told["seconds_a_frame"]
    assert f"a step of 2 frames with 400 points each, {milliseconds:.2f} ms a frame" in capsys.readouterr().out


def test_its_batches_are_the_training_s(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    real = step_benchmark.train_step

    def noted(state, given, config):
        seen.append(given.batch.sample_index.tolist())
        return real(state, given, config)

    monkeypatch.setattr(step_benchmark, "train_step", noted)
    time_steps(small_config("training.steps=1000", data=store), torch.device("cpu"), rounds=1, steps=3, batches=2)
    assert seen == ([[0, 1], [2, 3]] * WARM_UP)[: WARM_UP + 3]


@pytest.mark.parametrize("name", ["--rounds", "--steps", "--batches"])
def test_nothing_to_time_is_refused(store: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    with pytest.raises(SystemExit):
        benchmark.main(["step", "tiny", "--data", str(store), name, "0"])
    assert f"argument {name}" in capsys.readouterr().err
