"""What a method at the fork costs a detector's training step."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from detection3d.benchmark.fork import BASELINE
from detection3d.benchmark.timing import Timing, time_in_turns
from detection3d.config import Config
from detection3d.data.store import Store
from detection3d.model.heads import TASKS
from detection3d.multitask import Method, Sum, TaskFork
from detection3d.training.batches import training_batches
from detection3d.training.state import build_state
from detection3d.training.step import train_step
from detection3d.types.tensors import Batch, to_device


class _NoFork(TaskFork):
    """Hands every head the shared feature itself, so that autograd adds the gradients up."""

    def __init__(self) -> None:
        super().__init__(TASKS, Sum())

    def train(self, mode: bool = True) -> "_NoFork":
        """Stay in evaluation mode, where the fork is the identity."""
        return super().train(False)  # pyright: ignore[reportReturnType]


def first_batch(store: Path, config: Config, device: torch.device) -> Batch:
    """Return the first training batch of a store, on the device."""
    return to_device(next(training_batches(Store.open(store), config, total_steps=1, workers=0)), device)


@dataclass(frozen=True)
class DetectorTiming:
    """Whole training steps of a detector with one method.

    Attributes:
        plain: steps whose telemetry isn't measured.
        measured: steps whose telemetry is; the same as `plain` without a fork.
    """

    plain: Timing
    measured: Timing

    def mixed(self, telemetry_every: int) -> Timing:
        """Return the mean step of a training that measures every so many steps; 0: never."""
        share = 1 / telemetry_every if telemetry_every else 0.0
        pairs = zip(self.plain.seconds, self.measured.seconds, strict=True)
        return Timing(tuple(plain + share * (measured - plain) for plain, measured in pairs))


def time_detector(
    config: Config, batch: Batch, chosen: Mapping[str, Method], device: torch.device, *, rounds: int
) -> dict[str, DetectorTiming]:
    """Time a whole training step for each method, and one without a fork under the name `BASELINE`, in turns.

    All share one detector and one optimizer, so that a Waymo-scale network fits in memory once; the fork is exchanged
    before each step.

    Args:
        config: the run; its own method is not used.
        batch: on the device.
        chosen: the methods by name.
        device: where to train.
        rounds: steps of each kind that count.
    """
    state = build_state(config, device)

    def build(fork: TaskFork) -> Callable[[], None]:
        fork = fork.to(device)

        def step() -> None:
            state.model.fork = fork
            state.model.train()
            train_step(state, batch, config)
            if fork.telemetry_every:
                fork.read_telemetry()

        return step

    calls = {(BASELINE, False): build(_NoFork())}
    for name, method in chosen.items():
        for measured in (False, True):
            calls[name, measured] = build(TaskFork(TASKS, method, telemetry_every=int(measured)))
    timings = time_in_turns(calls, device, rounds=rounds)
    return {
        name: DetectorTiming(timings[name, False], timings.get((name, True), timings[name, False]))
        for name in (BASELINE, *chosen)
    }
