"""Tasks for the pool's tests, importable by its processes."""

import os
import signal
import time
from pathlib import Path

from detection3d.errors import UserError


def tell(task: str, worker: int) -> tuple[str, int, int]:
    """Return the task, the worker and its process; end in some other way where the task says so."""
    match task:
        case "user error":
            raise UserError("wrong setting")
        case "defect":
            raise KeyError("oops")
        case "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        case "exit":
            os._exit(3)
    return task, worker, os.getpid()


def threads(_: str, __: int) -> tuple[str, str, bool]:
    """Return what bounds the threads, and whether a signal of the terminal's group reaches the process."""
    return os.environ["OMP_NUM_THREADS"], os.environ["NUMBA_NUM_THREADS"], os.getpgrp() == os.getpid()


def save_when_asked(folder: Path, _: int) -> None:
    """Wait until asked to stop, then leave a file."""

    def save(*_: object) -> None:
        (folder / "saved").write_text("")
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, save)
    (folder / f"started_{os.getpid()}").write_text("")
    time.sleep(60)


def meet(folder: Path, worker: int) -> int:
    """Wait until two tasks are under way at once."""
    (folder / f"started_{worker}").write_text("")
    deadline = time.monotonic() + 30
    while len(list(folder.glob("started_*"))) < 2:
        if time.monotonic() > deadline:
            raise UserError("alone")
        time.sleep(0.01)
    return worker
