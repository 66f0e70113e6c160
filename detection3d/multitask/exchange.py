"""Sums of a few numbers over the GPUs of one host, through memory that they all see: three small kernels or four.

A collective of NCCL for a kilobyte takes the host some 150 microseconds and hops between streams. Batch normalisation
over ranks has eighty of them in a step, each of which every rank waits for. Here each rank writes its numbers where the
others can read them (torch's symmetric memory), all meet, and each adds up all of them in the order of the ranks, so
that the result is the same in every bit everywhere.
"""

import ctypes
import itertools
import os
import socket
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

LARGEST = 16 * 1024  # bytes of a sum: 2 x 1,000 numbers in float64
SLOTS = 8  # that calls use in turns
RECORDED_SLOTS = 512  # for calls in CUDA graphs, each of which keeps its own
PATIENCE = 600_000  # milliseconds, as for collectives
CHECK_PATIENCE = 60_000
NO_PEERS = "NCCL_P2P_DISABLE"  # which users set to 1 where GPUs can't read each other's memory


class Exchange:
    """Sums over ranks through memory that all of them see.

    Every rank must call the same methods in the same order, on one stream; CUDA graphs may hold calls.

    Args:
        memory: of `RECORDED_SLOTS` + `SLOTS` slots of `LARGEST` bytes; `get_buffer` and `barrier` are what is used.
        rank: this one.
        size: number of ranks.
        patience: milliseconds that a rank waits for the others; then CUDA fails, as in a collective.
    """

    def __init__(self, memory: Any, rank: int, size: int, patience: int = PATIENCE) -> None:
        self._memory, self._rank, self._size, self._patience = memory, rank, size, patience
        self._turns = itertools.cycle(range(SLOTS))
        self._recorded = iter(range(SLOTS, SLOTS + RECORDED_SLOTS))
        self._views: dict[tuple[int, torch.Size, torch.dtype], list[Tensor]] = {}

    def __deepcopy__(self, _: dict[int, Any]) -> "Exchange":
        return self  # as a process group, it belongs to the process

    def takes(self, values: Tensor) -> bool:
        """Tell whether a tensor can be summed here; the answer is the same on every rank for the same shapes."""
        return values.is_cuda and values.numel() * values.element_size() <= LARGEST

    def sum(self, values: Tensor) -> Tensor:
        """Return the sum over the ranks, the same on each of them in every bit; `values` stay as they are."""
        return self._exchanged(values, torch.add if self._size == 2 else _added)

    def gather(self, values: Tensor) -> Tensor:
        """Return the values [N] of all ranks, [size, N]."""
        return self._exchanged(values, _stacked)

    def _exchanged(self, values: Tensor, combine: Callable[..., Tensor]) -> Tensor:
        recorded = values.is_cuda and torch.cuda.is_current_stream_capturing()
        slot = self._next_recorded() if recorded else next(self._turns)
        return self._meet(slot, values, combine, apart=recorded)

    def _meet(self, slot: int, values: Tensor, combine: Callable[..., Tensor], *, apart: bool) -> Tensor:
        views = self._views_of(slot, values)
        views[self._rank].copy_(values)
        self._memory.barrier(timeout_ms=self._patience)
        result = combine(*views)
        if apart:
            # A graph writes into its slot whenever it is replayed, so the others must have read what was there. Other
            # calls come back to a slot when all ranks have met several times since.
            self._memory.barrier(timeout_ms=self._patience)
        return result

    def _next_recorded(self) -> int:
        slot = next(self._recorded, None)
        if slot is None:
            raise RuntimeError(f"CUDA graphs hold more than {RECORDED_SLOTS} sums over ranks")
        return slot

    def _views_of(self, slot: int, values: Tensor) -> list[Tensor]:
        key = slot, values.shape, values.dtype
        if key not in self._views:
            start = slot * LARGEST // values.element_size()
            shape = list(values.shape)
            self._views[key] = [self._memory.get_buffer(rank, shape, values.dtype, start) for rank in range(self._size)]
        return self._views[key]


def _added(*views: Tensor) -> Tensor:
    return torch.stack(views).sum(0, dtype=views[0].dtype)


def _stacked(*views: Tensor) -> Tensor:
    return torch.stack(views)


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
    found = [exchange.sum((numbers + rank) * turn) for turn in range(1, 2 * SLOTS - 1)]
    last = SLOTS + RECORDED_SLOTS - 1
    found.append(exchange._meet(last, (numbers + rank) * (2 * SLOTS - 1), _added, apart=True))
    every = numbers + torch.arange(size, dtype=torch.float64, device=device)[:, None]
    right = torch.equal(torch.stack(found), turns * (size * numbers + size * (size - 1) / 2))
    return torch.equal(exchange.gather(numbers + rank), every) and right


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
        room = symmetric.empty((SLOTS + RECORDED_SLOTS) * LARGEST, dtype=torch.uint8, device=device)
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
