"""Slurm's batch scripts can be read, and say the same; that they work is tried in tests/end_to_end/test_slurm.py."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT

SCRIPTS = ROOT / "tools" / "slurm"


def options(name: str) -> dict[str, str]:
    lines = (SCRIPTS / name).read_text().splitlines()
    return dict(line.removeprefix("#SBATCH --").partition("=")[::2] for line in lines if line.startswith("#SBATCH"))


@pytest.mark.parametrize("name", ["train.sbatch", "train_array.sbatch"])
def test_bash_can_read_it(name: str) -> None:
    checked = subprocess.run(["bash", "-n", SCRIPTS / name], capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stderr) == (0, "")
    assert {"requeue", "signal", "time", "nodes"} <= options(name).keys()


def test_both_ask_for_the_same() -> None:
    one, many = options("train.sbatch"), options("train_array.sbatch")
    own = {"job-name", "output"}
    assert {name: value for name, value in many.items() if name not in {*own, "array"}} == {
        name: value for name, value in one.items() if name not in own
    }


def test_a_cluster_that_does_not_queue_again_is_told(tmp_path: Path) -> None:
    run = tmp_path / "a run"
    programs = {"srun": 'echo "stopped at step 5" > "$RUN/stopped"', "scontrol": '[ "$1" = show ] && echo node1'}
    for name, line in programs.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{line}\n")
        (tmp_path / name).chmod(0o755)
    slurm = {"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "1", "SLURM_JOB_NODELIST": "node1", "RUN": str(run)}
    environment = {**os.environ, **slurm, "SLURM_SUBMIT_DIR": str(ROOT), "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    ended = subprocess.run(
        ["bash", SCRIPTS / "train.sbatch", "tiny"], env=environment, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 75
    assert f"submit it once more with the same command and RUN={run} to go on" in ended.stderr
