"""What a whole training step takes: augmentation, voxels, targets, forward, losses, backward, optimiser and average."""

import itertools
import random
import time
from dataclasses import dataclass

import torch
from torch import distributed as dist

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
ENDLESS = 1_000_000  # steps


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


@dataclass(frozen=True)
class Scaling:
    """The same training by one rank and by all of them, in turns.

    Attributes:
        alone: steps of the first rank with its share of the batches, while the others wait; zeros on those.
        apart: steps of each rank for itself, with its share, at the same time: what sharing the host costs.
        together: steps of all ranks with the whole batches, by `multitask.sync`.
        memory: peak of this rank over all of them, GB.
    """

    alone: Timing
    apart: Timing
    together: dict[str, Timing]
    memory: float


class TimedTraining:
    """A training whose batches lie in the host's memory, for so many steps as are asked for.

    Args:
        config: the run, with `data.train` set.
        device: where to train.
        batches: different ones, which are used in turns.
        team: the ranks that share each batch.
        alone: a process group of this rank, which takes its share, but trains with nobody.
    """

    def __init__(
        self,
        config: Config,
        device: torch.device,
        batches: int,
        team: Team = ALONE,
        alone: dist.ProcessGroup | None = None,
    ) -> None:
        assert config.data.train is not None
        store = Store.open(config.data.train)
        # Few frames make few steps, of which the last are not augmented: these are a run's first.
        self.config = _changed(config, steps=ENDLESS, epochs=0.0)
        held = list(training_batches(store, self.config, total_steps=batches, workers=0, team=team))
        self.points = sum(int(batch.points.counts.sum()) for batch in held) / sum(batch.size for batch in held)
        held = [pin(batch) for batch in held] if device.type == "cuda" else held
        self.state = build_state(self.config, device)
        self.state.fork.process_group = alone
        if team.size > 1 and alone is None:
            distribute(self.state, sync_norms=self.config.training.synchronizes_norms(team.size))
        self.state.model.train()
        self._inputs = step_inputs(itertools.cycle(held), self.state.model, self.config, device, 0)
        self.stopwatch = Stopwatch(self.config.training.batch_size)

    def run(self, steps: int) -> float:
        """Train so many steps, and return how many seconds one took; the device is waited for at the end alone."""
        wait_for(self.state.device)
        begin = time.perf_counter()
        for given in itertools.islice(self._inputs, steps):
            result = train_step(self.state, given, self.config)
            self.stopwatch.add(result.times, 0.0, 0.0)
        wait_for(self.state.device)
        return (time.perf_counter() - begin) / steps


def time_steps(
    config: Config, device: torch.device, *, rounds: int, steps: int, batches: int, team: Team = ALONE
) -> StepTiming:
    """Train for `rounds` times `steps` steps, and time each round.

    Args:
        config: the run, with `data.train` set.
        device: where to train.
        rounds: that are timed.
        steps: of a round.
        batches: different ones, which are used in turns.
        team: the ranks that share each batch.
    """
    training = TimedTraining(config, device, batches, team)
    training.run(WARM_UP)
    training.stopwatch.read()
    seconds = tuple(training.run(steps) for _ in range(rounds))
    parts = {name: value for name, value in training.stopwatch.read().items() if value and "step" not in name}
    skipped = int(training.state.skipped[0])
    return StepTiming(Timing(seconds), parts, skipped, peak_memory(device), training.points)


def time_scaling(config: Config, device: torch.device, team: Team, *, rounds: int, steps: int, batches: int) -> Scaling:
    """Time one rank alone, each for itself, all ranks, and all ranks whose forks share nothing, in turns.

    Args:
        config: the run, whose batch is that of all ranks.
        device: of this rank.
        team: all ranks.
        rounds: that are timed, each of one turn of each.
        steps: of a turn.
        batches: different ones, which are used in turns.
    """
    own, _ = dist.new_subgroups(group_size=1)  # a method that learns would talk to the others otherwise
    assert isinstance(own, dist.ProcessGroup)
    apart = TimedTraining(_forked(config, "none"), device, batches, team, own)
    trainings = {
        "alone": apart if team.first else None,
        "apart": apart,
        "full": TimedTraining(_forked(config, "full"), device, batches, team),
        "none": TimedTraining(_forked(config, "none"), device, batches, team),
    }
    seconds: dict[str, list[float]] = {name: [] for name in trainings}
    order = random.Random(0)  # the same on all ranks
    for turn in range(1 + rounds):
        names = list(trainings)
        order.shuffle(names)
        for name in names:
            training = trainings[name]
            team.wait()
            took = 0.0 if training is None else training.run(steps if turn else WARM_UP)
            seconds[name].append(took)
    timings = {name: Timing(tuple(values[1:])) for name, values in seconds.items()}
    return Scaling(timings.pop("alone"), timings.pop("apart"), timings, peak_memory(device))


def _changed(config: Config, **settings: float) -> Config:
    """Return the run with other settings of the training."""
    return config.model_copy(update={"training": config.training.model_copy(update=settings)})


def _forked(config: Config, sync: str) -> Config:
    """Return the run with another sync of the fork."""
    return config.model_copy(update={"multitask": config.multitask.model_copy(update={"sync": sync})})
