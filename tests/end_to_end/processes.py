"""Training in a process of its own that waits at a chosen step, so that a signal hits it there and nowhere else."""

import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detection3d.training.checkpoint import load_checkpoint
from detection3d.training.recorder import read_metrics
from tests.conftest import ROOT
from tests.small_run import environment
from tests.training.steps import differences

WAITING = """
import sys, time
from detection3d.cli.train import entry
from detection3d.training import loop

step_itself, wait_from, seconds = loop.train_step, int(sys.argv.pop(1)), float(sys.argv.pop(1))

def train_step(state, batch, config):
    if state.step >= wait_from:
        time.sleep(seconds)
    return step_itself(state, batch, config)

loop.train_step = train_step
entry()
"""


KILLED = """
import os, signal, sys, threading
from pathlib import Path
from detection3d import files
from detection3d.cli.train import entry
from detection3d.training import loop

kind, _, what = sys.argv.pop(1).partition(" ")
step_itself, sync, rename = loop.train_step, os.fsync, Path.replace

def kill(*_):
    os.kill(os.getpid(), signal.SIGKILL)

def train_step(state, batch, config):
    if kind == "step" and state.step == int(what):
        kill()
    if kind == "seconds" and not threading.enumerate()[1:]:
        timer = threading.Timer(float(what), kill)
        timer.daemon = True
        timer.start()
    return step_itself(state, batch, config)

def fsync(descriptor):
    if kind == "write" and f".{what}." in os.readlink(f"/proc/self/fd/{descriptor}"):
        os.ftruncate(descriptor, os.fstat(descriptor).st_size // 2)
        kill()
    sync(descriptor)

def replace(path, target):
    if kind == "rename" and Path(target).name == what:
        kill()
    return rename(path, target)

loop.train_step, files.os.fsync, Path.replace = train_step, fsync, replace
entry()
"""
"""A training that kills itself: at `step 2`, `seconds 0.3` after the first step began, at the `write` of half a file,
or at the `rename` that would show it."""


def start_killed(arguments: Sequence[str], cwd: Path, moment: str) -> subprocess.Popen[str]:
    """Start a training that a kill -9 ends at the moment, if it comes."""
    return _start([sys.executable, "-c", KILLED, moment, *arguments, "--device", "cpu"], cwd)


def start_training(
    arguments: Sequence[str], cwd: Path, wait_from: int = 99, seconds: float = 0.0
) -> subprocess.Popen[str]:
    """Start a training that sleeps before each step once `wait_from` steps are done."""
    command = [sys.executable, "-c", WAITING, str(wait_from), str(seconds), *arguments, "--device", "cpu"]
    return _start(command, cwd)


def _start(command: list[str], cwd: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command,
        cwd=cwd,
        env=environment(PYTHONPATH=str(ROOT)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def start_ranks(
    script: Path,
    arguments: Sequence[str],
    cwd: Path,
    wait_from: int = 99,
    seconds: float = 0.0,
    launcher: Sequence[str] = ("--standalone", "--nproc-per-node", "2"),
    **variables: str,
) -> subprocess.Popen[str]:
    """Start a training on several ranks by torchrun, which takes `launcher`; `script` holds `WAITING`."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", *launcher]
    return subprocess.Popen(
        [*torchrun, str(script), str(wait_from), str(seconds), *arguments, "--device", "cpu"],
        cwd=cwd,
        env=environment(PYTHONPATH=str(ROOT), **variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def rank_process(launcher: subprocess.Popen[str], rank: int) -> int:
    """Return the process of a rank that torchrun started on this node."""
    children = subprocess.run(["pgrep", "-P", str(launcher.pid)], capture_output=True, text=True, check=True)
    found = sorted(int(line) for line in children.stdout.split())
    wanted = [pid for pid in found if f"LOCAL_RANK={rank}" in Path(f"/proc/{pid}/environ").read_text().split("\0")]
    assert len(wanted) == 1, found
    return wanted[0]


def wait_for_step(process: subprocess.Popen[str], run: Path, step: int) -> None:
    """Return when the run has logged the step."""
    deadline = time.monotonic() + 120
    while not any(row["step"] == step for row in read_metrics(run / "metrics.jsonl")):
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            raise AssertionError(f"ended before step {step}: {process.communicate()}")
        time.sleep(0.01)


def final_state(run: Path, step: int = 6) -> dict[str, Any]:
    return load_checkpoint(run / "checkpoints" / f"step_{step:08d}.pt")


def logged(run: Path) -> list[dict[str, Any]]:
    """The log without what depends on the machine's mood."""
    rows = read_metrics(run / "metrics.jsonl")
    return [{name: value for name, value in row.items() if name[:5] not in ("time/", "memor")} for row in rows]


def assert_same_run(run: Path, straight: Path) -> None:
    """Compare the end and the log of a run with those of one that was never stopped."""
    assert differences(final_state(run), final_state(straight)) == []
    assert [row["step"] for row in logged(run)] == [1, 2, 3, 4, 5, 6]
    assert logged(run) == logged(straight)
