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

from detection3d.multitask.exchange import LARGEST, RECORDED_SLOTS, SLOTS, Exchange, open_exchange
from detection3d.multitask.ranks import Ranks
from tests.rank_group import RankGroup

ROUNDS = 60


class Memory:
    """What torch's symmetric memory does, for threads."""

    def __init__(self, size: int) -> None:
        self.rooms = [torch.zeros((SLOTS + RECORDED_SLOTS) * LARGEST, dtype=torch.uint8) for _ in range(size)]
        self.meeting = threading.Barrier(size)

    def get_buffer(self, rank: int, shape: list[int], dtype: torch.dtype, start: int) -> torch.Tensor:
        count = torch.Size(shape).numel()
        return self.rooms[rank].view(dtype)[start : start + count].view(shape)

    def barrier(self) -> None:
        self.meeting.wait(timeout=20)


def in_threads(size: int, function: Callable[[Exchange, int], Any]) -> list[Any]:
    memory = Memory(size)
    with ThreadPoolExecutor(size) as pool:
        waiting = [pool.submit(function, Exchange(memory, rank, size), rank) for rank in range(size)]
        return [future.result() for future in waiting]


def values(rank: int, turn: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1000 * turn + rank)
    shape = [(7,), (3, 5), (), (2048,)][turn % 4]
    dtype = [torch.float64, torch.float32, torch.int64][turn % 3]
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
        expected = torch.stack([values(rank, turn) for rank in range(size)]).sum(0)
        for one in found:
            assert one.dtype == expected.dtype
            assert torch.equal(one, found[0])
        torch.testing.assert_close(found[0], expected)


def test_gathered_are_the_values_of_all_ranks_in_order() -> None:
    found = in_threads(3, lambda exchange, rank: exchange.gather(torch.tensor([rank, 10.0 * rank])))
    for one in found:
        assert one.tolist() == [[0, 0], [1, 10], [2, 20]]


def test_calls_in_graphs_keep_slots_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    exchange = Exchange(Memory(1), 0, 1)
    kept = [exchange._next_recorded() for _ in range(RECORDED_SLOTS)]
    assert len(set(kept)) == RECORDED_SLOTS
    assert min(kept) >= SLOTS
    with pytest.raises(RuntimeError, match=f"more than {RECORDED_SLOTS} sums"):
        exchange._next_recorded()


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
    with RankGroup(2) as group:
        assert group.run(opened) == [None, None]


def opened(rank: int) -> object:
    return open_exchange(None, torch.device("cpu"))
