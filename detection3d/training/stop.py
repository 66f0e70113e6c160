"""Being asked to stop: which signals ask for it, and how a run ends that was."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

RUN_AGAIN = 75
"""Exit status of a run that was told to stop, has saved, and wants to be started again: EX_TEMPFAIL of sysexits.h."""

INTERRUPTED = 130  # 128 + SIGINT, as shells report it

NOTICES = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
"""With which clusters announce that the node is wanted back (and terminals that they close)."""


class Interrupted(KeyboardInterrupt):
    """The run was asked to stop, and a checkpoint was written.

    Args:
        message: for the user.
        status: exit status of the process.
    """

    def __init__(self, message: str, status: int = INTERRUPTED) -> None:
        self.status = status
        super().__init__(message)


@dataclass
class Stop:
    """Whether this process was asked to stop.

    Attributes:
        requested: a signal has come.
        by_user: it was Ctrl-C.
    """

    requested: bool = False
    by_user: bool = False

    @property
    def status(self) -> int:
        """Exit status for having stopped; where another rank had the signal, it was a cluster's."""
        return INTERRUPTED if self.by_user else RUN_AGAIN


@contextmanager
def stop_signals() -> Iterator[Stop]:
    """Turn Ctrl-C and a cluster's notice into a wish to stop after the current step; a second Ctrl-C stops at once.

    A second notice is no impatience: a cluster sends it to every process, and the launcher hands its own on. SIGHUP
    stays ignored where it is, as under nohup.
    """
    stop = Stop()

    def ask(number: int, _frame: object) -> None:
        if stop.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.requested = True
        stop.by_user = stop.by_user or number == signal.SIGINT

    wanted = [signal.SIGINT, *NOTICES]
    if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
        wanted.remove(signal.SIGHUP)
    before = {number: signal.signal(number, ask) for number in wanted}
    mask = signal.pthread_sigmask(signal.SIG_UNBLOCK, wanted)  # one that has waited comes now
    try:
        yield stop
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def notices_waiting() -> Iterator[None]:
    """Let notices wait while a training starts, which takes a while: unanswered, they would end it, or be lost.

    `stop_signals` then hears them. SIGTERM is left out, so that a start can be ended.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1, signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
