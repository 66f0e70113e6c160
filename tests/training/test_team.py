"""Ranks that can't join say why; what they end with is kept for each."""

import socket
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from detection3d.errors import UserError
from detection3d.training import team
from detection3d.training.launch import Launch, host_name
from detection3d.training.rank_errors import kept_errors
from detection3d.training.team import Team, joined_team
from tests.training.steps import CPU


def test_a_port_that_is_in_use_is_named() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(UserError, match=f"port {port} is in use"), joined_team(Launch(0, 2, port=port), CPU):
            pass


def test_a_store_that_cannot_be_reached_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(team, "PATIENCE", timedelta(seconds=0.5))
    with socket.socket() as silent:  # bound and not listening, so that nobody else takes the port
        silent.bind(("127.0.0.1", 0))
        port = silent.getsockname()[1]
        refusal = pytest.raises(UserError, match=rf"could not join the others at 127.0.0.1:{port}.*NCCL_SOCKET_IFNAME")
        with refusal, joined_team(Launch(1, 2, port=port), CPU):
            pass


def test_an_unknown_host_is_named_and_one_that_becomes_known_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(team, "NAME_PATIENCE", 0.2)
    refusal = pytest.raises(UserError, match=r"no host is known as 'node0\.invalid', where the ranks should meet")
    with refusal, joined_team(Launch(1, 2, address="node0.invalid", port=29500), CPU):
        pass
    monkeypatch.setattr(team, "NAME_PATIENCE", 30.0)
    known, asked = socket.getaddrinfo, []

    def later(*arguments: Any) -> Any:
        asked.append(arguments[0])
        if len(asked) == 1:
            raise socket.gaierror(socket.EAI_NONAME, "not yet")
        return known("127.0.0.1", *arguments[1:])

    monkeypatch.setattr(socket, "getaddrinfo", later)
    team._find_host(Launch(1, 2, address="node0.invalid", port=29500))
    assert asked == ["node0.invalid"] * 2


def test_one_process_joins_nobody() -> None:
    with joined_team(Launch(), CPU) as alone:
        assert alone == Team()


def test_each_rank_keeps_its_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.yaml").touch()
    for error in (UserError("wrong setting"), RuntimeError("a defect")):
        with pytest.raises(type(error)), kept_errors(Launch(3, 4), tmp_path):
            raise error
    kept = (tmp_path / "errors" / "rank_3.log").read_text()
    assert kept.count(f"rank 3 of 4 on {host_name()}") == 2
    assert "Traceback" in kept
    assert kept.index("UserError: wrong setting") < kept.index("RuntimeError: a defect")
    said = capsys.readouterr().err
    assert said == f"rank 3 of 4 on {host_name()} failed, see {tmp_path / 'errors' / 'rank_3.log'}\n"


@pytest.mark.parametrize("launch", [Launch(), Launch(0, 2)])
def test_nothing_is_kept_of_one_process_or_outside_of_a_run(launch: Launch, tmp_path: Path) -> None:
    if launch.size == 1:
        (tmp_path / "config.yaml").touch()
    with pytest.raises(UserError), kept_errors(launch, tmp_path):
        raise UserError("wrong")
    assert not (tmp_path / "errors").exists()
