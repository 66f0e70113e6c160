"""Steps left out because a loss or a gradient was not finite: told, written down, and the end if they repeat."""

import json
import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch import distributed as dist

from detection3d.errors import DataError, UserError
from detection3d.files import replace_file
from detection3d.training.state import TrainState
from detection3d.training.team import Team
from detection3d.types.tensors import Batch

if TYPE_CHECKING:
    from detection3d.training.step import StepResult

LAG = 2
"""Steps by which a GPU's answers are read late, so that it always has the next step's work when the host waits."""

MOST_KEPT = 200  # entries of non_finite.json


@dataclass(frozen=True)
class LeftOut:
    """A step that was left out, as one rank saw it.

    Attributes:
        step: counted from 1, as in the log.
        rank: whose losses and frames these are.
        losses: by task; None for one that is not finite.
        gradient_norm: of all ranks; None where it is not finite.
        frames: `(context_name, timestamp_micros)` of the rank's batch.
        spoilt: those of them whose points or labels are not finite themselves. Without one, the cause is another rank's
            frame, which batch statistics spread, or in the weights.
    """

    step: int
    rank: int
    losses: dict[str, float | None]
    gradient_norm: float | None
    frames: tuple[tuple[str, int], ...]
    spoilt: tuple[tuple[str, int], ...] = ()

    @property
    def wrong(self) -> list[str]:
        """The tasks whose losses are not finite."""
        return [task for task, loss in self.losses.items() if loss is None]

    def describe(self) -> str:
        """Name the step, what was wrong in it, and the frames."""
        cause = f"; points or labels not finite: {_named(self.spoilt)}" if self.spoilt else ""
        what = f"loss of {', '.join(self.wrong)}" if self.wrong else "gradient"
        return f"step {self.step}, rank {self.rank}: {what} not finite; frames: {_named(self.frames)}{cause}"


@dataclass(frozen=True)
class _Pending:
    """What a step will have said, on its way from the device."""

    step: int
    batch: Batch
    tasks: tuple[str, ...]
    numbers: Tensor  # steps left out in a row, whether this one was, gradient norm, losses
    arrived: torch.cuda.Event | None


class SkippedSteps:
    """Follows the steps of a run, and ends it when too many of them in a row were left out.

    Whether a step is left out is the same on every rank, and so is when a rank reads it: all ranks end after the same
    step.

    Args:
        path: of `non_finite.json`, which the first rank writes.
        state: of the run, before its next step.
        most_in_a_row: steps left out in a row that are borne.
        team: the ranks; at a checkpoint and at the end each of them must call `write`.
        say: tells a message to the person who watches.

    Raises:
        DataError: what an earlier start wrote can't be read.
    """

    def __init__(
        self, path: Path, state: TrainState, most_in_a_row: int, team: Team, say: Callable[[str], None]
    ) -> None:
        self._path, self._most, self._team, self._say = path, most_in_a_row, team, say
        self._lag = LAG if state.device.type == "cuda" else 0
        self._pending: deque[_Pending] = deque()
        self._new: list[LeftOut] = []
        self._written = _read(path, state.step) if team.first else []

    def look(self, result: "StepResult", state: TrainState, batch: Batch) -> None:
        """Take a step's numbers, and read those that have arrived.

        Args:
            result: of the step.
            state: after it.
            batch: of this rank.

        Raises:
            UserError: more steps in a row were left out than are borne. The frames are named.
        """
        losses = result.losses.as_dict()
        numbers = [state.skipped[1], result.left_out, result.gradient_norm, *losses.values()]
        together = torch.stack([number.detach().double() for number in numbers])
        arrived = None
        if together.is_cuda:
            # A copy to memory that is not pinned would wait.
            together = torch.empty_like(together, device="cpu", pin_memory=True).copy_(together, non_blocking=True)
            arrived = torch.cuda.Event()
            arrived.record()
        self._pending.append(_Pending(state.step, batch, tuple(losses), together, arrived))
        while len(self._pending) > self._lag:
            self._read_one()

    def write(self) -> None:
        """Read what is left, and write down what is new; every rank must call this.

        Raises:
            UserError: as `look`.
        """
        while self._pending:
            self._read_one()
        self._write()

    def _read_one(self) -> None:
        seen = self._pending.popleft()
        if seen.arrived is not None:
            seen.arrived.synchronize()
        in_a_row, left_out, norm, *losses = seen.numbers.tolist()
        if not left_out:
            return
        values = {task: _finite(loss) for task, loss in zip(seen.tasks, losses, strict=True)}
        frames = seen.batch.keys
        entry = LeftOut(seen.step, self._team.rank, values, _finite(norm), frames, _spoilt(seen.batch))
        self._new.append(entry)
        if in_a_row > self._most:
            self._refuse(seen.step, int(in_a_row))
        where = entry.describe() if entry.wrong or self._team.size == 1 else f"step {seen.step}: not finite"
        self._say(f"{where}; the step is left out")

    def _refuse(self, step: int, in_a_row: int) -> None:
        everything = self._write()
        last = [entry for entry in everything if step - in_a_row < entry.step <= step]
        # Where all losses are finite, the gradient overflowed, and that of a rank is not known.
        lines = [f"  {entry.describe()}" for entry in last if entry.wrong] or [
            f"  {entry.describe()}" for entry in last
        ]
        limit = f"training.max_skipped_in_a_row is {self._most}"
        reason = f"step {step}: not finite, as {_steps(in_a_row)} in a row were, and {limit}"
        if not self._team.first:
            raise UserError(f"rank {self._team.rank} ends with rank 0: {reason}")
        raise UserError(
            "\n".join([f"{reason}. They changed nothing, and the last checkpoint is intact", *lines[-10:]])
            + f"\nlook at the frames with their labels ({self._path} has them all), or lower training.learning_rate"
        )

    def _write(self) -> list[LeftOut]:
        """Return what all ranks saw in the steps left out, and write it if some of it is new."""
        found = [self._new]
        if self._team.size > 1:
            found = [[] for _ in range(self._team.size)]
            dist.all_gather_object(found, self._new, group=self._team.control)
        self._new = []
        fresh = sorted((entry for entries in found for entry in entries), key=lambda entry: (entry.step, entry.rank))
        if fresh and self._team.first:
            self._written = [*self._written, *fresh][-MOST_KEPT:]
            content = json.dumps([asdict(entry) for entry in self._written], indent=1)
            replace_file(self._path, (content + "\n").encode())
        return [*self._written, *([] if self._team.first else fresh)]


def refuse_non_finite_state(state: TrainState) -> None:
    """Look at what is to be saved, whatever made it so.

    Raises:
        UserError: weights or statistics are not finite.
    """
    saved = state.model.state_dict()
    wrong = [name for name, value in saved.items() if value.is_floating_point() and not value.isfinite().all()]
    if wrong:
        raise UserError(
            f"step {state.step}: not finite: {', '.join(wrong[:5])}{' ...' if wrong[5:] else ''}. The last checkpoint"
            " is intact. Lower training.learning_rate, or use bfloat16 or float32"
        )


def describe_skipped(state: TrainState) -> str:
    """Say how many steps of a run were left out, if any; waits for the device."""
    skipped = int(state.skipped[0])
    return f", {_steps(skipped)} of them left out as not finite" if skipped else ""


def _spoilt(batch: Batch) -> tuple[tuple[str, int], ...]:
    """Return the frames of a batch whose own points or labels are not finite."""
    features = batch.points.features.cpu().split(batch.points.counts.tolist())
    boxes = torch.cat([batch.labels.boxes, batch.labels.velocity], dim=2).cpu()
    finite = [bool(a.isfinite().all() and b.isfinite().all()) for a, b in zip(features, boxes, strict=True)]
    return tuple(key for key, whole in zip(batch.keys, finite, strict=True) if not whole)


def _named(frames: Sequence[tuple[str, int]]) -> str:
    return ", ".join(f"{name} at {timestamp}" for name, timestamp in frames)


def _steps(count: int) -> str:
    return "1 step" if count == 1 else f"{count} steps"


def _read(path: Path, last_step: int) -> list[LeftOut]:
    """Return what was written of the steps up to `last_step`; later ones are done again."""
    if not path.is_file():
        return []
    try:
        entries: Sequence[dict[str, Any]] = json.loads(path.read_text())
        found = [_entry(**entry) for entry in entries]
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(path, f"not a list of steps ({error}); delete it to go on without it") from error
    return [entry for entry in found if entry.step <= last_step]


def _entry(frames: list[list[Any]], spoilt: list[list[Any]], **rest: Any) -> LeftOut:
    return LeftOut(frames=tuple(map(_key, frames)), spoilt=tuple(map(_key, spoilt)), **rest)


def _key(item: list[Any]) -> tuple[str, int]:
    name, timestamp = item
    return str(name), int(timestamp)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
