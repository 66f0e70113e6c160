"""Sums through the memory of two GPUs against NCCL's."""

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
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[0], first[1])  # two numbers have one sum


def sums(rank: int) -> tuple[torch.Tensor, torch.Tensor]:
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

    return torch.stack(found).cpu(), torch.stack(expected).cpu()
