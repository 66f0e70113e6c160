"""Where the host's time of a training step goes, on CUDA: whether it or the GPU sets the pace, and what takes it.

python tests/benchmarks/host_profile.py waymo_voxel training.batch_size=8 --data DATA
torchrun --standalone --nproc-per-node 2 tests/benchmarks/host_profile.py waymo_voxel training.batch_size=16 --data DATA

A step whose input is prepared already is what the network's thread does alone; the difference to a whole step is what
the preparing thread takes from it, since Python lets one of them run at a time. Times under a profiler are too long,
but say what is worth looking at.
"""

import argparse
import cProfile
import itertools
import pstats
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from detection3d.benchmark.step import WARM_UP, TimedTraining
from detection3d.cli.device import choose_device
from detection3d.config_file import load_config
from detection3d.training import step as step_module
from detection3d.training.launch import read_launch
from detection3d.training.step import train_step
from detection3d.training.team import Team, joined_team

ROWS = 40


def main() -> None:
    """Print medians, torch's profile and Python's."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="a YAML file, or the name of a shipped config")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--data", type=Path, required=True, help="a prepared store")
    parser.add_argument("--steps", type=int, default=20)
    options = parser.parse_intermixed_args()
    config = load_config(options.config, [f"data.train={options.data}", *options.overrides])
    launch = read_launch()
    device = choose_device(None, launch)
    if device.type != "cuda":
        sys.exit("this needs a CUDA device: on the CPU nothing runs beside the host")
    with joined_team(launch, device) as team:
        _measure(TimedTraining(config, device, 6, team), team, options.steps)


def _measure(training: TimedTraining, team: Team, steps: int) -> None:
    def say(text: str) -> None:
        if team.first:
            print(text, flush=True)

    training.run(WARM_UP)
    say(f"whole steps: {1e3 * training.run(steps):.1f} ms")
    kept = []
    for given in itertools.islice(training._inputs, 4):
        kept.append(given)
        train_step(training.state, given, training.config)
    torch.cuda.synchronize()

    def prepared(count: int) -> tuple[float, float]:
        begin = time.perf_counter()
        for number in range(count):
            train_step(training.state, kept[number % len(kept)], training.config)
        launched = time.perf_counter() - begin
        torch.cuda.synchronize()
        return 1e3 * launched / count, 1e3 * (time.perf_counter() - begin) / count

    prepared(len(kept))
    host, whole = prepared(steps)
    say(f"prepared steps: {whole:.1f} ms, launched in {host:.1f} ms")
    parts = _parts(lambda: prepared(1), steps)
    say("one at a time: " + ", ".join(f"{name} {value:.1f} ms" for name, value in parts.items()))
    with profile(activities=[ProfilerActivity.CUDA], acc_events=True) as found:  # which leaves the host alone
        wall = 1e3 * training.run(len(kept))
    print(f"rank {team.rank}: whole steps {wall:.1f} ms, {_occupied(found, len(kept))}", flush=True)
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA], acc_events=True) as found:
        prepared(len(kept))
    for key in ("self_cpu_time_total", "self_cuda_time_total"):
        say(found.key_averages().table(sort_by=key, row_limit=ROWS, max_name_column_width=60))
    with torch.autograd.set_multithreading_enabled(False), cProfile.Profile() as own:  # backward passes on this thread
        prepared(len(kept))
    if team.first:
        for order in ("tottime", "cumtime"):
            pstats.Stats(own).sort_stats(order).print_stats(ROWS)


def _occupied(found: profile, steps: int) -> str:
    """Say how long the GPU is at work in a step, and how long with what may wait for other ranks.

    The kernels that finish a normalisation do so where it is over ranks.
    """
    kernels = [event for event in found.events() or () if event.device_type == DeviceType.CUDA]
    kernels = [event for event in kernels if not event.is_user_annotation]
    busy = end = 0.0
    for event in sorted(kernels, key=lambda event: event.time_range.start):
        busy += max(0.0, event.time_range.end - max(end, event.time_range.start))
        end = max(end, event.time_range.end)
    told = [f"the GPU is busy for {1e-3 * busy / steps:.1f} ms"]
    for name in ("nccl", "barrier_kernel", "finish_kernel", "finish_gradient_kernel"):
        spent = [event.time_range.elapsed_us() for event in kernels if name in event.name]
        if spent:
            told.append(f"{name} {len(spent) / steps:.0f} times for {1e-3 * sum(spent) / steps:.2f} ms")
    return ", ".join(told)


def _parts(step: Callable[[], Any], steps: int) -> dict[str, float]:
    """Return medians of the host's time in forward, backward and the whole step, each into an empty queue."""
    took: dict[str, list[float]] = defaultdict(list)

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **named: Any) -> Any:
            begin = time.perf_counter()
            result = function(*arguments, **named)
            took[name].append(1e3 * (time.perf_counter() - begin))
            return result

        return run

    forward, backward = step_module._forward, torch.Tensor.backward
    step_module._forward, torch.Tensor.backward = timed("forward", forward), timed("backward", backward)
    try:
        for _ in range(steps):
            timed("until the GPU has done", step)()
    finally:
        step_module._forward, torch.Tensor.backward = forward, backward
    return {name: statistics.median(values) for name, values in took.items()}


if __name__ == "__main__":
    main()
