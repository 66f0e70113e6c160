"""The batches of a run, in the order that its seed gives."""

import time
from collections.abc import Iterator

from detection3d.config import Config
from detection3d.data.loader import build_loader
from detection3d.data.object_candidates import ObjectSampler
from detection3d.data.sampling import Sampling
from detection3d.data.store import Store
from detection3d.training.team import Team
from detection3d.types.tensors import Batch

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
        micro_batches=config.training.accumulation,
        total_steps=config.training.steps if total_steps is None else total_steps,
        sampling=Sampling.of(config),
        sweeps=config.data.sweeps,
        objects=ObjectSampler.of(config),
    )


class Waiting:
    """Batches, and how long their reader waited for them.

    Attributes:
        seconds: of waiting since it was last set to 0.
    """

    def __init__(self, batches: Iterator[Batch]) -> None:
        self._batches = batches
        self.seconds = 0.0

    def __iter__(self) -> "Waiting":
        """Return itself."""
        return self

    def __next__(self) -> Batch:
        """Return the next batch."""
        began = time.perf_counter()
        try:
            return next(self._batches)
        finally:
            self.seconds += time.perf_counter() - began
