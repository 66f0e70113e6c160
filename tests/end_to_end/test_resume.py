"""A run that is stopped in any way and started again ends in the same bits as one that never stopped."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from detection3d.training.checkpoint import last_checkpoint
from tests.conftest import ROOT
from tests.end_to_end.processes import final_state, logged, start_killed, start_training, wait_for_step
from tests.small_run import environment, group_ends, small_settings
from tests.training.steps import differences


@pytest.fixture(scope="module")
def command(store: Path) -> list[str]:
    return ["tiny", *small_settings(data=store)]


@pytest.fixture(scope="module")
def straight(command: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that was never stopped."""
    run = tmp_path_factory.mktemp("straight") / "run"
    process = start_training([*command, "--output", str(run)], run.parent)
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert "trained 6 steps" in output
    return run


def assert_goes_on_to_the_same_bits(command: list[str], run: Path, straight: Path) -> None:
    process = start_training(command, run.parent)
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert "training on from step" in output
    ours, theirs = final_state(run), final_state(straight)
    assert differences(ours, theirs) == []
    assert {"model", "average", "optimizer", "schedule", "scaler", "generator", "step"} <= ours.keys()
    assert int(ours["model"]["fork.step"]) == 6
    assert [row["step"] for row in logged(run)] == [1, 2, 3, 4, 5, 6]
    assert logged(run) == logged(straight)
    assert not (run / "stopped").exists()
    starts = json.loads((run / "provenance.json").read_text())
    assert len(starts) == 2


@pytest.mark.parametrize(
    ("moment", "taken_up", "left"),
    [
        ("step 2", None, []),
        ("step 5", 3, []),
        ("write step_00000006.pt", 3, [".step_00000006.pt."]),
    ],
)
def test_kill_9(command, straight, tmp_path, moment, taken_up, left):
    """Before the first checkpoint, between two of them, and while one is written."""
    run = tmp_path / "run"
    killed_at(moment, command, run)
    path = last_checkpoint(run / "checkpoints")
    assert (path and path.name) == (taken_up and f"step_{taken_up:08d}.pt")
    rests = [file.name for file in run.rglob("*.tmp")]
    assert [name.rsplit(".", 2)[0] + "." for name in rests] == left
    # what a process that is killed while it writes a line leaves behind
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "loss/cl')
    assert_ends_in_the_same_bits(command, run, straight)


KILLS = random.Random(5)
WRITES = [
    f"{kind} {name}"
    for kind in ("write", "rename")
    for name in ("step_00000003.pt", "step_00000006.pt", "last", "config.yaml", "provenance.json")
]


@pytest.mark.slow
@pytest.mark.parametrize(
    "moment", [*KILLS.sample(WRITES, 8), *(f"seconds {KILLS.uniform(0.0, 0.8):.3f}" for _ in range(12))]
)
def test_kill_9_at_a_random_moment(command, straight, tmp_path, moment):
    """Twenty of them: eight while a file is written, twelve at any time; some come when the run has just ended."""
    run = tmp_path / "run"
    killed_at(moment, command, run, surely=not moment.startswith("seconds"))
    assert_ends_in_the_same_bits(command, run, straight)


def killed_at(moment: str, command: list[str], run: Path, *, surely: bool = True) -> None:
    process = start_killed([*command, "--output", str(run)], run.parent, moment)
    _, errors = process.communicate(timeout=120)
    assert process.returncode in ((-signal.SIGKILL,) if surely else (-signal.SIGKILL, 0)), errors


def assert_ends_in_the_same_bits(command: list[str], run: Path, straight: Path) -> None:
    process = start_training([*command, "--output", str(run)], run.parent)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert differences(final_state(run), final_state(straight)) == []
    assert logged(run) == logged(straight)
    assert not list(run.rglob("*.tmp"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 75), (signal.SIGUSR1, 75), (signal.SIGHUP, 75)]
)
def test_asked_to_stop_it_saves_and_says_how_to_go_on(command, straight, tmp_path, number, status):
    run = tmp_path / "run"
    command = [*command, "--output", str(run)]
    with start_training(command, tmp_path, wait_from=4, seconds=1) as process:
        wait_for_step(process, run, 4)
        process.send_signal(number)
        _, errors = process.communicate(timeout=120)
    assert process.returncode == status
    path = last_checkpoint(run / "checkpoints")
    # The signal meets step 4 just after it was logged, or step 5.
    step = int(path.stem.removeprefix("step_"))
    assert step in (4, 5)
    assert errors == f"error: stopped at step {step}, saved in {path}; run the same command to go on\n"
    assert (run / "stopped").read_text() == f"stopped at step {step}; run the same command to go on\n"
    assert_goes_on_to_the_same_bits(command, run, straight)


@pytest.mark.parametrize("ignored", [False, True], ids=["", "ignored at the start"])
def test_a_notice_while_it_starts_is_heard_when_it_has_started(command, tmp_path, ignored):
    script = (
        "import os, signal\n"
        "from detection3d import config_file\n"
        "real = config_file.load_config\n"
        "def load_config(*arguments):\n"
        "    os.kill(os.getpid(), signal.SIGUSR1)\n"
        "    return real(*arguments)\n"
        "config_file.load_config = load_config\n"
        "from detection3d.cli.train import entry\n"
        "entry()\n"
    )
    training = [sys.executable, "-c", script, *command, "--device", "cpu", "--output", str(tmp_path / "run")]
    # As the batch scripts start torchrun, so that it does not die of what is meant for its ranks.
    trap = "trap '' USR1;" if ignored else ""
    launcher = ["bash", "-c", f'{trap} exec "$@"', "ranks"]
    variables = environment(PYTHONPATH=str(ROOT))
    done = subprocess.run(
        [*launcher, *training], cwd=tmp_path, env=variables, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 75, done.stderr
    assert "stopped at step 1, saved in" in done.stderr


@pytest.mark.slow
def test_two_loader_processes_give_the_same_bits(command, straight, tmp_path):
    process = start_training([*command, "data.workers=2", "--output", str(tmp_path / "run")], tmp_path)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert differences(final_state(tmp_path / "run"), final_state(straight)) == []


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP])
def test_a_cluster_that_stops_every_process_of_a_training_loses_no_step(command, straight, tmp_path, number):
    run = tmp_path / "run"
    command = [*command, "data.workers=2", "--output", str(run)]
    with start_training(command, tmp_path, wait_from=4, seconds=1) as process:
        wait_for_step(process, run, 4)
        os.killpg(process.pid, number)
        started = time.monotonic()
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 75
    assert "run the same command to go on" in errors
    assert time.monotonic() - started < 15, "the workers are ended, not waited for"
    assert group_ends(process.pid, seconds=10)
    assert_goes_on_to_the_same_bits(command, run, straight)


@pytest.mark.slow
def test_loader_processes_end_with_a_training_that_is_killed(command, tmp_path):
    command = [*command, "data.workers=2", "--output", str(tmp_path / "run")]
    with start_training(command, tmp_path, wait_from=2, seconds=60) as process:
        wait_for_step(process, tmp_path / "run", 2)
        process.send_signal(signal.SIGKILL)
    assert group_ends(process.pid, seconds=10)
