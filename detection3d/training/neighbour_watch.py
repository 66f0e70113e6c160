"""Notice that another rank has ended while this one hangs in a collective on its GPU, where nothing tells it.

NCCL's kernels wait for a peer that is gone until a timeout of minutes. So each rank keeps a connection to the one
before it, over which nothing comes but a word at the end of the run. When a process ends, however it does, the system
closes its connections; who notices hands the news on to the rank after it before anything else.
"""

import ipaddress
import os
import secrets
import select
import socket
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from threading import Event, Thread
from typing import Any

from torch import distributed as dist

from detection3d.errors import UserError
from detection3d.training.launch import Launch, host_name
from detection3d.training.stop import Interrupted

GRACE = 20.0
"""Seconds that a rank has to end by itself, with an error of its own, a checkpoint or an evaluation before it.

torchrun kills 30 s after it has noticed."""

_PATIENCE = 10.0  # seconds for a connection
_TOKEN = 16  # bytes by which a rank knows its neighbour from whoever else tries the port
_WORD = struct.Struct("!cI")
_FAREWELL, _NEWS = b"e", b"x"


@contextmanager
def watched_neighbour(
    launch: Launch, control: dist.ProcessGroup, keep: Callable[[Exception], None] = lambda _: None
) -> Iterator[None]:
    """End this process, with a message, when another rank has ended before its time and this one does not follow.

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
            ended = None if woken in ready else _who_ended(before, (launch.rank - 1) % launch.size)
            if ended is not None:
                _say(after, _NEWS, ended)
                if not left.wait(GRACE):
                    _end(launch, ended, keep)

        thread = Thread(target=watch, name="neighbour-watch", daemon=True)
        thread.start()
        try:
            try:
                yield
            except Interrupted:  # which all ranks have agreed on
                _say(after, _FAREWELL, launch.rank)
                raise
            _say(after, _FAREWELL, launch.rank)
        finally:
            left.set()
            wake.send(_FAREWELL)
            thread.join()


def _connect(
    launch: Launch, control: dist.ProcessGroup, stack: ExitStack
) -> tuple[socket.socket, socket.socket] | None:
    """Return the connections to the rank before and to the one after; None where not all ranks have both."""
    token, before, after, failure = secrets.token_bytes(_TOKEN), None, None, ""
    with ExitStack() as until_accepted:
        listener = where = None
        address = _own_address(launch, control)
        try:
            if not address:
                raise OSError(f"no network on which {launch.address} can be reached")
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            listener = until_accepted.enter_context(socket.create_server((address, 0), family=family, backlog=16))
            listener.settimeout(_PATIENCE)
            where = address, listener.getsockname()[1], token
        except OSError as error:
            failure = f"rank {launch.rank} on {host_name()} can't listen for its neighbour ({error})"
        listening_at = _gathered(where, launch, control)
        if listener is not None and None not in listening_at:
            to, port, wanted = listening_at[(launch.rank - 1) % launch.size]
            try:
                before = stack.enter_context(socket.create_connection((to, port), _PATIENCE))
                before.sendall(wanted)
                before.settimeout(None)
                after = stack.enter_context(_accepted(listener, token))  # it has connected, or never will
            except OSError as error:
                failure = f"rank {launch.rank} on {host_name()} and its neighbour, {to}:{port}, can't connect ({error})"
    failures = [failure for failure in _gathered(failure, launch, control) if failure]
    if failures and launch.rank == 0:
        sys.stderr.write(
            f"warning: {failures[0]}, so a rank that waits on its GPU for one that has ended is not told: the launcher"
            " or a timeout ends it\n"
        )
    return None if failures or before is None or after is None else (before, after)


def _gathered(value: Any, launch: Launch, control: dist.ProcessGroup) -> list[Any]:
    values = [value] * launch.size
    dist.all_gather_object(values, value, group=control)
    return values


def _own_address(launch: Launch, control: dist.ProcessGroup) -> str:
    """Return this host's address on the network on which the ranks reach each other, or "".

    That is from where it reaches the first rank. On the first rank's own host this may be loopback, as Debian gives a
    host's own name: where other hosts take part, it is from where it reaches those.
    """
    own = _address_toward(launch.address)
    others = [address for address in _gathered(own, launch, control) if address and not _is_loopback(address)]
    return _address_toward(others[0]) if others and (not own or _is_loopback(own)) else own


def _address_toward(host: str) -> str:
    with suppress(OSError):
        family, kind, _, _, to = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as probe:
            probe.connect(to)  # sends nothing
            return probe.getsockname()[0]
    return ""


def _is_loopback(address: str) -> bool:
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback


def _accepted(listener: socket.socket, token: bytes) -> socket.socket:
    """Return the connection of the rank after; others are turned away."""
    while True:
        connection, _ = listener.accept()
        connection.settimeout(_PATIENCE)
        if _read(connection, _TOKEN) == token:
            connection.settimeout(None)
            return connection
        connection.close()


def _who_ended(connection: socket.socket, neighbour: int) -> int | None:
    """Return which rank has ended before its time; None after a farewell."""
    word = _read(connection, _WORD.size)
    if len(word) < _WORD.size:
        return neighbour
    kind, rank = _WORD.unpack(word)
    return None if kind == _FAREWELL else rank


def _read(connection: socket.socket, size: int) -> bytes:
    """Return so many bytes, or fewer where no more come."""
    content = b""
    with suppress(OSError):  # reset, or too slow
        while len(content) < size and (more := connection.recv(size - len(content))):
            content += more
    return content


def _say(connection: socket.socket, kind: bytes, rank: int) -> None:
    with suppress(OSError):  # the one after has ended already
        connection.sendall(_WORD.pack(kind, rank))


def _end(launch: Launch, ended: int, keep: Callable[[Exception], None]) -> None:
    error = UserError(
        f"rank {ended} has ended, look for its message; this rank could not go on without it. The last checkpoint is"
        " intact; run the same command to go on"
    )
    try:
        sys.stderr.write(f"error: rank {launch.rank} of {launch.size} on {host_name()}: {error}\n")
        sys.stderr.flush()
        keeping = Thread(target=keep, args=(error,), daemon=True)  # a file server that is gone would keep it for ever
        keeping.start()
        keeping.join(_PATIENCE)
    finally:
        os._exit(1)  # the main thread may be in a call that never returns
