"""How a run is asked to stop: after the step that is under way, with a checkpoint."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


class Interrupted(KeyboardInterrupt):
    """The run was asked to stop, and a checkpoint was written."""


@dataclass
class Stop:
    """Whether somebody asked.

    Attributes:
        requested: by a signal.
    """

    requested: bool = False


@contextmanager
def stop_signals() -> Iterator[Stop]:
    """Turn Ctrl-C and SIGTERM into a wish to stop after the current step; a second Ctrl-C stops at once.

    A second SIGTERM is no impatience: a cluster sends it to every process, and the launcher hands its own on.
    """
    stop = Stop()

    def ask(number: int, _frame: object) -> None:
        if stop.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.requested = True

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
