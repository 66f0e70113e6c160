"""Sums through shared memory, by threads that stand for ranks: the order of writing, meeting and reading."""

import copy
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from detection3d.multitask.exchange import LARGEST, SITE_ROOM, SLOTS, Exchange, open_exchange, program_bytes
from detection3d.multitask.ranks import Ranks
from tests.rank_group import RankGroup

ROUNDS = 60


class Memory:
    """What torch's symmetric memory does, for threads."""

    def __init__(self, size: int) -> None:
        self.rooms = [torch.zeros(SLOTS * LARGEST + SITE_ROOM, dtype=torch.uint8) for _ in range(size)]
        self.meeting = threading.Barrier(size)

    def get_buffer(self, rank: int, shape: list[int], dtype: torch.dtype, start: int) -> torch.Tensor:
        count = torch.Size(shape).numel()
        return self.rooms[rank].view(dtype)[start : start + count].view(shape)

    def barrier(self, timeout_ms: int) -> None:
        self.meeting.wait(timeout_ms / 1000)


def in_threads(size: int, function: Callable[[Exchange, int], Any]) -> list[Any]:
    memory = Memory(size)
    with ThreadPoolExecutor(size) as pool:
        waiting = [pool.submit(function, Exchange(memory, rank, size), rank) for rank in range(size)]
        return [future.result() for future in waiting]


def values(rank: int, turn: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1000 * turn + rank)
    shape = [(7,), (3, 5), (), (2048,)][turn % 4]
    dtype = [torch.float64, torch.float32, torch.int32][turn % 3]
    drawn = torch.randn(shape, generator=generator, dtype=torch.float64)
    return (100 * drawn).to(dtype)


@pytest.mark.parametrize("size", [2, 3])
def test_every_rank_gets_the_same_sums_however_slow_the_others_are(size: int) -> None:
    def run(exchange: Exchange, rank: int) -> list[torch.Tensor]:
        pause = random.Random(rank)
        found = []
        for turn in range(ROUNDS):
            if pause.random() < 0.2:
                time.sleep(0.003 * pause.random())
            own = values(rank, turn)
            before = own.clone()
            found.append(exchange.sum(own))
            assert torch.equal(own, before)
        return found

    results = in_threads(size, run)
    for turn, found in enumerate(zip(*results, strict=True)):
        expected = torch.stack([values(rank, turn) for rank in range(size)]).sum(0, dtype=values(0, turn).dtype)
        for one in found:
            assert one.dtype == expected.dtype
            assert torch.equal(one, found[0])
        torch.testing.assert_close(found[0], expected)


def test_sites_lie_side_by_side_until_the_room_is_full() -> None:
    memory = Memory(3)
    ranks = [Exchange(memory, rank, 3) for rank in range(3)]
    ends = [room.data_ptr() + SLOTS * LARGEST for room in memory.rooms]
    for programs in (1, 16, 4):
        sites = [exchange.site(programs) for exchange in ranks]
        for rank, site in enumerate(sites):
            assert site is not None
            assert (site.rank, site.size) == (rank, 3)
            assert site.addresses.tolist() == ends
        ends = [end + programs * program_bytes(3) for end in ends]
    left = SITE_ROOM - 21 * program_bytes(3)
    assert ranks[0].site(left // program_bytes(3) + 1) is None
    assert ranks[0].site(left // program_bytes(3)) is not None
    assert ranks[0].site(1) is None


def test_copies_of_a_module_share_it() -> None:
    ranks = Ranks(2, None, Exchange(Memory(2), 0, 2))
    assert copy.deepcopy(ranks).exchange is ranks.exchange


def test_it_takes_what_is_small_and_on_a_gpu() -> None:
    exchange = Exchange(Memory(1), 0, 1)
    assert not exchange.takes(torch.zeros(4))
    assert exchange.takes(torch.zeros(LARGEST // 8, dtype=torch.float64, device="meta").as_subclass(OnAGpu))
    assert not exchange.takes(torch.zeros(LARGEST // 8 + 1, dtype=torch.float64, device="meta").as_subclass(OnAGpu))


class OnAGpu(torch.Tensor):
    """A tensor that says of itself that it lies on a GPU."""

    is_cuda = True  # pyright: ignore[reportAssignmentType]


def test_on_the_cpu_there_is_none() -> None:
    with RankGroup(3) as group:
        assert group.run(opened) == [None] * 3


def opened(rank: int) -> object:
    return open_exchange(None, torch.device("cpu"))
