"""Notice that another rank has ended while this one hangs in a collective on its GPU, where nothing tells it.

NCCL's kernels wait for a peer that is gone until a timeout of minutes. So each rank keeps a connection to the one
before it, over which nothing comes but a word at the end of the run. When a process ends, however it does, the system
closes its connections.
"""

import os
import secrets
import select
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from threading import Event, Thread

from torch import distributed as dist

from detection3d.errors import UserError
from detection3d.training.launch import Launch, host_name
from detection3d.training.stop import Interrupted

GRACE = 5.0
"""Seconds that the rank has to find out by itself, which it does where it waits on the host."""

_PATIENCE = 10.0  # seconds for a connection
_FAREWELL = b"e"
_TOKEN = 16  # bytes by which a rank knows its neighbour from whoever else tries the port


@contextmanager
def watched_neighbour(
    launch: Launch, control: dist.ProcessGroup, keep: Callable[[Exception], None] = lambda _: None
) -> Iterator[None]:
    """End this process, with a message, when the rank before it has ended before its time.

    A collective; ranks leave when they like.

    Args:
        launch: who this rank is, of several.
        control: the ranks' process group on the host.
        keep: is given the error before the process ends.
    """
    with ExitStack() as stack:
        sockets = _connect(launch, control, stack)
        if sockets is None:
            yield
            return
        before, after = sockets
        left, (wake, woken) = Event(), socket.socketpair()
        stack.enter_context(wake)
        stack.enter_context(woken)

        def watch() -> None:
            ready, _, _ = select.select([before, woken], [], [])
            if woken not in ready and _ended_early(before) and not left.wait(GRACE):
                _end(launch, keep)

        thread = Thread(target=watch, name="neighbour-watch", daemon=True)
        thread.start()
        try:
            try:
                yield
            except Interrupted:  # which all ranks have agreed on
                _say_farewell(after)
                raise
            _say_farewell(after)
        finally:
            left.set()
            wake.send(_FAREWELL)
            thread.join()


def _connect(
    launch: Launch, control: dist.ProcessGroup, stack: ExitStack
) -> tuple[socket.socket, socket.socket] | None:
    """Return the connections to the rank before and to the one after; None where not all ranks could connect."""
    size = launch.size
    family, address = _own_address(launch)
    with socket.create_server((address, 0), family=family, backlog=16) as listener:
        token = secrets.token_bytes(_TOKEN)
        listening = [(address, listener.getsockname()[1], token)] * size
        dist.all_gather_object(listening, listening[launch.rank], group=control)
        to, port, wanted = listening[(launch.rank - 1) % size]
        before, failure = None, ""
        try:
            before = stack.enter_context(socket.create_connection((to, port), _PATIENCE))
            before.sendall(wanted)
            before.settimeout(None)
        except OSError as error:
            failure = f"rank {launch.rank} on {host_name()} can't reach {to}:{port} ({error})"
        failures = [failure] * size
        dist.all_gather_object(failures, failure, group=control)
        told = next(filter(None, failures), None)
        if before is None or told is not None:
            if launch.rank == 0:
                sys.stderr.write(
                    f"warning: {told}, so a rank that waits on its GPU for one that has ended is not told: the"
                    " launcher or a timeout ends it\n"
                )
            return None
        return before, stack.enter_context(_accepted(listener, token))


def _own_address(launch: Launch) -> tuple[socket.AddressFamily, str]:
    """Return this host's address on the network on which it reaches the first rank."""
    family, kind, _, _, to = socket.getaddrinfo(launch.address, launch.port or 1, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind) as probe:
        probe.connect(to)  # sends nothing
        return family, probe.getsockname()[0]


def _accepted(listener: socket.socket, token: bytes) -> socket.socket:
    """Return the connection of the rank after, which has connected already; others are turned away."""
    while True:
        connection, _ = listener.accept()
        connection.settimeout(_PATIENCE)
        with suppress(OSError):
            if connection.recv(_TOKEN, socket.MSG_WAITALL) == token:
                connection.settimeout(None)
                return connection
        connection.close()


def _ended_early(connection: socket.socket) -> bool:
    try:
        return connection.recv(1) != _FAREWELL
    except OSError:  # reset
        return True


def _say_farewell(connection: socket.socket) -> None:
    with suppress(OSError):  # the one after has ended already
        connection.send(_FAREWELL)


def _end(launch: Launch, keep: Callable[[Exception], None]) -> None:
    error = UserError(
        f"rank {(launch.rank - 1) % launch.size} has ended, look for its message; this rank waited for it on its GPU."
        " The last checkpoint is intact; run the same command to go on"
    )
    keep(error)
    sys.stderr.write(f"error: rank {launch.rank} of {launch.size} on {host_name()}: {error}\n")
    sys.stderr.flush()
    os._exit(1)  # the main thread may be in a call that never returns
