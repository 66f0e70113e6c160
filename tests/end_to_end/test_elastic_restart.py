"""torchrun starts the ranks again when one of them dies: the run goes on by itself, to the same bits."""

import json
import os
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

from detection3d.training.recorder import read_metrics
from tests.end_to_end.processes import (
    assert_same_run,
    final_state,
    logged,
    rank_process,
    start_ranks,
    wait_for_step,
)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def static(nodes: int = 1, node: int = 0, port: int = 0) -> list[str]:
    address = ["--master-addr", "127.0.0.1", "--master-port", str(port or free_port())]
    return ["--nnodes", str(nodes), "--node-rank", str(node), *address]


def elastic(nodes: str, port: int = 0, host: bool = True) -> list[str]:
    where = ["--rdzv-endpoint", f"127.0.0.1:{port or free_port()}", "--rdzv-id", "test"]
    conf = f"is_host={int(host)},last_call_timeout=2,join_timeout=60"
    return ["--nnodes", nodes, "--rdzv-backend", "c10d", *where, "--rdzv-conf", conf, "--local-addr", "127.0.0.1"]


@pytest.mark.parametrize(
    ("kind", "victims"),
    [
        pytest.param("static", [0], id="static, rank 0"),
        pytest.param("elastic", [1], id="elastic, rank 1", marks=pytest.mark.slow),
        pytest.param("static", [1], id="static, rank 1", marks=pytest.mark.slow),
        pytest.param("elastic", [0, 1], id="elastic, both in turn", marks=pytest.mark.slow),
    ],
)
def test_a_killed_rank_is_started_again(
    kind: str, victims: list[int], script: Path, ranks_command: list[str], two_ranks_straight: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    rendezvous = static() if kind == "static" else elastic("1:4")
    launcher = [*rendezvous, "--nproc-per-node", "2", "--max-restarts", str(len(victims)), "--monitor-interval", "0.1"]
    command = [*ranks_command, "--output", str(run)]
    with start_ranks(script, command, tmp_path, 4, 2.0, launcher) as process:
        for number, rank in enumerate(victims):
            wait_for_step(process, run, 4 + number)
            os.kill(rank_process(process, rank), signal.SIGKILL)
        output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert output.count("training on from step 3") == len(victims)
    assert_same_run(run, two_ranks_straight)
    assert len(json.loads((run / "provenance.json").read_text())) == 1 + len(victims)


@pytest.mark.slow
def test_nodes_may_come_and_go(script: Path, ranks_command: list[str], tmp_path: Path) -> None:
    """Two launchers with a rank each. One is lost, and the other goes on alone; another comes, and both go on."""
    run, port = tmp_path / "run", free_port()
    command = [*ranks_command, "training.steps=16", "training.checkpoint_every=2", "--output", str(run)]

    def start(host: bool) -> subprocess.Popen[str]:
        launcher = [*elastic("1:2", port, host), "--nproc-per-node", "1", "--max-restarts", "5"]
        launcher += ["--monitor-interval", "0.1"]
        # Without it torchrun tells a node that comes later nothing of the store, for which it waits in vain.
        return start_ranks(script, command, tmp_path, 1, 1.5, launcher, TORCH_DISABLE_SHARE_RDZV_TCP_STORE="1")

    with start(host=True) as first:
        with start(host=False) as second:
            wait_for_ranks(first, run, [2])
            step = len(read_metrics(run / "metrics.jsonl"))
            wait_for_step(first, run, step + 2)
            second.kill()
        wait_for_ranks(first, run, [2, 1])
        with start(host=False) as third:
            wait_for_ranks(first, run, [2, 1, 2])
            _, errors = first.communicate(timeout=120)
            assert first.returncode == 0, errors
            third.communicate(timeout=60)
    assert [row["step"] for row in logged(run)] == list(range(1, 17))
    assert final_state(run, 16)["step"] == 16


def wait_for_ranks(process: subprocess.Popen[str], run: Path, wanted: list[int]) -> None:
    """Wait until the run was last started by these numbers of ranks, the same number in a row counting once."""
    deadline = time.monotonic() + 120
    found: list[int] = []
    while found[-len(wanted) :] != wanted:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, f"starts on {found} ranks"
        time.sleep(0.2)
        if (run / "provenance.json").exists():
            starts = [start["ranks"] for start in json.loads((run / "provenance.json").read_text())]
            found = [ranks for ranks, before in zip(starts, [0, *starts], strict=False) if ranks != before]
