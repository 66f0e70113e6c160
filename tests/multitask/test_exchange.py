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
from detection3d.multitask.ranks import Ranks, current_ranks
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


def test_gathered_are_the_values_of_all_ranks_in_order() -> None:
    found = in_threads(3, lambda exchange, rank: exchange.gather(torch.tensor([rank, 10.0 * rank])))
    for one in found:
        assert one.tolist() == [[0, 0], [1, 10], [2, 20]]


@pytest.mark.parametrize("apart", [True, False])
def test_one_slot_again_and_again_takes_a_second_meeting(apart: bool) -> None:
    """As a CUDA graph that holds one sum is replayed; without the second meeting a rank reads what comes next."""

    def run(exchange: Exchange, rank: int) -> list[float]:
        pause = random.Random(rank)

        def combine(*views: torch.Tensor) -> torch.Tensor:
            time.sleep(0.002 * pause.random())
            return torch.stack(views).sum(0)

        own = (torch.tensor([float(turn * (1 + rank))]) for turn in range(ROUNDS))
        return [float(exchange._meet(SLOTS, value, combine, apart=apart)) for value in own]

    first, second = in_threads(2, run)
    expected = [3.0 * turn for turn in range(ROUNDS)]
    assert (first == second == expected) == apart


def test_calls_in_graphs_keep_slots_of_their_own() -> None:
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


def test_on_the_cpu_there_is_none_and_ranks_gather_all_the_same() -> None:
    with RankGroup(3) as group:
        assert group.run(opened) == [None] * 3
        for found in group.run(gathered):
            assert found == [[0, 10], [1, 11], [2, 12]]


def opened(rank: int) -> object:
    return open_exchange(None, torch.device("cpu"))


def gathered(rank: int) -> list[list[float]]:
    return current_ranks().gather(torch.tensor([rank, 10.0 + rank])).tolist()
