"""Long tasks shared out to processes, each of which does many; what goes wrong in one of them stops no other."""

import contextlib
import multiprocessing
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Generic, TypeVar

from detection3d.data.preparation_pool import end_with_parent, workers_share
from detection3d.errors import UserError

Task = TypeVar("Task")
Result = TypeVar("Result")

PATIENCE = 60.0
"""Seconds that a worker has to save its work when the pool is closed early."""


@dataclass(frozen=True)
class Outcome(Generic[Task, Result]):
    """How a task ended.

    Attributes:
        task: as given.
        result: None where it failed.
        failure: what went wrong; None where it did not.
    """

    task: Task
    result: Result | None
    failure: str | None


def run_each(
    function: Callable[[Task, int], Result], tasks: Sequence[Task], processes: int
) -> Iterator[Outcome[Task, Result]]:
    """Call `function(task, worker)` for each task, in processes, and yield the outcomes as they come.

    A worker keeps what is dear to set up (imports, compiled functions, a CUDA context) from task to task. A task whose
    process dies has failed, and a new process takes the next one. Workers stand outside the terminal's reach: leaving
    the loop early, by Ctrl-C or an exception, asks each of them by SIGTERM to save and end. They end too when this
    process is killed.

    Args:
        function: picklable.
        tasks: picklable, in the order in which to start them.
        processes: how many; the cores are shared equally among them.

    Yields:
        One outcome for each task, in the order of their completion.
    """
    waiting = deque(tasks)
    processes = max(1, min(processes, len(waiting)))
    free = deque(range(processes))
    workers: dict[Connection, _Worker] = {}
    try:
        while waiting or any(worker.task is not None for worker in workers.values()):
            while waiting and free:
                worker = _start(function, free.popleft(), processes)
                workers[worker.connection] = worker
                _give(worker, waiting.popleft())
            for connection in wait(list(workers)):
                assert isinstance(connection, Connection)
                worker = workers[connection]
                try:
                    result, failure = connection.recv()
                except EOFError:
                    worker.process.join()
                    result, failure = None, _cause_of_death(worker.process.exitcode)
                    del workers[connection]
                    free.append(worker.number)
                    done, worker.task = worker.task, None
                    if done is not None:
                        yield Outcome(done, result, failure)
                    continue
                done = worker.task
                worker.task = None
                if waiting:
                    _give(worker, waiting.popleft())
                yield Outcome(done, result, failure)
    finally:
        _close(list(workers.values()))


@dataclass
class _Worker:
    number: int
    process: BaseProcess
    connection: Connection
    task: Any = None


def _start(function: Callable[..., Any], number: int, processes: int) -> _Worker:
    context = multiprocessing.get_context("spawn")  # a fork of a process with threads or a CUDA context can hang
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs, number, max(1, workers_share(processes))))
    process.start()
    theirs.close()  # so that the end of the process is the end of the pipe
    ours.send(function)
    return _Worker(number, process, ours)


def _give(worker: _Worker, task: Any) -> None:
    worker.task = task
    with contextlib.suppress(BrokenPipeError):  # died between tasks: the end of its pipe tells, and the task has failed
        worker.connection.send(task)


def _close(workers: list[_Worker]) -> None:
    for worker in workers:
        if worker.task is None:
            worker.connection.close()  # it waits for a task, and ends when none can come
        else:
            worker.process.terminate()
    deadline = time.monotonic() + PATIENCE
    for worker in workers:
        worker.process.join(max(0.0, deadline - time.monotonic()))
        if worker.process.is_alive():
            worker.process.kill()
            worker.process.join()


def _cause_of_death(status: int | None) -> str:
    if status is None or status >= 0:
        return f"its process ended with status {status}"
    name = signal.Signals(-status).name
    memory = ", usually by the system for want of memory: use fewer --processes" if name == "SIGKILL" else ""
    return f"its process was ended by {name}{memory}"


def _work(connection: Connection, number: int, threads: int) -> None:
    os.setsid()  # Ctrl-C reaches the terminal's whole group; the parent alone answers it
    end_with_parent()
    # Read when the libraries are first imported, which receiving the function does.
    for name in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS"):
        os.environ.setdefault(name, str(threads))
    function = connection.recv()
    while True:
        try:
            task = connection.recv()
        except EOFError:
            return
        try:
            answer = function(task, number), None
        except KeyboardInterrupt:
            return
        except UserError as error:
            answer = None, str(error)
        except Exception as error:  # a defect in one task must not end the others
            answer = None, f"{type(error).__name__}: {error}"
        connection.send(answer)
