"""Preparation on a local Ray cluster of two workers: the same store, lost workers tried again, clear refusals."""

import os
import socket
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from detection3d.cli import prepare_waymo
from detection3d.cli.run import run
from detection3d.data.store import verify
from tests.conftest import ROOT
from tests.data.test_preparation import contents
from tests.small_run import tool

needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="needs Ray: pip install 'detection3d[cluster]'")

# In a process of its own: Ray leaves threads and handlers behind, and warns where the tests allow none.
TASKS = """
import os, signal, sys
from pathlib import Path
from detection3d.data.preparation_ray import LOCAL, run_on_ray
from detection3d.errors import UserError

folder = Path(sys.argv[1])

def work(number):
    mark = folder / str(number)
    if number == 3 and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)  # as a machine that is lost
    if number == -1:
        raise UserError("told by a task")
    if number == -2:
        os.kill(os.getpid(), signal.SIGKILL)
    return number**2, os.getpid(), os.environ["NUMBA_NUM_THREADS"]

found = list(run_on_ray(work, range(8), LOCAL, 2))
assert sorted(result for result, _, _ in found) == [number**2 for number in range(8)], found
assert 2 <= len({process for _, process, _ in found}) <= 3, found
assert {threads for _, _, threads in found} == {"1"}
for number, words in ((-1, "told by a task"), (-2, "a worker process was killed")):
    try:
        list(run_on_ray(work, [1, number, 2], LOCAL, 2))
    except UserError as error:
        assert words in str(error), error
    else:
        raise AssertionError(number)
print("done")
"""


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


@pytest.mark.slow
@needs_ray
def test_tasks_on_two_workers(tmp_path: Path) -> None:
    command = [sys.executable, "-c", TASKS, str(tmp_path)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("done\n")


@pytest.mark.slow
@needs_ray
def test_the_tool_prepares_the_same_store(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    options = ("--rig", "tiny", "--segments", "4", "--frames", "2", "--seed", "5")
    subprocess.run(tool("make_synthetic", "--output", raw, *options), check=True, capture_output=True)
    for name, more in (("here", ("--workers", "1")), ("ray", ("--ray", "local", "--workers", "2"))):
        command = tool("prepare_waymo", "--input", raw, "--output", tmp_path / name, *more)
        done = subprocess.run(
            command, env=environment(), capture_output=True, text=True, check=False, timeout=300, start_new_session=True
        )
        assert done.returncode == 0, done.stderr
        assert "4 segments, 8 frames" in done.stdout
    assert contents(tmp_path / "ray") == contents(tmp_path / "here")
    assert verify(tmp_path / "ray") == []


@needs_ray
def test_a_place_where_nobody_answers_is_told_at_once(tmp_path: Path, capfd) -> None:
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        port = place.getsockname()[1]
    (tmp_path / "a.tfrecord").touch()
    command = ["--input", str(tmp_path), "--output", str(tmp_path / "out"), "--ray", f"ray://127.0.0.1:{port}"]
    assert run(prepare_waymo.main, command) == 1
    assert f"--ray ray://127.0.0.1:{port}: no Ray cluster answers there" in capfd.readouterr().err


def test_without_ray_its_package_is_named(tmp_path: Path, capfd, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    (tmp_path / "a.tfrecord").touch()
    command = ["--input", str(tmp_path), "--output", str(tmp_path / "out"), "--ray", "auto"]
    assert run(prepare_waymo.main, command) == 1
    assert "pip install 'detection3d[cluster]'" in capfd.readouterr().err
