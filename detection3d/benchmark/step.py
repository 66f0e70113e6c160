"""What a whole training step takes: augmentation, voxels, targets, forward, losses, backward, optimiser and average."""

import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from detection3d.benchmark.timing import Timing, wait_for
from detection3d.config import Config
from detection3d.data.store import Store
from detection3d.training.batches import ALONE, training_batches
from detection3d.training.clock import Stopwatch
from detection3d.training.distributed import distribute
from detection3d.training.memory import peak_memory
from detection3d.training.state import build_state
from detection3d.training.step import train_step
from detection3d.training.step_input import step_inputs
from detection3d.training.team import Team
from detection3d.types.tensors import pin

WARM_UP = 15  # steps, in which kernels are chosen and graphs recorded


@dataclass(frozen=True)
class StepTiming:
    """Steps of a training whose batches lie in the host's memory.

    Attributes:
        step: of each round, for one step.
        parts: seconds of forward, backward and optimiser, as the device had them, mean over all rounds; what runs
            beside them, such as the next step's preparation, is part of them.
        skipped: steps left out as not finite.
        memory: peak, GB.
        points: mean number of a frame.
    """

    step: Timing
    parts: dict[str, float]
    skipped: int
    memory: float
    points: float


def time_steps(
    config: Config, device: torch.device, *, rounds: int, steps: int, batches: int, team: Team = ALONE
) -> StepTiming:
    """Train for `rounds` times `steps` steps, and time each round.

    Args:
        config: the run, with `data.train` set.
        device: where to train.
        rounds: that are timed.
        steps: of a round; the device is waited for at its end alone.
        batches: different ones, which are used in turns.
        team: the ranks that share each batch.
    """
    assert config.data.train is not None
    store = Store.open(config.data.train)
    config = config.in_steps(len(store.every(config.data.every)))
    held = list(training_batches(store, config, total_steps=batches, workers=0, team=team))
    held = [pin(batch) for batch in held] if device.type == "cuda" else held
    state = build_state(config, device)
    if team.size > 1:
        distribute(state, sync_norms=config.training.sync_batch_norm)
    state.model.train()
    total = WARM_UP + rounds * steps
    inputs = step_inputs(itertools.islice(itertools.cycle(held), total), state.model, config, device, 0)
    stopwatch, seconds = Stopwatch(config.training.batch_size), []

    def train(count: int) -> Iterator[None]:
        for given in itertools.islice(inputs, count):
            result = train_step(state, given, config)
            stopwatch.add(result.times, 0.0, 0.0)
            yield

    for _ in train(WARM_UP):
        pass
    wait_for(device)
    stopwatch.read()
    for _ in range(rounds):
        begin = time.perf_counter()
        for _ in train(steps):
            pass
        wait_for(device)
        seconds.append((time.perf_counter() - begin) / steps)
    parts = {name: value for name, value in stopwatch.read().items() if value and "step" not in name}
    points = sum(int(batch.points.counts.sum()) for batch in held) / sum(batch.size for batch in held)
    return StepTiming(Timing(tuple(seconds)), parts, int(state.skipped[0]), peak_memory(device), points)
