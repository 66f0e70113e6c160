"""What a method at the fork costs a detector's training step."""

from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from detection3d.benchmark.fork import BASELINE
from detection3d.config import Config
from detection3d.data.loader import build_loader
from detection3d.data.store import Store
from detection3d.model.heads import TASKS
from detection3d.multitask import Method, Sum, TaskFork
from detection3d.training.loop import train_step
from detection3d.training.state import build_state
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
    loader = build_loader(
        Store.open(store),
        global_batch_size=config.training.batch_size,
        seed=config.seed,
        workers=0,
        start_step=0,
        total_steps=1,
    )
    return to_device(next(iter(loader)), device)


def detector_steps(
    config: Config, batch: Batch, chosen: Mapping[str, Method], device: torch.device, telemetry_every: int
) -> dict[str, Callable[[], None]]:
    """Return a whole training step for each method, and one without a fork under the name `BASELINE`.

    All share one detector and one optimizer, so that a Waymo-scale network fits in memory once; the fork is exchanged
    before each step.

    Args:
        config: the run; its own method is not used.
        batch: on the device.
        chosen: the methods by name.
        device: where to train.
        telemetry_every: as for `TaskFork`.
    """
    state = build_state(config, device)

    def build(fork: TaskFork) -> Callable[[], None]:
        fork = fork.to(device)

        def step() -> None:
            state.model.fork = fork
            state.model.train()
            train_step(state, batch, config)
            if fork.telemetry_every and state.step % fork.telemetry_every == 0:
                fork.read_telemetry()

        return step

    forks = {name: TaskFork(TASKS, method, telemetry_every=telemetry_every) for name, method in chosen.items()}
    return {BASELINE: build(_NoFork()), **{name: build(fork) for name, fork in forks.items()}}
