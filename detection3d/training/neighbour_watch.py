"""Notice that another rank has ended while this one hangs in a collective on its GPU, where nothing tells it.

NCCL's kernels wait for a peer that is gone until a timeout of minutes. So each rank keeps a connection to the one
before it, over which nothing comes but a word at the end of the run; when a process ends, however it does, its
connections close.
"""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from threading import Event, Thread

import torch
from torch import distributed as dist

from detection3d.errors import UserError
from detection3d.training.launch import Launch, host_name

GRACE = 5.0
"""Seconds that the rank has to find out by itself, which it does where it waits on the host."""

_FOREVER = timedelta(days=3650)


@contextmanager
def watched_neighbour(
    launch: Launch, patience: timedelta, keep: Callable[[Exception], None] = lambda _: None
) -> Iterator[None]:
    """End this process, with a message, when the rank before it has ended before its time.

    A collective: every rank enters, and those that leave without an error wait for the one before.

    Args:
        launch: who this rank is, of several.
        patience: how long the ranks wait for each other to enter.
        keep: is given the error before the process ends.
    """
    group = dist.new_group(backend="gloo", timeout=patience)
    assert isinstance(group, dist.ProcessGroup)  # else this rank would not be in it
    before, after = (launch.rank - 1) % launch.size, (launch.rank + 1) % launch.size
    left = Event()

    def watch() -> None:
        try:
            word = dist.irecv(torch.zeros(1), before, group)
            assert word is not None
            word.wait(_FOREVER)
        except RuntimeError:
            if not left.wait(GRACE):
                _end(launch, before, keep)

    thread = Thread(target=watch, name="neighbour-watch", daemon=True)
    thread.start()
    try:
        yield
        dist.send(torch.ones(1), after, group)
        thread.join(patience.total_seconds())
    finally:
        left.set()


def _end(launch: Launch, before: int, keep: Callable[[Exception], None]) -> None:
    error = UserError(
        f"rank {before} has ended, look for its message; this rank waited for it on its GPU. The last checkpoint is"
        " intact; run the same command to go on"
    )
    keep(error)
    sys.stderr.write(f"error: rank {launch.rank} of {launch.size} on {host_name()}: {error}\n")
    sys.stderr.flush()
    os._exit(1)  # the main thread may be in a call that never returns
