"""Sums of a few numbers over the GPUs of one host, through memory that they all see.

A collective of NCCL for a kilobyte takes the host some 150 microseconds and hops between streams. Batch normalisation
over ranks has eighty of them in a step, each of which every rank waits for. Here each rank writes its numbers where the
others can read them (torch's symmetric memory), all meet, and each adds up all of them in the order of the ranks, so
that the result is the same in every bit everywhere.

A kernel of our own may do so on its way (`exchange_programs`): it gets a site, a place in that memory for itself alone.
"""

import ctypes
import itertools
import os
import socket
import warnings
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

LARGEST = 16 * 1024  # bytes of a sum: 2 x 1,000 numbers in float64
SLOTS = 8  # that calls use in turns
SITE_ROOM = 16 * 2**20  # bytes for all sites
LINE, MESSAGE = 128, 512  # bytes
PATIENCE = 600_000  # milliseconds, as for collectives
CHECK_PATIENCE = 60_000
NO_PEERS = "NCCL_P2P_DISABLE"  # which users set to 1 where GPUs can't read each other's memory


@dataclass(frozen=True)
class Site:
    """Where a kernel meets the same kernel of the other ranks, at each of its launches.

    Attributes:
        addresses: int64 [size], of the site in each rank's memory, as this rank sees it.
        rank: this one.
        size: number of ranks.
    """

    addresses: Tensor
    rank: int
    size: int


class Exchange:
    """Sums over ranks through memory that all of them see.

    Every rank must call the same methods in the same order, on one stream. In CUDA graphs only sites can be used.

    Args:
        memory: of `SLOTS` slots of `LARGEST` bytes, then `SITE_ROOM` bytes that are 0; `get_buffer` and `barrier` are
            what is used.
        rank: this one.
        size: number of ranks.
        patience: milliseconds that a sum waits for the other ranks; then CUDA fails, as in a collective. At a site a
            kernel waits without end: whoever uses one has to notice that a rank is lost.
    """

    def __init__(self, memory: Any, rank: int, size: int, patience: int = PATIENCE) -> None:
        self._memory, self._rank, self._size, self._patience = memory, rank, size, patience
        self._turns = itertools.cycle(range(SLOTS))
        self._views: dict[tuple[int, torch.Size, torch.dtype], list[Tensor]] = {}
        self._room_used = 0

    def __deepcopy__(self, _: dict[int, Any]) -> "Exchange":
        return self  # as a process group, it belongs to the process

    def takes(self, values: Tensor) -> bool:
        """Tell whether a tensor can be summed here; the answer is the same on every rank for the same shapes."""
        return values.is_cuda and values.numel() * values.element_size() <= LARGEST

    def sum(self, values: Tensor) -> Tensor:
        """Return the sum over the ranks, the same on each of them in every bit; `values` stay as they are."""
        views = self._views_of(next(self._turns), values)
        views[self._rank].copy_(values)
        # One meeting is enough: a slot is written again when all ranks have met several times since.
        self._memory.barrier(timeout_ms=self._patience)
        return torch.add(*views) if self._size == 2 else torch.stack(views).sum(0, dtype=values.dtype)

    def site(self, programs: int) -> Site | None:
        """Return a new site for a kernel of so many programs; None, on every rank, where there is no more room."""
        start = SLOTS * LARGEST + self._room_used
        if self._room_used + programs * program_bytes(self._size) > SITE_ROOM:
            return None
        self._room_used += programs * program_bytes(self._size)
        buffers = [self._memory.get_buffer(rank, [1], torch.uint8, start) for rank in range(self._size)]
        addresses = torch.tensor([buffer.data_ptr() for buffer in buffers], device=buffers[0].device)
        return Site(addresses, self._rank, self._size)

    def _views_of(self, slot: int, values: Tensor) -> list[Tensor]:
        key = slot, values.shape, values.dtype
        if key not in self._views:
            start = slot * LARGEST // values.element_size()
            shape = list(values.shape)
            self._views[key] = [self._memory.get_buffer(rank, shape, values.dtype, start) for rank in range(self._size)]
        return self._views[key]


def program_bytes(ranks: int) -> int:
    """Return the size of a program's part of a site, as `exchange_programs` lays it out.

    A line with the number of its turns; lines with the turn that each rank has written; and twice, for turns that are
    odd and even, a message from each rank.
    """
    return LINE + -(-4 * ranks // LINE) * LINE + 2 * ranks * MESSAGE


def open_exchange(group: dist.ProcessGroup | None, device: torch.device) -> Exchange | None:
    """Return an exchange, or None on every rank where one of them can't have it; a collective.

    It takes GPUs of one host that see each other and can read each other's memory, and a torch that has its symmetric
    memory, which is young. Everything else sums through torch.distributed.

    Args:
        group: the ranks; None is all of them.
        device: of this rank.
    """
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    if device.type != "cuda" or size == 1:
        return None
    places: list[Any] = [None] * size
    dist.all_gather_object(places, (_host(), device.index, os.environ.get("CUDA_VISIBLE_DEVICES")), group)
    hosts, devices, visible = (set(values) for values in zip(*places, strict=True))
    able = len(hosts) == 1 and len(visible) == 1 and len(devices) == size and _reaches(device, devices)
    if not _all(able, group, device):
        return None
    memory, room, reason = None, None, ""
    try:  # whatever a young interface has in store: sums go another way
        room = _room(device)
    except Exception as error:
        reason = _line(error)
    if not _all(room is not None, group, device):
        return _told(reason or "another rank can't", rank)
    try:
        memory = _shared(room, group, device)
    except Exception as error:
        reason = _line(error)
    if not _all(memory is not None, group, device):
        return _told(reason or "another rank can't", rank)
    # Some virtual machines' sums are wrong, and some never come.
    try:
        right = _sums_are_right(Exchange(memory, rank, size, CHECK_PATIENCE), device, rank, size)
    except RuntimeError as error:
        raise RuntimeError(
            f"the GPUs of this host can't read each other's memory, though the driver says so ({error}); start all"
            f" ranks with {NO_PEERS}=1"
        ) from error
    return Exchange(memory, rank, size) if _all(right, group, device) else _told("its sums are wrong", rank)


def _sums_are_right(exchange: Exchange, device: torch.device, rank: int, size: int) -> bool:
    numbers = torch.arange(5, dtype=torch.float64, device=device)
    turns = torch.arange(1, 2 * SLOTS, dtype=torch.float64, device=device)[:, None]
    found = [exchange.sum((numbers + rank) * turn) for turn in range(1, 2 * SLOTS)]
    return torch.equal(torch.stack(found), turns * (size * numbers + size * (size - 1) / 2))


def _told(reason: str, rank: int) -> None:
    if rank == 0:
        warnings.warn(
            f"GPUs of this host can't sum through memory that they share ({reason}), so NCCL sums, which is slower;"
            f" {NO_PEERS}=1 does without from the start",
            stacklevel=3,
        )


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".partition("\n")[0]


def _room(device: torch.device) -> Tensor:
    from torch.distributed import _symmetric_memory as symmetric

    with torch.cuda.device(device):
        room = symmetric.empty(SLOTS * LARGEST + SITE_ROOM, dtype=torch.uint8, device=device).zero_()
    backend = symmetric.get_backend(device) if hasattr(symmetric, "get_backend") else "CUDA"
    if backend != "CUDA":
        raise RuntimeError(f"torch's symmetric memory is {backend}'s, whose barriers may not wait")
    return room


def _shared(room: Tensor | None, group: dist.ProcessGroup | None, device: torch.device) -> Any:
    from torch.distributed import _symmetric_memory as symmetric

    whole = dist.group.WORLD if group is None else group
    assert room is not None
    assert whole is not None
    with torch.cuda.device(device):
        memory = symmetric.rendezvous(room, whole)
    # Kept for the life of the process: giving it back waits for the GPU, where a barrier may be waiting for a rank that
    # has died, and this one could not end.
    for kept in (room, memory):
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(kept))
    return memory


def _host() -> int:
    """Return a number of this host's boot, which two containers of it share and two hosts of one name don't."""
    try:
        return zlib.crc32(Path("/proc/sys/kernel/random/boot_id").read_bytes())
    except OSError:
        return zlib.crc32(socket.gethostname().encode())


def _reaches(device: torch.device, devices: set[int]) -> bool:
    if os.environ.get(NO_PEERS) == "1":
        return False
    others = devices - {device.index}
    return all(
        other < torch.cuda.device_count() and torch.cuda.can_device_access_peer(device, torch.device("cuda", other))
        for other in others
    )


def _all(answer: bool, group: dist.ProcessGroup | None, device: torch.device) -> bool:
    lacking = torch.tensor(float(not answer), device=device)
    dist.all_reduce(lacking, dist.ReduceOp.MAX, group)
    return not lacking.item()
