"""What launchers say in the environment, and which GPU a rank takes by it."""

import subprocess
import sys

import pytest

from detection3d.cli.device import gpu_of_rank
from detection3d.errors import UserError
from detection3d.training.launch import Launch, first_host, read_launch
from tests.conftest import ROOT
from tests.small_run import environment

TORCHRUN = {
    "RANK": "3",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "node7",
    "MASTER_PORT": "29500",
    "TORCHELASTIC_RUN_ID": "42",
    "TORCHELASTIC_MAX_RESTARTS": "3",
    "TORCHELASTIC_RESTART_COUNT": "1",
    "TORCHELASTIC_USE_AGENT_STORE": "True",
}
SLURM = {
    "SLURM_STEP_NUM_TASKS": "5",
    "SLURM_NTASKS": "5",
    "SLURM_PROCID": "4",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "2",
    "SLURM_JOB_ID": "1000",
    "SLURM_STEP_ID": "2",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2),1",
    "SLURM_STEP_NODELIST": "gpu[03-05]",
}


def test_torchrun() -> None:
    launch = read_launch(TORCHRUN)
    assert launch == Launch(3, 4, 1, 2, "node7", 29500, store_is_there=True, run="42", restarts_left=2)


def test_srun_without_torchrun() -> None:
    assert read_launch(SLURM) == Launch(4, 5, 0, 1, "gpu03", 20000 + 31002 % 12000, run="slurm-1000.2")
    assert read_launch({**SLURM, "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "5"}).port == 5
    assert read_launch({**SLURM, **TORCHRUN}).run == "42", "torchrun in a step of several tasks"


def test_one_process() -> None:
    assert read_launch({}) == Launch()
    assert read_launch({"RANK": "1"}) == Launch(), "somebody else's variable"
    # A batch script is one process, whatever the job's tasks.
    assert read_launch({"SLURM_NTASKS": "8", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}) == Launch()


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE=2 is set, but RANK, MASTER_ADDR, MASTER_PORT is not"),
        ({**TORCHRUN, "RANK": "4"}, "RANK is 4 and WORLD_SIZE 4"),
        ({**TORCHRUN, "MASTER_PORT": "http"}, "the environment variable MASTER_PORT is 'http', not a number"),
        ({"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1"}, "srun started 2 tasks, but SLURM_LOCALID"),
    ],
)
def test_what_is_missing(variables: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_launch(variables)


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("node1", "node1"), ("gpu[03-05,9],login", "gpu03"), ("a-1,b[1-2]", "a-1"), ("r[2]n[07-08]", "r2n07")],
)
def test_first_host(nodes: str, first: str) -> None:
    assert first_host(nodes) == first


def test_the_gpu_of_a_rank() -> None:
    launch = read_launch(TORCHRUN)
    assert gpu_of_rank(None, launch, visible=2) == 1
    assert gpu_of_rank(None, launch, visible=1) == 0, "the launcher shows each rank its own alone"
    assert gpu_of_rank(3, Launch(1, 2, 0, 1), visible=4) == 3, "one rank on this node may choose"
    with pytest.raises(UserError, match="--device cuda:1: each rank takes a GPU of its own"):
        gpu_of_rank(1, launch, visible=2)
    with pytest.raises(UserError, match="rank 1 of 2 has no LOCAL_RANK"):
        gpu_of_rank(None, Launch(1, 2), visible=2)
    with pytest.raises(UserError, match=r"number 5 on this node \(from 0\), which shows it 4 GPUs; start at most 4"):
        gpu_of_rank(None, Launch(5, 8, 5, 8), visible=4)


@pytest.mark.parametrize(
    ("variables", "ends"),
    [({"TORCHELASTIC_RUN_ID": "1"}, "asked"), (TORCHRUN, "killed"), ({}, "lives")],
    ids=["one rank", "with restarts left", "without a launcher"],
)
def test_a_rank_whose_launcher_dies_while_it_starts_ends_too(variables: dict[str, str], ends: str) -> None:
    """The launcher is gone before torch is there; nothing but the system could tell the rank."""
    rank = (
        "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(print('asked', flush=True)));"
        "from detection3d.training.launch import end_with_launcher; end_with_launcher();"
        "print('ready', flush=True); time.sleep(5); print('lives', flush=True)"
    )
    start = f"subprocess.Popen([sys.executable, '-c', {rank!r}], start_new_session=True)"
    launcher = [sys.executable, "-c", f"import subprocess, sys; {start}.wait()"]
    variables = environment(PYTHONPATH=str(ROOT), **variables)
    with subprocess.Popen(launcher, stdout=subprocess.PIPE, text=True, env=variables) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.kill()
        assert process.stdout.read().strip() == ends.replace("killed", "")  # the pipe's end is the rank's
