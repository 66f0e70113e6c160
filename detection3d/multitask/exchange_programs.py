"""The Triton function by which a kernel sums over the GPUs of a host on its way; see `Exchange.site`.

Each program of the kernel meets the same program of the other ranks, and no other. It writes its numbers into every
rank's memory, then, behind them, the number of its turn; waits until all ranks have written theirs into its own; and
adds them up in the order of the ranks. Messages of two turns have places of their own, so none is written over before
it is read: who writes the next but one has seen that the others have begun the next. Turns are counted in the memory
itself, so a kernel can be replayed in CUDA graphs.
"""
# pyright: reportMissingImports=false, reportIndexIssue=false
# Triton comes with torch's CUDA builds only, and its decorator is opaque to the type checker.

import torch
import triton
import triton.language as tl

from detection3d.multitask.exchange import LINE, MESSAGE, Site
from detection3d.multitask.launching import Launcher

_LINE, _MESSAGE = tl.constexpr(LINE), tl.constexpr(MESSAGE)


def sums_are_right(site: Site, device: torch.device) -> bool:
    """Tell whether three turns at a site of one program give the sums that they should; every rank must ask."""
    found = torch.zeros(3, 4, device=device, dtype=torch.float64)  # addresses that 16 divides
    for turn in range(3):
        _meet(1, found[turn], turn, site.addresses, site.rank, site.size)
    ranks = torch.arange(site.size, dtype=torch.float64)
    expected = [[float((ranks + turn).sum()), float((10 * ranks).sum()), float(site.size)] for turn in range(3)]
    return found[:, :3].tolist() == expected


@triton.jit(do_not_specialize=["turn"])
def _rank_kernel(result, turn, addresses, RANK: tl.constexpr, RANKS: tl.constexpr):
    column = tl.arange(0, 2)
    rank = tl.full((2,), RANK, tl.float64)
    first, second, count = over_ranks(rank + turn, rank * 10, tl.full((), 1, tl.float64), addresses, RANK, RANKS, 2)
    tl.store(result + column, first, mask=column == 0)
    tl.store(result + 1 + column, second, mask=column == 0)
    tl.store(result + 2, count)


_meet = Launcher(_rank_kernel)


@triton.jit
def over_ranks(first, second, count, addresses, RANK: tl.constexpr, RANKS: tl.constexpr, COLUMNS: tl.constexpr):
    """Return the sums over the ranks of two float64 [COLUMNS] and a float64 scalar.

    A message has room for 2 COLUMNS + 1 numbers: COLUMNS is at most 31.
    """
    flags: tl.constexpr = (4 * RANKS + _LINE - 1) // _LINE * _LINE
    size: tl.constexpr = _LINE + flags + 2 * RANKS * _MESSAGE
    place = tl.program_id(0).to(tl.int64) * size
    own = tl.load(addresses + RANK) + place
    turn = tl.load(own.to(tl.pointer_type(tl.int32))) + 1
    messages = _LINE + flags + (turn % 2).to(tl.int64) * RANKS * _MESSAGE
    column = tl.arange(0, COLUMNS)
    for other in tl.static_range(RANKS):
        message = tl.load(addresses + other) + place + messages + RANK * _MESSAGE
        message = message.to(tl.pointer_type(tl.float64))
        tl.store(message + column, first)
        tl.store(message + COLUMNS + column, second)
        tl.store(message + 2 * COLUMNS, count)
    tl.debug_barrier()  # all threads have written before one of them says so
    for other in tl.static_range(RANKS):
        flag = tl.load(addresses + other) + place + _LINE + 4 * RANK
        tl.atomic_xchg(flag.to(tl.pointer_type(tl.int32)), turn, sem="release", scope="sys")
    for other in tl.static_range(RANKS):
        flag = (own + _LINE + 4 * other).to(tl.pointer_type(tl.int32))
        while tl.atomic_add(flag, 0, sem="acquire", scope="sys") < turn:
            pass
    tl.debug_barrier()
    first = tl.zeros((COLUMNS,), tl.float64)
    second = tl.zeros((COLUMNS,), tl.float64)
    count = count * 0
    for other in tl.static_range(RANKS):
        message = (own + messages + other * _MESSAGE).to(tl.pointer_type(tl.float64))
        first += tl.load(message + column, volatile=True)
        second += tl.load(message + COLUMNS + column, volatile=True)
        count += tl.load(message + 2 * COLUMNS, volatile=True)
    tl.store(own.to(tl.pointer_type(tl.int32)), turn)
    return first, second, count
