"""The batches of a run, in the order that its seed gives."""

import time
from collections.abc import Iterator

import torch

from detection3d.config import Config
from detection3d.data.loader import build_loader
from detection3d.data.object_candidates import ObjectSampler
from detection3d.data.sampling import Sampling
from detection3d.data.store import Store
from detection3d.training.team import Team
from detection3d.types.tensors import Batch, to_device

ALONE = Team()
"""One rank."""


def training_batches(
    store: Store,
    config: Config,
    *,
    start_step: int = 0,
    total_steps: int | None = None,
    workers: int | None = None,
    team: Team = ALONE,
) -> Iterator[Batch]:
    """Yield the batches of a run, on the CPU.

    Args:
        store: the training data.
        config: the run.
        start_step: steps done.
        total_steps: where to end; None takes the config's.
        workers: loader processes; None takes the config's.
        team: whose share of the batches to take; the batch of the config is that of all ranks.
    """
    return build_loader(
        store,
        global_batch_size=config.training.batch_size,
        seed=config.seed,
        workers=config.data.workers if workers is None else workers,
        start_step=start_step,
        rank=team.rank,
        world_size=team.size,
        total_steps=config.training.steps if total_steps is None else total_steps,
        sampling=Sampling.of(config),
        sweeps=config.data.sweeps,
        objects=ObjectSampler.of(config),
    )


def timed(batches: Iterator[Batch], device: torch.device) -> Iterator[tuple[Batch, float]]:
    """Yield each batch on the device, with the seconds that the loop waited for it."""
    while True:
        started = time.perf_counter()
        batch = next(batches, None)
        if batch is None:
            return
        yield to_device(batch, device), time.perf_counter() - started
