"""Training started by torchrun: one run on several processes, that stops, dies and goes on as one."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from detection3d.training.checkpoint import last_checkpoint
from tests.conftest import ROOT
from tests.end_to_end.processes import WAITING, final_state, logged, start_training, wait_for_step
from tests.small_run import environment, group_ends, small_settings
from tests.training.steps import differences, flat

CLOSE = {"rtol": 2e-3, "atol": 2e-4}  # float32, other sums, six steps of Adam; exact in float64: test_distributed


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """torchrun starts files."""
    path = tmp_path_factory.mktemp("script") / "train_waiting.py"
    path.write_text(WAITING)
    return path


@pytest.fixture(scope="module")
def command(store: Path) -> list[str]:
    return ["tiny", *small_settings(data=store)]


def start_ranks(
    script: Path, arguments: list[str], cwd: Path, wait_from: int = 99, seconds: float = 0.0, ranks: int = 2
) -> subprocess.Popen[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    waiting = [str(script), str(wait_from), str(seconds)]
    return subprocess.Popen(
        [*launcher, *waiting, *arguments, "--device", "cpu"],
        cwd=cwd,
        env=environment(PYTHONPATH=str(ROOT)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.fixture(scope="module")
def straight(script: Path, command: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run on two ranks that was never stopped."""
    run = tmp_path_factory.mktemp("straight") / "run"
    process = start_ranks(script, [*command, "--output", str(run)], run.parent)
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert output.count("trained 6 steps") == 1, "one rank tells"
    return run


def test_two_ranks_train_what_one_trains(command: list[str], straight: Path, tmp_path: Path) -> None:
    process = start_training([*command, "--output", str(tmp_path / "run")], tmp_path)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    alone, together = final_state(tmp_path / "run"), final_state(straight)
    for part in ("model", "average"):
        ours, theirs = flat(together[part]), flat(alone[part])
        assert ours.keys() == theirs.keys()
        for name, value in theirs.items():
            if isinstance(value, torch.Tensor):
                torch.testing.assert_close(ours[name], value, **CLOSE, msg=lambda text, name=name: f"{name}: {text}")
    for ours, theirs in zip(logged(straight), logged(tmp_path / "run"), strict=True):
        for task in ("classification", "box", "orientation"):
            assert ours[f"loss/{task}"] == pytest.approx(theirs[f"loss/{task}"], rel=0.01), "the whole batch's loss"
    assert [start["ranks"] for start in json.loads((straight / "provenance.json").read_text())] == [2]


def test_a_stop_that_reaches_one_rank_stops_all_and_goes_on_to_the_same_bits(
    script: Path, command: list[str], straight: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    command = [*command, "--output", str(run)]
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
    assert_goes_on(script, command, run, straight)


def test_a_signal_to_every_process_saves_too(script: Path, command: list[str], straight: Path, tmp_path: Path) -> None:
    """As a cluster stops a job: each rank has it from the cluster and once more from the launcher."""
    run = tmp_path / "run"
    command = [*command, "--output", str(run)]
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
    assert_goes_on(script, command, run, straight)


def test_ranks_with_other_settings_are_refused(command: list[str], tmp_path: Path) -> None:
    script = tmp_path / "train_otherwise.py"
    otherwise = "if os.environ['RANK'] == '1':\n    sys.argv.append('training.learning_rate=0.02')\n"
    script.write_text("import os, sys\n" + otherwise + WAITING)
    process = start_ranks(script, [*command, "--output", str(tmp_path / "run")], tmp_path)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "rank 1 was started with other settings than rank 0 (training)" in errors


def test_a_killed_rank_ends_the_run_which_goes_on_later(
    script: Path, command: list[str], straight: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    command = [*command, "--output", str(run)]
    with start_ranks(script, command, tmp_path, wait_from=4, seconds=5.0) as process:
        wait_for_step(process, run, 4)
        killed = time.monotonic()
        os.kill(rank_process(process, 1), signal.SIGKILL)
        _, errors = process.communicate(timeout=60)
    assert time.monotonic() - killed < 60
    assert process.returncode != 0
    assert "SIGKILL" in errors, "the launcher names the cause"
    assert group_ends(process.pid, 10)
    assert_goes_on(script, command, run, straight)


def assert_goes_on(script: Path, command: list[str], run: Path, straight: Path) -> None:
    process = start_ranks(script, command, run.parent)
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert output.count("training on from step") == 1
    assert differences(final_state(run), final_state(straight)) == []
    assert [row["step"] for row in logged(run)] == [1, 2, 3, 4, 5, 6]
    assert logged(run) == logged(straight)


@pytest.mark.slow
def test_the_number_of_ranks_may_change_on_the_way(
    script: Path, command: list[str], straight: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    command = [*command, "--output", str(run)]
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
    for name, value in flat(final_state(straight)["model"]).items():
        torch.testing.assert_close(flat(final_state(run)["model"])[name], value, **CLOSE)
    assert [start["ranks"] for start in json.loads((run / "provenance.json").read_text())] == [2, 1]


def test_what_is_wrong_is_said_by_every_rank(script: Path, command: list[str], tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    process = start_ranks(script, [*command, "--output", str(tmp_path / "run")], tmp_path)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "not empty, and not a run of detection3d" in errors
    assert "training/loop.py" not in errors, "no traceback but the launcher's own"


def test_a_batch_that_cannot_be_shared(script: Path, command: list[str], tmp_path: Path) -> None:
    process = start_ranks(script, [*command, "training.batch_size=3", "--output", str(tmp_path / "run")], tmp_path)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "a batch of 3 samples can't be shared by 2 ranks" in errors


def rank_process(launcher: subprocess.Popen[str], rank: int) -> int:
    """The process of a rank: the launcher starts them in order."""
    children = subprocess.run(["pgrep", "-P", str(launcher.pid)], capture_output=True, text=True, check=True)
    found = sorted(int(line) for line in children.stdout.split())
    wanted = [pid for pid in found if f"LOCAL_RANK={rank}" in Path(f"/proc/{pid}/environ").read_text().split("\0")]
    assert len(wanted) == 1, found
    return wanted[0]
