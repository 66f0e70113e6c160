"""Training started by torchrun: one run on several processes, that stops, dies and goes on as one."""

import json
import os
import signal
import time
from pathlib import Path

import pytest
import torch

from detection3d.training.checkpoint import last_checkpoint
from detection3d.training.launch import host_name
from tests.end_to_end.processes import (
    WAITING,
    assert_same_run,
    final_state,
    logged,
    rank_process,
    start_ranks,
    start_training,
    wait_for_step,
)
from tests.small_run import group_ends
from tests.training.steps import flat

CLOSE = {"rtol": 2e-3, "atol": 2e-4}  # float32, other sums, six steps of Adam; exact in float64: test_distributed


def test_two_ranks_train_what_one_trains(ranks_command: list[str], two_ranks_straight: Path, tmp_path: Path) -> None:
    process = start_training([*ranks_command, "--output", str(tmp_path / "run")], tmp_path)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    alone, together = final_state(tmp_path / "run"), final_state(two_ranks_straight)
    for part in ("model", "average"):
        ours, theirs = flat(together[part]), flat(alone[part])
        assert ours.keys() == theirs.keys()
        for name, value in theirs.items():
            if isinstance(value, torch.Tensor):
                torch.testing.assert_close(ours[name], value, **CLOSE, msg=lambda text, name=name: f"{name}: {text}")
    for ours, theirs in zip(logged(two_ranks_straight), logged(tmp_path / "run"), strict=True):
        for task in ("classification", "box", "orientation"):
            assert ours[f"loss/{task}"] == pytest.approx(theirs[f"loss/{task}"], rel=0.01), "the whole batch's loss"
    assert [start["ranks"] for start in json.loads((two_ranks_straight / "provenance.json").read_text())] == [2]


def test_a_stop_that_reaches_one_rank_stops_all_and_goes_on_to_the_same_bits(
    script: Path, ranks_command: list[str], two_ranks_straight: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    command = [*ranks_command, "--output", str(run)]
    with start_ranks(script, command, tmp_path, wait_from=2, seconds=1.0) as process:
        wait_for_step(process, run, 2)
        os.kill(rank_process(process, 1), signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "stopped at step" in errors
    assert "saved in" in errors
    path = last_checkpoint(run / "checkpoints")
    assert path is not None
    assert path.name in ("step_00000004.pt", "step_00000005.pt"), "soon after the signal, not at the next checkpoint"
    assert_goes_on(script, command, run, two_ranks_straight)


def test_a_signal_to_every_process_saves_too(
    script: Path, ranks_command: list[str], two_ranks_straight: Path, tmp_path: Path
) -> None:
    """As a cluster stops a job: each rank has it from the cluster and once more from the launcher."""
    run = tmp_path / "run"
    command = [*ranks_command, "--output", str(run)]
    with start_ranks(script, command, tmp_path, wait_from=2, seconds=1.0) as process:
        wait_for_step(process, run, 2)
        for pid in (rank_process(process, 0), rank_process(process, 1), process.pid):
            os.kill(pid, signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "stopped at step" in errors
    path = last_checkpoint(run / "checkpoints")
    assert path is not None
    assert path.name in ("step_00000004.pt", "step_00000005.pt")
    assert_goes_on(script, command, run, two_ranks_straight)


@pytest.mark.slow
def test_ranks_that_were_told_to_stop_are_not_started_again(
    script: Path, ranks_command: list[str], two_ranks_straight: Path, tmp_path: Path
) -> None:
    """torchrun takes every status but 0 for a failure, after which it starts the ranks again where it may."""
    run = tmp_path / "run"
    launcher = ("--standalone", "--nproc-per-node", "2", "--max-restarts", "2")
    command = [*ranks_command, "--output", str(run)]
    with start_ranks(script, command, tmp_path, 2, 1.0, launcher) as process:
        wait_for_step(process, run, 2)
        os.kill(rank_process(process, 1), signal.SIGUSR1)
        output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert "training on from" not in output
    assert "2 ranks with batch statistics of all ranks' samples" in output
    assert "stopped at step" in errors
    assert (run / "stopped").exists()
    assert_goes_on(script, command, run, two_ranks_straight)


def test_ranks_with_other_settings_are_refused(ranks_command: list[str], tmp_path: Path) -> None:
    script = tmp_path / "train_otherwise.py"
    otherwise = "if os.environ['RANK'] == '1':\n    sys.argv.append('training.learning_rate=0.02')\n"
    script.write_text("import os, sys\n" + otherwise + WAITING)
    process = start_ranks(script, [*ranks_command, "--output", str(tmp_path / "run")], tmp_path)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    said = f"error: rank 1 of 2 on {host_name()}: rank 1 was started with other settings than rank 0 (training)"
    assert said in errors


def test_a_killed_rank_ends_the_run_which_goes_on_later(
    script: Path, ranks_command: list[str], two_ranks_straight: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    command = [*ranks_command, "--output", str(run)]
    with start_ranks(script, command, tmp_path, wait_from=4, seconds=5.0) as process:
        wait_for_step(process, run, 4)
        killed = time.monotonic()
        os.kill(rank_process(process, 1), signal.SIGKILL)
        _, errors = process.communicate(timeout=60)
    assert time.monotonic() - killed < 60
    assert process.returncode != 0
    assert "SIGKILL" in errors, "the launcher names the cause"
    # The other rank hears of it at once, unless the launcher is quicker.
    log = run / "errors" / "rank_0.log"
    assert not log.exists() or "another rank has ended" in log.read_text()
    assert group_ends(process.pid, 10)
    assert_goes_on(script, command, run, two_ranks_straight)


def assert_goes_on(script: Path, command: list[str], run: Path, straight: Path) -> None:
    process = start_ranks(script, command, run.parent)
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert output.count("training on from step") == 1
    assert_same_run(run, straight)


@pytest.mark.slow
def test_the_number_of_ranks_may_change_on_the_way(
    script: Path, ranks_command: list[str], two_ranks_straight: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    command = [*ranks_command, "--output", str(run)]
    with start_ranks(script, command, tmp_path, wait_from=3, seconds=1.0) as process:
        wait_for_step(process, run, 3)
        ranks = [rank_process(process, rank) for rank in (0, 1)]
        process.kill()  # the launcher alone: the ranks notice, save and end
        deadline = time.monotonic() + 60
        while any(Path(f"/proc/{rank}").exists() for rank in ranks):
            assert time.monotonic() < deadline, "ranks outlive their launcher"
            time.sleep(0.1)
    process = start_training(command, tmp_path)
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert any(f"training on from step {step}" in output for step in (4, 5))
    for name, value in flat(final_state(two_ranks_straight)["model"]).items():
        torch.testing.assert_close(flat(final_state(run)["model"])[name], value, **CLOSE)
    assert [start["ranks"] for start in json.loads((run / "provenance.json").read_text())] == [2, 1]


def test_what_is_wrong_is_said_by_every_rank(script: Path, ranks_command: list[str], tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    process = start_ranks(script, [*ranks_command, "--output", str(tmp_path / "run")], tmp_path)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "not empty, and not a run of detection3d" in errors
    assert "training/loop.py" not in errors, "no traceback but the launcher's own"


def test_more_ranks_than_samples(script: Path, ranks_command: list[str], tmp_path: Path) -> None:
    process = start_ranks(
        script, [*ranks_command, "training.batch_size=1", "--output", str(tmp_path / "run")], tmp_path
    )
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "training.batch_size is 1, so 2 ranks would not have a sample each; start at most 1 ranks" in errors
