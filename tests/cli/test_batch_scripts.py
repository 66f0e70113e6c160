"""Slurm's batch scripts can be read, and say the same; that they work is tried in tests/end_to_end/test_slurm.py."""

import subprocess

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
