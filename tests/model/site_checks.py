"""Batch normalisation whose kernels meet those of other processes on their way, in Triton's interpreter.

    TRITON_INTERPRET=1 python -m tests.model.site_checks

Memory that processes share stands for that of several GPUs. Whether a GPU keeps the order of writing, only GPUs can
tell: tests/model/test_norm_gpu.py.
"""

import random
import tempfile
import time
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path

import torch
from torch import Tensor
from torch import multiprocessing as processes
from triton import language

from detection3d.model import norm_kernels
from detection3d.model.fused_norm import FusedNorm
from detection3d.model.norm import BatchNorm
from detection3d.multitask import exchange_programs
from detection3d.multitask.exchange import LARGEST, SITE_ROOM, SLOTS, Exchange
from detection3d.multitask.ranks import Ranks

SIZE = 3
FEW, CHANNELS = 4, 20
PROGRAMS = norm_kernels.programs_for(CHANNELS)  # two, one of them with columns to spare
TURNS = 12
PATIENCE = 120.0  # seconds


@dataclass
class Memory:
    """What torch's symmetric memory does."""

    rooms: list[Tensor]

    def get_buffer(self, rank: int, shape: list[int], dtype: torch.dtype, start: int) -> Tensor:
        count = torch.Size(shape).numel()
        return self.rooms[rank].view(dtype)[start : start + count].view(shape)


def main() -> None:
    """Compare three ranks with one that has the rows of all: sums of two have no order."""
    rooms = [torch.zeros(SLOTS * LARGEST + SITE_ROOM, dtype=torch.uint8).share_memory_() for _ in range(SIZE)]
    context = processes.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        workers = [context.Process(target=work, args=(rank, rooms, Path(folder)), daemon=True) for rank in range(SIZE)]
        try:
            for worker in workers:
                worker.start()
            left = [worker.sentinel for worker in workers]
            while left:
                ended = wait(left, PATIENCE)
                assert ended, "the ranks wait for each other"
                left = [sentinel for sentinel in left if sentinel not in ended]
                assert all(worker.exitcode in (None, 0) for worker in workers)
        finally:
            for worker in workers:  # which may wait for the others without end
                worker.kill()
        found = [torch.load(Path(folder) / str(rank)) for rank in range(SIZE)]
    norm = BatchNorm(CHANNELS, relu=True)
    for turn, (outputs, gradients, state) in enumerate(run(norm, None, 0)):
        shares = [found[rank][0][turn] for rank in range(SIZE)]
        assert all(torch.equal(value, other[2][name]) for other in shares for name, value in shares[0][2].items())
        close(shares[0][2], state)
        close(torch.cat([share[0] for share in shares]), outputs)
        close(torch.cat([share[1][0] for share in shares]), gradients[0])
        for place in (1, 2):  # of weight and bias, each rank has its own rows' share
            close(torch.stack([share[1][place] for share in shares]).sum(0), gradients[place])
    assert all(torch.equal(found[0][1], other[1]) for other in found)
    close(found[0][1], ahead(BatchNorm(FEW), (1 + SIZE) / 2))


def work(rank: int, rooms: list[Tensor], folder: Path) -> None:
    exchange = Exchange(Memory(rooms), rank, SIZE)
    norm = BatchNorm(CHANNELS, relu=True)
    norm.ranks = Ranks(SIZE, None, exchange)
    site = exchange.site(1)
    assert site is not None
    assert exchange_programs.sums_are_right(site, torch.device("cpu"))
    norm.sites = exchange.site(PROGRAMS), exchange.site(PROGRAMS)
    both_ways = run(norm, rank, seed=rank)
    if rank == 1:  # slow between waiting for the other's message and reading it
        language.debug_barrier = lambda: time.sleep(0.1)
    alone = BatchNorm(FEW)
    alone.ranks, alone.sites = norm.ranks, (exchange.site(1), exchange.site(1))
    torch.save((both_ways, ahead(alone, 1 + rank)), folder / str(rank))


def ahead(norm: BatchNorm, factor: float) -> Tensor:
    """Only go forward, where the fast rank is at the same site again while the slow one still reads."""
    means = []
    for turn in range(TURNS):
        values = torch.full((5, FEW), factor * turn)
        FusedNorm.apply(values, norm.weight, norm.bias, None, norm, False, norm_kernels)
        assert norm.running_mean is not None
        means.append(norm.running_mean.clone())
    return torch.stack(means)


def run(norm: BatchNorm, rank: int | None, seed: int) -> list[tuple[Tensor, list[Tensor], dict[str, Tensor]]]:
    pause = random.Random(seed)
    outcome = []
    for turn in range(TURNS):
        generator = torch.Generator().manual_seed(turn)
        values, gradient = (torch.randn(60, CHANNELS, generator=generator) + 3 for _ in range(2))
        first = (0, 1, 25, 60)[turn % 4]
        rows = slice(None) if rank is None else (slice(0, first), slice(first, 40), slice(max(first, 40), None))[rank]
        given = values[rows].clone().requires_grad_()
        if pause.random() < 0.5:
            time.sleep(0.05 * pause.random())
        result = FusedNorm.apply(given, norm.weight, norm.bias, None, norm, True, norm_kernels)
        assert isinstance(result, Tensor)
        gradients = torch.autograd.grad(result, [given, norm.weight, norm.bias], gradient[rows])
        state = {name: value.clone() for name, value in norm.state_dict().items()}
        outcome.append((result.detach(), [value.detach() for value in gradients], state))
    return outcome


def close(found: object, expected: object) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


if __name__ == "__main__":
    main()
