"""A rank whose main thread hangs ends with a message when the one before it is gone."""

import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from detection3d.training.neighbour_watch import GRACE
from tests.conftest import ROOT
from tests.small_run import environment

RANK = """
import sys, time
from pathlib import Path
import torch
from detection3d.training.launch import read_launch
from detection3d.training.rank_errors import kept_errors
from detection3d.training.team import joined_team

launch = read_launch()
with kept_errors(launch, Path("run")) as keep, joined_team(launch, torch.device("cpu"), keep) as team:
    Path(f"joined_{team.rank}").touch()
    if sys.argv[1] == "hang":
        time.sleep(600)
print("ended", team.rank)
"""


@pytest.fixture
def port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def start(folder: Path, port: int, what: str, size: int) -> list[subprocess.Popen[str]]:
    launched = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": "1"}
    ranks = []
    for rank in map(str, range(size)):
        variables = environment(PYTHONPATH=str(ROOT), RANK=rank, LOCAL_RANK=rank, **launched)
        command = [sys.executable, "-c", RANK, what]
        ranks.append(
            subprocess.Popen(
                command, cwd=folder, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
        )
    return ranks


def test_all_leave_when_all_have_come_to_the_end(tmp_path: Path, port: int) -> None:
    ranks = start(tmp_path, port, "end", 3)
    said = [process.communicate(timeout=60) for process in ranks]
    assert [process.returncode for process in ranks] == [0, 0, 0], said
    assert [out for out, _ in said] == [f"ended {rank}\n" for rank in range(3)]


def test_a_rank_that_hangs_ends_after_the_one_before_it(tmp_path: Path, port: int) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").touch()
    ranks = start(tmp_path, port, "hang", 3)
    deadline = time.monotonic() + 60
    while len(list(tmp_path.glob("joined_*"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.5)
    ranks[1].send_signal(signal.SIGKILL)
    killed = time.monotonic()
    said = [process.communicate(timeout=60)[1] for process in ranks]
    assert time.monotonic() - killed < 3 * GRACE, "one after the other"
    assert [process.returncode for process in ranks] == [1, -signal.SIGKILL, 1]
    for rank, before in ((2, 1), (0, 2)):
        assert f"error: rank {rank} of 3 on " in said[rank]
        assert f"rank {before} has ended, look for its message" in said[rank]
        assert f"rank {before} has ended" in (tmp_path / "run" / "errors" / f"rank_{rank}.log").read_text()
