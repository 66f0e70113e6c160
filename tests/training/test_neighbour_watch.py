"""A rank whose main thread hangs ends with a message when the one before it is gone."""

import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from detection3d.training import neighbour_watch
from detection3d.training.launch import Launch
from detection3d.training.neighbour_watch import _accepted
from tests.conftest import ROOT
from tests.small_run import environment

GRACE = 3.0  # seconds
RANK = f"""
GRACE = {GRACE}
"""
RANK += """
import sys, time
from pathlib import Path
import torch
from detection3d.training import neighbour_watch
from detection3d.training.launch import read_launch
from detection3d.training.rank_errors import kept_errors
from detection3d.training.stop import Interrupted
from detection3d.training.team import joined_team

launch = read_launch()
neighbour_watch.GRACE = GRACE
what, rank = sys.argv[1], launch.rank
if what == "unreachable" and rank == 1:
    neighbour_watch._address_toward = lambda host: "203.0.113.7"  # of documentation, nobody's
try:
    with kept_errors(launch, Path("run")) as keep, joined_team(launch, torch.device("cpu"), keep) as team:
        Path(f"joined_{rank}").touch()
        if what == "hang":
            time.sleep(600)
        if rank and what in ("late", "stopped"):
            time.sleep(2 * GRACE)
        if what == "stopped":
            raise Interrupted("stopped")
except Interrupted:
    pass
print("ended", rank)
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


@pytest.mark.parametrize("what", ["late", "stopped"])
def test_a_rank_may_stay_when_the_one_before_it_has_left(tmp_path: Path, port: int, what: str) -> None:
    ranks = start(tmp_path, port, what, 3)
    said = [process.communicate(timeout=60) for process in ranks]
    assert [process.returncode for process in ranks] == [0, 0, 0], said
    assert [out for out, _ in said] == [f"ended {rank}\n" for rank in range(3)]
    assert all("warning" not in errors for _, errors in said)


def test_ranks_that_hang_end_after_the_one_that_is_gone(tmp_path: Path, port: int) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").touch()
    ranks = start(tmp_path, port, "hang", 4)
    wait_until_joined(tmp_path, 4)
    ranks[1].send_signal(signal.SIGKILL)
    killed = time.monotonic()
    said = [process.communicate(timeout=60)[1] for process in ranks]
    assert time.monotonic() - killed < 2.5 * GRACE, "together, not one after the other"
    assert [process.returncode for process in ranks] == [1, -signal.SIGKILL, 1, 1]
    for rank in (0, 2, 3):
        assert f"error: rank {rank} of 4 on " in said[rank]
        assert "rank 1 has ended, look for its message" in said[rank]
        assert "rank 1 has ended" in (tmp_path / "run" / "errors" / f"rank_{rank}.log").read_text()


def test_without_connections_the_run_goes_on(tmp_path: Path, port: int) -> None:
    ranks = start(tmp_path, port, "unreachable", 3)
    said = [process.communicate(timeout=60) for process in ranks]
    assert [process.returncode for process in ranks] == [0, 0, 0], said
    told = [errors for _, errors in said if "is not told: the launcher or a timeout ends it" in errors]
    assert len(told) == 1
    assert "warning: rank 1 on " in told[0]


def wait_until_joined(folder: Path, ranks: int) -> None:
    deadline = time.monotonic() + 60
    while len(list(folder.glob("joined_*"))) < ranks and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.5)


def test_strangers_are_turned_away() -> None:
    token = bytes(range(16))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(10)
        address = listener.getsockname()
        with socket.create_connection(address) as silent, socket.create_connection(address) as other:
            silent.close()
            other.sendall(token[::-1])
            with socket.create_connection(address) as neighbour:
                neighbour.sendall(token[:7])
                neighbour.sendall(token[7:])
                with _accepted(listener, token) as accepted:
                    assert accepted.getpeername() == neighbour.getsockname()


@pytest.mark.parametrize(
    ("toward", "gathered", "expected"),
    [
        ({"first": "10.0.0.2"}, ["10.0.0.1", "10.0.0.2"], "10.0.0.2"),
        ({"first": "127.0.0.1"}, ["127.0.0.1", "127.0.0.1"], "127.0.0.1"),
        ({"first": "127.0.0.1", "10.0.0.2": "10.0.0.1"}, ["127.0.0.1", "10.0.0.2"], "10.0.0.1"),
        ({"first": "::1", "fd00::2": "fd00::1"}, ["::1", "fd00::2"], "fd00::1"),
        ({"first": "", "10.0.0.2": "10.0.0.1"}, ["", "10.0.0.2"], "10.0.0.1"),
    ],
)
def test_a_host_whose_own_name_is_loopback_listens_where_others_reach_it(
    monkeypatch: pytest.MonkeyPatch, toward: dict[str, str], gathered: list[str], expected: str
) -> None:
    monkeypatch.setattr(neighbour_watch, "_address_toward", toward.__getitem__)
    monkeypatch.setattr(neighbour_watch, "_gathered", lambda *_: gathered)
    launch = Launch(0, 2, address="first")
    assert neighbour_watch._own_address(launch, None) == expected  # pyright: ignore[reportArgumentType]
