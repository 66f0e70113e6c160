"""Run independent tasks in processes that neither outlive nor silently lose their parent."""

import concurrent.futures
import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.synchronize import Event
from typing import TypeVar

from detection3d.errors import UserError

Task = TypeVar("Task")
Result = TypeVar("Result")

WORKER_KILLED = (
    "a worker process was killed, usually by the system for want of memory; what was finished is kept, run the same "
    "command again with fewer --workers"
)


def run_tasks(function: Callable[[Task], Result], tasks: Sequence[Task], workers: int) -> Iterator[Result]:
    """Call `function` on every task, in processes, and yield the results as they come.

    Leaving the loop early, by an exception or Ctrl-C, ends the processes at once. They end too when this process is
    killed.

    Args:
        function: picklable.
        tasks: picklable.
        workers: number of processes; with 1 the tasks run in this process.

    Yields:
        One result for each task, in the order of their completion.

    Raises:
        UserError: a process was killed from outside.
    """
    if workers <= 1 or len(tasks) <= 1:
        yield from map(function, tasks)
        return
    before = set(multiprocessing.active_children())
    processes = min(workers, len(tasks))
    # Spawned, as a fork of a process with threads can hang (numba's, Arrow's).
    executor = concurrent.futures.ProcessPoolExecutor(
        processes, multiprocessing.get_context("spawn"), start_worker, (max(1, workers_share(processes)),)
    )
    try:
        for future in concurrent.futures.as_completed([executor.submit(function, task) for task in tasks]):
            yield future.result()
    except BrokenProcessPool as error:
        raise UserError(WORKER_KILLED) from error
    except BaseException:
        for process in set(multiprocessing.active_children()) - before:
            process.terminate()
        raise
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


def available_cores() -> int:
    """Return the number of CPU cores that this process may use."""
    with contextlib.suppress(AttributeError):  # only Linux knows of affinity
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def workers_share(processes: int) -> int:
    """Return how many threads each of so many processes may use, so that together they don't exceed the cores."""
    return available_cores() // processes


_stop: Event | None = None


def start_worker(threads: int, stop: Event | None = None) -> None:
    """Prepare a pool's process for its work; to be called before anything in it imports numba.

    Numba starts a thread for each core when it first runs, used or not. On two cores two processes with two threads
    each did a third of the work of two with one.

    Args:
        threads: of this process, unless the user's environment says otherwise.
        stop: set by the parent when the work is to end; `asked_to_stop` tells.
    """
    global _stop
    _stop = stop
    # Ctrl-C reaches the whole process group; the parent alone answers it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ.setdefault("NUMBA_NUM_THREADS", str(threads))  # read when numba is first imported
    end_with_parent()


def asked_to_stop() -> bool:
    """Tell whether the parent wants this worker to end."""
    return _stop is not None and _stop.is_set()


def end_with_parent() -> None:
    """End this process as soon as its parent is gone: a pool's workers would wait for work for ever."""
    threading.Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
