"""What is logged of a run's steps: losses, gradients, conflict, times and memory."""

import resource
import time

import torch

from detection3d.config import Config
from detection3d.training.batches import Waiting
from detection3d.training.clock import Stopwatch
from detection3d.training.conflict_files import conflict_view
from detection3d.training.recorder import Recorder, Silence
from detection3d.training.state import TrainState
from detection3d.training.step import StepResult


class StepLog:
    """Hands the numbers of every `log_every`-th step to the recorder; every rank must call it after every step.

    Args:
        config: the run.
        recorder: of this rank.
    """

    def __init__(self, config: Config, recorder: Recorder | Silence) -> None:
        self._config, self._recorder = config, recorder
        self._stopwatch = Stopwatch(config.training.batch_size)
        self._began = time.perf_counter()

    def start(self) -> None:
        """Begin to time a step."""
        self._began = time.perf_counter()

    def add(self, result: StepResult, state: TrainState, batches: Waiting) -> None:
        """Take a step, and log it where it is due.

        Args:
            result: of the step.
            state: after it.
            batches: that the step's one came from; its clock is set back.
        """
        due = state.step % self._config.training.log_every == 0 or state.step == self._config.training.steps
        values: dict[str, float] = {}
        purities = {}
        if due:
            values |= _of_all_ranks(result, state)
            values["optimizer/gradient_norm"] = float(result.gradient_norm)
            values["optimizer/learning_rate"] = result.learning_rate
            values["steps/skipped"] = int(state.skipped[0])
            telemetry = state.fork.read_telemetry(result.loss_scale)
            if telemetry is not None:
                values |= {f"fork/{name}": value for name, value in telemetry.scalars().items()}
                purities["fork/purity"] = telemetry.purity_histogram.tolist()
        # After the reading, for which a logged step waits until the device has done all steps before.
        now = time.perf_counter()
        self._stopwatch.add(result.times, batches.seconds, now - self._began)
        self._began, batches.seconds = now, 0.0
        if due:
            values |= self._stopwatch.read()
            values["memory/GB"] = peak_memory(state.device)
            self._recorder.log(state.step, values, purities)
        conflict = state.fork.read_map(result.loss_scale)
        if conflict is not None:
            self._recorder.log_map(conflict_view(state.step, conflict, self._config.model.point_range))
        self._recorder.advance(state.step)


def peak_memory(device: torch.device) -> float:
    """Return the peak use in GB, of the GPU or of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def _of_all_ranks(result: StepResult, state: TrainState) -> dict[str, float]:
    """Return the losses and objects of the whole batch: on several ranks, the mean and the sum of theirs."""
    losses = {f"loss/{task}": loss.detach() for task, loss in result.losses.as_dict().items()}
    objects = result.objects.to(torch.float32)
    if state.ranks.size == 1:
        return {**{name: float(loss) for name, loss in losses.items()}, "steps/positives": float(objects)}
    *sums, total = state.ranks.sum(torch.stack([*losses.values(), objects])).unbind()
    means = {name: float(value / state.ranks.size) for name, value in zip(losses, sums, strict=True)}
    return {**means, "steps/positives": float(total)}
