"""Thousands of steps on several ranks, one of them slowed at random places: does anything hang, do weights drift apart?

Collectives of three kinds are under way in a backward pass: the fork's, the batch normalisations' and, in small
buckets, DistributedDataParallel's. The penalty differentiates twice, so all of them occur in the forward pass as well.
Where ranks issued them in different orders, they would wait for each other until the timeout ends the run.

    torchrun --standalone --nproc-per-node 2 tests/multitask/rank_endurance.py --backend nccl --steps 2000
"""

import argparse
import gc
import json
import os
import random
import sys
import time
from datetime import timedelta

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from detection3d.model.norm import BatchNorm, synchronize_norms
from detection3d.multitask import GradDrop, GradientPenalty, TaskFork
from detection3d.multitask.exchange import open_exchange

TASKS = ("classification", "box", "orientation")
TIMEOUT = timedelta(seconds=60)
BUCKET_MB = 1e-3
LONGEST_SLEEP = 0.005  # seconds
SLEEPS_IN = 0.1  # share of the places at which the slow rank sleeps


class Net(nn.Module):
    """A small convolutional net with a fork, normalised over all ranks, before and after it."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(*_block(3, 16), *_block(16, 16), *_block(16, 16)[:2])
        self.fork = TaskFork(TASKS, GradientPenalty(then=GradDrop(), weight=0.01), telemetry_every=10)
        self.heads = nn.ModuleDict(
            {task: nn.Sequential(nn.ReLU(), *_block(16, 8), nn.Conv2d(8, 1, 1)) for task in TASKS}
        )

    def forward(self, image: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return each head's map, and the fork's features."""
        features = self.fork(self.backbone(image))
        return {task: head(features[task]) for task, head in self.heads.items()}, features


def _block(in_channels: int, out_channels: int) -> list[nn.Module]:
    return [nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False), BatchNorm(out_channels), nn.Tanh()]


def slow_down(net: nn.Module, seed: int) -> None:
    """Sleep now and then before a layer runs, forward or backward."""
    generator = random.Random(seed)

    def sleep(*_: object) -> None:
        if generator.random() < SLEEPS_IN:
            time.sleep(LONGEST_SLEEP * generator.random())

    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_pre_hook(sleep)
            module.weight.register_hook(sleep)


def train(steps: int, backend: str) -> dict[str, object]:
    """Train, and return what a reader wants to know; every rank returns the same."""
    rank, size = dist.get_rank(), dist.get_world_size()
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if backend == "nccl" else torch.device("cpu")
    torch.manual_seed(0)
    net = Net().to(device)
    net.fork.exchange = open_exchange(None, device)
    synchronize_norms(net, exchange=net.fork.exchange)
    if rank == size - 1:
        slow_down(net, seed=1)
    device_ids = [device] if backend == "nccl" else None
    parallel = DistributedDataParallel(net, device_ids=device_ids, bucket_cap_mb=BUCKET_MB)
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
    generator = torch.Generator().manual_seed(rank)
    started, measured = time.perf_counter(), 0
    for step in range(steps):
        net.fork.set_step(step)
        image = torch.randn(2, 3, 12, 12, generator=generator).to(device)
        outputs, features = parallel(image)
        losses = {
            task: (output - image[:, k : k + 1]).square().mean() for k, (task, output) in enumerate(outputs.items())
        }
        torch.stack(list(net.fork.weigh(losses, features).values())).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        measured += net.fork.read_telemetry() is not None
    weights = torch.cat([value.detach().double().flatten() for value in net.state_dict().values()])
    everyone = [torch.empty_like(weights) for _ in range(size)]
    dist.all_gather(everyone, weights)
    return {
        "backend": backend,
        "ranks": size,
        "steps": steps,
        "measured": measured,
        "seconds": round(time.perf_counter() - started, 1),
        "finite": bool(weights.isfinite().all()),
        "equal": all(torch.equal(weights, other) for other in everyone),
    }


def main() -> None:
    """Run under torchrun; the first rank writes a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", choices=["gloo", "nccl"], default="gloo")
    parser.add_argument("--steps", type=int, default=2000)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.backend == "nccl":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group(arguments.backend, timeout=TIMEOUT)
    report = train(arguments.steps, arguments.backend)
    if dist.get_rank() == 0:
        sys.stdout.write(json.dumps(report) + "\n")
    gc.collect()  # DistributedDataParallel holds the process group, whose threads must not outlive it
    dist.destroy_process_group()
    sys.exit(0 if report["finite"] and report["equal"] else 1)


if __name__ == "__main__":
    main()
