"""Sums through the memory of two GPUs against NCCL's, launched one by one and replayed as CUDA graphs."""

import time
from collections.abc import Iterator

import pytest
import torch
from torch import distributed as dist

from detection3d.multitask.exchange import open_exchange
from tests.rank_group import RankGroup

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        torch.cuda.device_count() < 2 or not torch.cuda.can_device_access_peer(0, 1),
        reason="needs two CUDA devices that read each other's memory",
    ),
]


@pytest.fixture(scope="module")
def two_ranks() -> Iterator[RankGroup]:
    with RankGroup(2, "nccl") as group:
        yield group


def test_sums_are_nccl_s_and_the_same_on_both(two_ranks: RankGroup) -> None:
    first, second = two_ranks.run(sums)
    assert torch.equal(first["found"], second["found"])
    assert torch.equal(first["found"], first["expected"])  # two numbers have one sum
    assert torch.equal(first["replayed"], second["replayed"])
    assert torch.equal(first["replayed"], first["expected replayed"])
    assert torch.equal(first["alone"], second["alone"])
    assert torch.equal(first["alone"], first["expected alone"])


def sums(rank: int) -> dict[str, torch.Tensor]:
    device = torch.device("cuda", rank)
    exchange = open_exchange(None, device)
    assert exchange is not None
    generator = torch.Generator(device).manual_seed(rank)

    def draw() -> torch.Tensor:
        return torch.randn(513, dtype=torch.float64, device=device, generator=generator)

    found, expected = [], []
    for turn in range(200):
        own = draw()
        if turn % 7 == 3 * rank:
            time.sleep(0.002)
        found.append(exchange.sum(own))
        dist.all_reduce(own)
        expected.append(own)

    given = draw()
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    graph, single = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
        result = exchange.sum(exchange.sum(given) + given)
    with torch.cuda.graph(single, stream=stream, capture_error_mode="thread_local"):
        single_result = exchange.sum(given)
    alone, expected_alone = [], []
    for turn in range(300):  # nothing comes between the replays
        own = draw()
        given.copy_(own)
        if turn % 50 == 20 * rank:
            time.sleep(0.002)
        single.replay()
        alone.append(single_result.clone())
        expected_alone.append(own)
    for own in expected_alone:
        dist.all_reduce(own)
    replayed, expected_replayed = [], []
    for turn in range(100):
        own = draw()
        given.copy_(own)
        if turn % 5 == 2 * rank:
            time.sleep(0.002)
        graph.replay()
        replayed.append(result.clone())
        if turn % 3 == 0:
            exchange.sum(own)  # others come in between
        total = own.clone()
        dist.all_reduce(total)
        total += own
        dist.all_reduce(total)
        expected_replayed.append(total)
    names = ("found", "expected", "replayed", "expected replayed", "alone", "expected alone")
    lists = (found, expected, replayed, expected_replayed, alone, expected_alone)
    return {name: torch.stack(values).cpu() for name, values in zip(names, lists, strict=True)}
