"""A trace of a few steps, for chrome://tracing or https://ui.perfetto.dev."""

from collections.abc import Callable
from pathlib import Path
from types import TracebackType

import torch
from torch.profiler import ProfilerActivity, profile

from detection3d.errors import UserError


def parse_steps(text: str) -> tuple[int, int]:
    """Return first and last step of FIRST:LAST.

    Raises:
        UserError: that is not what it says.
    """
    first, separator, last = text.partition(":")
    if not (separator and first.isdigit() and last.isdigit() and 0 < int(first) <= int(last)):
        raise UserError(f"--profile {text}: write FIRST:LAST, steps of this start counted from 1, such as 6:10")
    return int(first), int(last)


class StepProfile:
    """Traces the steps from `first` to `last` of this start; does nothing where no steps are given.

    Args:
        steps: first and last, counted from 1.
        folder: where to write the trace.
        rank: of this process; each one traces itself.
        device: of the training.
        say: tells where the trace is.
    """

    def __init__(
        self,
        steps: tuple[int, int] | None,
        folder: Path,
        rank: int,
        device: torch.device,
        say: Callable[[str], None],
    ) -> None:
        self._steps, self._folder, self._rank, self._say = steps, folder, rank, say
        self._activities = [ProfilerActivity.CPU]
        if device.type == "cuda":
            self._activities.append(ProfilerActivity.CUDA)
        self._count = 0
        self._profile: profile | None = None

    def __enter__(self) -> "StepProfile":
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Write what there is if the run ends meanwhile."""
        if self._steps is None or error is not None:
            return
        if self._profile is not None:
            self._write(self._count)
        elif self._count < self._steps[0]:
            self._say(f"no trace was made: --profile begins at step {self._steps[0]}, and there were {self._count}")

    def next(self) -> None:
        """Call this before each step."""
        if self._steps is None:
            return
        first, last = self._steps
        if self._count == last and self._profile is not None:
            self._write(last)
        self._count += 1
        if self._count == first:
            # Without acc_events torch warns of cycles, of which there is one.
            self._profile = profile(activities=self._activities, acc_events=True)
            self._profile.start()

    def _write(self, last: int) -> None:
        assert self._profile is not None
        assert self._steps is not None
        running, self._profile = self._profile, None
        running.stop()
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"steps_{self._steps[0]}_to_{last}_of_rank_{self._rank}.json"
        running.export_chrome_trace(str(path))
        self._say(f"a trace of {last - self._steps[0] + 1} steps is in {path}: open it in https://ui.perfetto.dev")
