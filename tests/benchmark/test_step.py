"""The benchmark of whole steps: what it tells, and that its steps are those of a training."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import distributed as dist

from detection3d.benchmark import step as step_benchmark
from detection3d.benchmark.step import WARM_UP, time_scaling, time_steps
from detection3d.cli import benchmark
from detection3d.errors import UserError
from detection3d.model.norm import BatchNorm
from detection3d.training import step_input
from detection3d.training.team import Team
from tests.conftest import ROOT
from tests.rank_group import RankGroup
from tests.small_run import environment, small_config, small_settings, write_small_store


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


def test_steps_of_few_frames_are_augmented(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An epoch of five frames is 3 steps, of which a run does the last 2 without."""
    seen = []
    real = step_input.augment
    monkeypatch.setattr(step_input, "augment", lambda *data, **how: seen.append(how) or real(*data, **how))
    settings = ("training.steps=0", "training.epochs=1", "augmentation.off_for_last_share=0.6")
    training = step_benchmark.TimedTraining(small_config(*settings, data=store), torch.device("cpu"), batches=1)
    training.run(6)
    assert len(seen) == 6


def test_scaling_compares_one_rank_with_both(store: Path, tmp_path: Path) -> None:
    path, launcher = tmp_path / "scaling.json", ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    # GradNorm learns, which needs a collective of the ranks that train together.
    settings = small_settings("training.batch_size=4", "multitask.method={kind: gradnorm}", data=store)
    few = ["--rounds", "2", "--steps", "2", "--batches", "1", "--device", "cpu"]
    command = [ROOT / "tools" / "benchmark.py", "scaling", "tiny", *settings, "--data", store, *few, "--output", path]
    process = subprocess.run(
        [sys.executable, *launcher, *map(str, command)],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    told = json.loads(path.read_text())
    assert told["ranks"] == 2
    ratios = [alone / full for alone, full in zip(told["alone"], told["together"]["full"], strict=True)]
    assert told["efficiency"]["full"] == pytest.approx(sum(ratios) / 2)
    low, high = sorted(1e3 * seconds for seconds in told["together"]["none"])
    line = f"all ranks, sync none       {(low + high) / 2:.1f} ms ({low:.1f} to {high:.1f}) a step"
    assert line in process.stdout
    ratios = [alone / apart for alone, apart in zip(told["alone"], told["apart"], strict=True)]
    assert f" a step, {sum(ratios) / 2:.3f} of one alone\nall ranks, sync full" in process.stdout
    assert "2 times CPU" in process.stdout


def test_those_alone_are_runs_of_one_rank(store: Path) -> None:
    """Their norms and their forks know nobody else."""
    with RankGroup(2) as group:
        first, second = group.run(settings_of_scaling, store)
    assert first == second == [({1}, "none", 1), ({2}, "full", 2), ({2}, "none", 2)]


def settings_of_scaling(rank: int, store: Path) -> list[tuple[set[int], str, int]]:
    config = small_config("training.steps=1000", "training.batch_size=4", data=store)
    seen = []
    real = step_benchmark.TimedTraining

    def noted(*arguments: Any) -> step_benchmark.TimedTraining:
        training = real(*arguments)
        norms = {module.ranks.size for module in training.state.model.modules() if isinstance(module, BatchNorm)}
        seen.append((norms, training.config.multitask.sync, training.state.ranks.size))
        return training

    with mock.patch.object(step_benchmark, "TimedTraining", noted):
        team = Team(rank, 2, dist.group.WORLD)
        time_scaling(config, torch.device("cpu"), team, rounds=1, steps=1, batches=1)
    return seen


@pytest.mark.parametrize(("size", "message"), [("1", "this process is alone"), ("2", "2 ranks can't share equally")])
def test_scaling_refuses_what_can_t_be_compared(
    store: Path, monkeypatch: pytest.MonkeyPatch, size: str, message: str
) -> None:
    for name, value in (("RANK", "0"), ("WORLD_SIZE", size), ("LOCAL_RANK", "0"), ("MASTER_PORT", "29500")):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    settings = small_settings("training.batch_size=3", data=store)
    with pytest.raises(UserError, match=message):
        benchmark.main(["scaling", "tiny", *settings, "--data", str(store), "--device", "cpu"])
