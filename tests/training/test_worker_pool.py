"""Tasks in processes: what one of them does to the others."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from detection3d.training import worker_pool
from detection3d.training.worker_pool import run_each
from tests.conftest import ROOT
from tests.small_run import environment
from tests.training import tasks


def test_one_process_does_many_tasks_in_order():
    outcomes = list(run_each(tasks.tell, ["a", "b", "c"], processes=1))
    assert [item.task for item in outcomes] == ["a", "b", "c"]
    results = [item.result for item in outcomes]
    assert all(result is not None for result in results)
    assert {result[1] for result in results if result} == {0}
    pids = {result[2] for result in results if result}
    assert len(pids) == 1
    assert os.getpid() not in pids


def test_what_goes_wrong_in_a_task_stops_no_other():
    todo = ["a", "user error", "b", "defect", "c", "killed", "d", "exit", "e"]
    outcomes = {item.task: item for item in run_each(tasks.tell, todo, processes=2)}
    assert set(outcomes) == set(todo)
    for name in "abcde":
        assert outcomes[name].failure is None
        assert outcomes[name].result[0] == name
    assert outcomes["user error"].failure == "wrong setting"
    assert outcomes["defect"].failure == "KeyError: 'oops'"
    assert outcomes["exit"].failure == "its process ended with status 3"
    memory = "usually by the system for want of memory: use fewer --processes"
    assert outcomes["killed"].failure == f"its process was ended by SIGKILL, {memory}"
    assert {item.result[1] for item in outcomes.values() if item.result} <= {0, 1}


def test_processes_work_at_the_same_time(tmp_path):
    assert {item.result for item in run_each(tasks.meet, [tmp_path, tmp_path], processes=2)} == {0, 1}


def test_nothing_to_do():
    assert list(run_each(tasks.tell, [], processes=4)) == []


def test_processes_share_the_cores_and_stand_outside_the_terminal_s_reach(monkeypatch):
    for name in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(worker_pool, "workers_share", lambda processes: {2: 7}[processes])
    outcomes = list(run_each(tasks.threads, ["a", "b"], processes=2))
    assert [item.result for item in outcomes] == [("7", "7", True)] * 2


def test_leaving_early_asks_the_processes_to_save(tmp_path):
    outcomes = run_each(tasks.save_when_asked, [tmp_path, tmp_path], processes=1)
    with pytest.raises(KeyboardInterrupt):
        _interrupt_once_started(outcomes, tmp_path)
    assert (tmp_path / "saved").is_file()
    (started,) = tmp_path.glob("started_*")
    assert not Path(f"/proc/{started.name.partition('_')[2]}").exists()


def test_processes_end_with_a_parent_that_is_killed(tmp_path):
    script = (
        "from pathlib import Path\nfrom detection3d.training.worker_pool import run_each\n"
        "from tests.training import tasks\n"
        f"if __name__ == '__main__':\n"
        f"    list(run_each(tasks.save_when_asked, [Path({str(tmp_path)!r})], processes=1))\n"
    )
    (tmp_path / "script.py").write_text(script)
    command = [sys.executable, str(tmp_path / "script.py")]
    with subprocess.Popen(command, env=environment(PYTHONPATH=str(ROOT)), start_new_session=True) as parent:
        started = _wait_for(tmp_path)
        parent.kill()
    process = Path(f"/proc/{started.name.partition('_')[2]}")
    deadline = time.monotonic() + 30
    while process.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not process.exists()
    assert not (tmp_path / "saved").exists()


def _interrupt_once_started(outcomes: Iterator[object], folder: Path) -> None:
    """Interrupt this process, as Ctrl-C does, while it waits for the outcome of a task that has started."""

    def interrupt() -> None:
        _wait_for(folder)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    next(outcomes)


def _wait_for(folder: Path) -> Path:
    deadline = time.monotonic() + 60
    while not (found := list(folder.glob("started_*"))):
        assert time.monotonic() < deadline, "no task was started"
        time.sleep(0.02)
    return found[0]
