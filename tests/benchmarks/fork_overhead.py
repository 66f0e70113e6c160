"""Time of a training step with the fork against the same step with the plain sum, run in turns.

    python tests/benchmarks/fork_overhead.py --device cpu --channels 64 --size 64 --batch 4 --rounds 9

Prints the fastest round of each and its ratio to that of a net without a fork, which is the plain sum. The backbone has
eight convolutions and each of the three heads two.
"""

import argparse
import time
from collections.abc import Callable

import torch
from torch import nn

from detection3d.multitask import GradDrop, Sum, TaskFork

TASKS = ("classification", "box", "orientation")


def build(channels: int, fork: TaskFork | None, device: str) -> Callable[[torch.Tensor], None]:
    """Return a function that runs forward and backward of a net with this fork, or without one."""
    torch.manual_seed(0)

    def convolution(outputs: int) -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(channels, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU())

    backbone = nn.Sequential(*(convolution(channels) for _ in range(8))).to(device)
    heads = [nn.Sequential(convolution(channels), nn.Conv2d(channels, 2, 3, padding=1)).to(device) for _ in TASKS]
    fork = None if fork is None else fork.to(device)

    def step(image: torch.Tensor) -> None:
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            shared = backbone(image)
            features = dict.fromkeys(TASKS, shared) if fork is None else fork(shared)
            outputs = [head(features[task]) for task, head in zip(TASKS, heads, strict=True)]
        torch.stack([output.float().square().mean() for output in outputs]).sum().backward()

    return step


def seconds(step: Callable[[torch.Tensor], None], image: torch.Tensor) -> float:
    """Return the duration of one step, the device's work included."""
    if image.is_cuda:
        torch.cuda.synchronize()
    begin = time.perf_counter()
    step(image)
    if image.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--channels", type=int, default=64)
    parser.add_argument("--size", type=int, default=64, help="rows and columns of the features")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()

    forks = {
        "plain sum, no fork": None,
        "fork, sum": TaskFork(TASKS, Sum()),
        "fork, GradDrop over the batch": TaskFork(TASKS, GradDrop()),
        "fork, GradDrop over the batch, telemetry": TaskFork(TASKS, GradDrop(), telemetry_every=1),
        "fork, GradDrop over batch and space": TaskFork(TASKS, GradDrop(marginalize="batch+space")),
        "fork, GradDrop of single elements": TaskFork(TASKS, GradDrop(marginalize="none")),
    }
    steps = {name: build(options.channels, fork, options.device) for name, fork in forks.items()}
    image = torch.randn(options.batch, options.channels, options.size, options.size, device=options.device)
    fastest = dict.fromkeys(steps, float("inf"))
    for turn in range(options.rounds + 1):
        for name, step in steps.items():
            duration = seconds(step, image)
            if turn > 0:  # the first turn warms up
                fastest[name] = min(fastest[name], duration)
    plain = next(iter(fastest.values()))
    for name, duration in fastest.items():
        print(f"{name:42} {1e3 * duration:8.2f} ms   {duration / plain:.3f} of the plain sum")


if __name__ == "__main__":
    main()
