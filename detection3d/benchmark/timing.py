"""Timing in turns: machines are noisy, so what is compared runs alternately and is told as a ratio."""

import contextlib
import os
import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch

Name = TypeVar("Name")

WARM_UP = 3  # rounds that are not counted


@dataclass(frozen=True)
class Timing:
    """Durations of one of the compared.

    Attributes:
        seconds: of each round, for one call.
    """

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """Median duration of a call, seconds."""
        return statistics.median(self.seconds)

    def speed(self, baseline: "Timing") -> float:
        """Return the speed relative to `baseline`: the median of the rounds' ratios, 1 is as fast, 0.5 half as fast."""
        pairs = zip(baseline.seconds, self.seconds, strict=True)
        return statistics.median(theirs / ours for theirs, ours in pairs)


def time_in_turns(
    calls: Mapping[Name, Callable[[], object]], device: torch.device, *, rounds: int, calls_a_round: int = 1
) -> dict[Name, Timing]:
    """Time functions alternately, each round in another order.

    Args:
        calls: what is compared, by name.
        device: waited for before and after each turn.
        rounds: that are counted; some more come first to warm up.
        calls_a_round: calls of a function in one turn; the device is waited for after the last, as in training.
    """
    order = random.Random(0)
    seconds: dict[Name, list[float]] = {name: [] for name in calls}
    for turn in range(WARM_UP + rounds):
        names = list(calls)
        order.shuffle(names)
        for name in names:
            duration = _seconds(calls[name], device, calls_a_round)
            if turn >= WARM_UP:
                seconds[name].append(duration)
    return {name: Timing(tuple(values)) for name, values in seconds.items()}


def table(rows: Sequence[tuple[str, Timing]], baseline: Timing) -> list[str]:
    """Return a line for each timing: milliseconds and speed relative to the baseline."""
    return [
        f"{name:34} {1e3 * timing.median:9.3f} ms   {timing.speed(baseline):.3f} of the baseline's speed"
        for name, timing in rows
    ]


def _seconds(call: Callable[[], object], device: torch.device, calls: int) -> float:
    wait_for(device)
    begin = time.perf_counter()
    for _ in range(calls):
        call()
    wait_for(device)
    return (time.perf_counter() - begin) / calls


def wait_for(device: torch.device) -> None:
    """Wait until a GPU has done what it was told; a CPU has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextlib.contextmanager
def one_core() -> Iterator[None]:
    """Hold this process, all its threads and the processes that it starts to one core, where the system can (Linux).

    Without, a library's helper threads would count as speed of the code that is timed.
    """
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    allowed = os.sched_getaffinity(0)
    _hold_threads({max(allowed)})
    try:
        yield
    finally:
        _hold_threads(allowed)


def _hold_threads(cores: set[int]) -> None:
    for thread in Path("/proc/self/task").iterdir():
        with contextlib.suppress(ProcessLookupError):  # it has ended meanwhile
            os.sched_setaffinity(int(thread.name), cores)
