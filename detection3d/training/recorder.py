"""What a run tells while it goes: metrics.jsonl, TensorBoard and the terminal."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch.utils.tensorboard import SummaryWriter

from detection3d.files import replace_file
from detection3d.training.run_folder import RunFolder


class Recorder:
    """Writes the numbers of logged steps, and shows how far the run is.

    On a terminal a progress line is kept up to date; in a file every logged step is a plain line.

    Args:
        folder: the run's.
        first_step: steps done before; what an interrupted run logged after them is taken back.
        total_steps: of the whole run.
    """

    def __init__(self, folder: RunFolder, first_step: int, total_steps: int) -> None:
        _truncate(folder.metrics, first_step)
        self._file = folder.metrics.open("a", encoding="utf-8")
        self._board = SummaryWriter(str(folder.tensorboard), purge_step=first_step + 1)
        self._console = Console()
        self._total = total_steps
        self._progress: Progress | None = None
        if self._console.is_terminal:
            self._progress = Progress(
                TextColumn("training"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[note]}"),
                TimeElapsedColumn(), TimeRemainingColumn(), console=self._console,
            )  # fmt: skip
            self._task = self._progress.add_task("training", total=total_steps, completed=first_step, note="")
            self._progress.start()

    def __enter__(self) -> "Recorder":
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the files and leave the terminal as it was."""
        if self._progress is not None:
            self._progress.stop()
        self._file.close()
        self._board.close()

    def advance(self, step: int) -> None:
        """Show that `step` steps are done."""
        if self._progress is not None:
            self._progress.update(self._task, completed=step)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Write the numbers of a step.

        Args:
            step: steps done.
            values: by name; a slash groups them in TensorBoard. Values that are not finite are null in the JSON.
        """
        line = {name: value if math.isfinite(value) else None for name, value in values.items()}
        self._file.write(json.dumps({"step": step, **line}) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._board.add_scalar(name, value, step)
        note = _summary(values)
        if self._progress is not None:
            self._progress.update(self._task, completed=step, note=note)
        else:
            self._console.print(f"step {step}/{self._total}  {note}", highlight=False, soft_wrap=True)

    def say(self, message: str) -> None:
        """Print a line above the progress."""
        self._console.print(message, highlight=False, markup=False, soft_wrap=True)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the logged steps in order; a line that a crash cut off is left out."""
    if not path.is_file():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue  # only the last line of a killed run can be incomplete
    return rows


def _truncate(path: Path, step: int) -> None:
    rows = read_metrics(path)
    kept = [row for row in rows if row["step"] <= step]
    if path.is_file():
        replace_file(path, "".join(json.dumps(row) + "\n" for row in kept).encode())


def _summary(values: Mapping[str, float]) -> str:
    losses = "  ".join(
        f"{name.removeprefix('loss/')} {value:.3f}" for name, value in values.items() if name.startswith("loss/")
    )
    conflict = values.get("fork/conflict_share")
    shown = "" if conflict is None else f"  conflict {conflict:.1%}"
    seconds, waiting = values["time/step"], values["time/data"]
    return f"{losses}{shown}  {seconds:.2f} s/step (data {waiting / seconds:.0%})"
