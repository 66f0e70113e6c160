"""How long the parts of a step take: moments are marked on the device and read at logged steps; no GPU waits."""

import time
from dataclasses import dataclass
from itertools import pairwise

import torch


class Moment:
    """Now: when the device comes to this point, or on the CPU, when the host did.

    Args:
        device: whose time is taken.
    """

    def __init__(self, device: torch.device) -> None:
        self._event = None
        if device.type == "cuda":
            self._event = torch.cuda.Event(enable_timing=True)
            self._event.record()
        self._time = time.perf_counter()

    def seconds_until(self, later: "Moment") -> float:
        """Return the time between two moments of one device; waits until the later one has come."""
        if self._event is None or later._event is None:
            return later._time - self._time
        later._event.synchronize()
        return self._event.elapsed_time(later._event) / 1e3


@dataclass(frozen=True)
class StepTimes:
    """The moments of a step.

    Attributes:
        start: before the batch is unpacked.
        forward: after the losses.
        backward: after the backward pass, in which the fork combines the gradients.
        optimizer: after the optimiser and the average.
        more: of each further micro-batch, after its losses and after its backward pass, one behind the other.
    """

    start: Moment
    forward: Moment
    backward: Moment
    optimizer: Moment
    more: tuple[Moment, ...] = ()

    def parts(self) -> tuple[float, float, float]:
        """Return seconds of forward passes, backward passes and the optimiser; waits for the device."""
        ends = [self.start, self.forward, self.backward, *self.more]
        seconds = [before.seconds_until(after) for before, after in pairwise(ends)]
        return sum(seconds[::2]), sum(seconds[1::2]), ends[-1].seconds_until(self.optimizer)


class Stopwatch:
    """Means over the steps since the last logged one.

    Args:
        samples: of a step, over all ranks.
    """

    def __init__(self, samples: int) -> None:
        self._samples = samples
        self._steps: list[StepTimes] = []
        self._waited = self._total = 0.0

    def add(self, times: StepTimes, waited: float, total: float) -> None:
        """Take a step.

        Args:
            times: of its parts.
            waited: seconds that the host waited for the batch.
            total: seconds that the host spent on the step, this waiting included.
        """
        self._steps.append(times)
        self._waited += waited
        self._total += total

    def read(self) -> dict[str, float]:
        """Return seconds by name and samples a second, and begin anew; waits for the device."""
        steps, self._steps = self._steps, []
        count = max(1, len(steps))
        sums_of_parts = [sum(part) for part in zip(*(step.parts() for step in steps), strict=True)] or [0.0] * 3
        parts = dict(zip(("time/forward", "time/backward", "time/optimizer"), sums_of_parts, strict=True))
        sums = {"time/step": self._total, "time/data": self._waited, **parts}
        self._waited = self._total = 0.0
        values = {name: value / count for name, value in sums.items()}
        values["time/samples_per_second"] = self._samples / values["time/step"] if values["time/step"] else 0.0
        return values
