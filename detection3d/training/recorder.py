"""What a run tells while it goes: metrics.jsonl, maps of conflict, TensorBoard, W&B and the terminal."""

import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch.utils.tensorboard import SummaryWriter

from detection3d.evaluation.reporting.conflict_figures import ConflictView, conflict_image
from detection3d.files import replace_file
from detection3d.training.conflict_files import forget_conflicts, save_conflict
from detection3d.training.run_folder import RunFolder
from detection3d.training.wandb_run import WandbRun


class Recorder:
    """Writes the numbers of logged steps, and shows how far the run is.

    On a terminal a progress line is kept up to date; in a file every logged step is a plain line.

    Args:
        folder: the run's.
        first_step: steps done before; what an interrupted run logged after them is taken back.
        total_steps: of the whole run.
        wandb: takes the numbers, too; it is closed with the recorder.
    """

    def __init__(self, folder: RunFolder, first_step: int, total_steps: int, wandb: WandbRun | None = None) -> None:
        _truncate(folder.metrics, first_step)
        forget_conflicts(folder.conflict, first_step)
        self._path, self._conflict = folder.metrics, folder.conflict
        self._file = folder.metrics.open("a", encoding="utf-8")
        _wait_for_a_later_name(folder.tensorboard)
        self._board = SummaryWriter(str(folder.tensorboard), purge_step=first_step + 1)
        self._wandb = wandb
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
        if self._wandb is not None:
            self._wandb.close(failed=error is not None)
        for close in (self._file.close, self._board.close):
            try:
                close()
            except OSError:
                if error is None:  # else the first error tells, and what is left in a buffer fails like it
                    raise

    def advance(self, step: int) -> None:
        """Show that `step` steps are done."""
        if self._progress is not None:
            self._progress.update(self._task, completed=step)

    def log(
        self, step: int, values: Mapping[str, float], purities: Mapping[str, Sequence[float]] | None = None
    ) -> None:
        """Write the numbers of a step.

        Args:
            step: steps done.
            values: by name; a slash groups them in TensorBoard. Values that are not finite are null in the JSON.
            purities: histograms of the purity by name: shares at 0, in equal bins between, and at 1; lists in the JSON.
        """
        histograms = {} if purities is None else purities
        line: dict[str, Any] = {name: _finite(value) for name, value in values.items()}
        line |= {name: [_finite(share) for share in shares] for name, shares in histograms.items()}
        self._write(step, line)
        self._add_scalars(step, values)
        for name, shares in histograms.items():
            if all(map(math.isfinite, shares)):
                _add_purity(self._board, name, shares, step)
        note = _summary(values)
        if self._progress is not None:
            self._progress.update(self._task, completed=step, note=note)
        else:
            self._console.print(f"step {step}/{self._total}  {note}", highlight=False, soft_wrap=True)

    def log_evaluation(self, step: int, values: Mapping[str, float]) -> None:
        """Write what an evaluation gave: a line of its own beside that of the step.

        Args:
            step: steps done.
            values: by name, such as evaluation/LEVEL_2/APH.
        """
        self._write(step, dict(values))
        self._add_scalars(step, values)
        shown = ("LEVEL_1/AP", "LEVEL_1/APH", "LEVEL_2/AP", "LEVEL_2/APH")
        means = [f"{name} {values[key]:.4f}" for name in shown if (key := f"evaluation/{name}") in values]
        self.say(f"step {step}/{self._total}  evaluation: {'  '.join(means) or 'no ground truth'}")

    def log_map(self, view: ConflictView) -> None:
        """Write a map of the tasks' conflict to a file, and as a picture for TensorBoard."""
        save_conflict(self._conflict, view)
        image = conflict_image(view)
        self._board.add_image("fork/conflict", image, view.step, dataformats="HWC")
        if self._wandb is not None:
            self._wandb.log_image(view.step, "fork/conflict", image)

    def say(self, message: str) -> None:
        """Print a line above the progress."""
        self._console.print(message, highlight=False, markup=False, soft_wrap=True)

    def _write(self, step: int, line: Mapping[str, Any]) -> None:
        with _named(self._path):
            self._file.write(json.dumps({"step": step, **line}) + "\n")
            self._file.flush()

    def _add_scalars(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._board.add_scalar(name, value, step)
        if self._wandb is not None:
            self._wandb.log(step, dict(values))


class Silence:
    """Takes what a `Recorder` takes and keeps nothing: for the ranks beside the one that tells."""

    def __enter__(self) -> "Silence":
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Do nothing."""

    def advance(self, step: int) -> None:
        """Do nothing."""

    def log(
        self, step: int, values: Mapping[str, float], purities: Mapping[str, Sequence[float]] | None = None
    ) -> None:
        """Do nothing."""

    def log_evaluation(self, step: int, values: Mapping[str, float]) -> None:
        """Do nothing."""

    def log_map(self, view: ConflictView) -> None:
        """Do nothing."""

    def say(self, message: str) -> None:
        """Do nothing."""


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the logged steps in order; a line that a crash cut off is left out."""
    if not path.is_file():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue  # only the last line of a killed run can be incomplete
    return rows


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Say where writing failed, which the system, unlike at opening, does not."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def _truncate(path: Path, step: int) -> None:
    rows = read_metrics(path)
    kept = [row for row in rows if row["step"] <= step]
    if path.is_file():
        replace_file(path, "".join(json.dumps(row) + "\n" for row in kept).encode())


def _wait_for_a_later_name(board: Path) -> None:
    """Let the second pass in which the last event file was begun.

    TensorBoard reads a run's files in the order of their names, which begin with the second; of two files of one second
    a process's tenth comes before its ninth, and what the later one takes back would be shown in the place of what is.
    """
    while any(board.glob(f"events.out.tfevents.{int(time.time()):010d}.*")):
        time.sleep(0.05)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _add_purity(board: SummaryWriter, name: str, shares: Sequence[float], step: int) -> None:
    """Add a histogram whose outermost bars, one bin beyond 0 and 1, are the purities of exactly 0 and 1."""
    width = 1 / (len(shares) - 2)
    limits = np.linspace(0, 1 + width, len(shares))
    middle = np.concatenate([[0.0], limits[1:-1] - width / 2, [1.0]])
    weights = np.asarray(shares)
    board.add_histogram_raw(
        name,
        min=-width,
        max=1 + width,
        num=1,  # shares, not counts
        sum=float(weights @ middle),
        sum_squares=float(weights @ middle**2),
        bucket_limits=limits.tolist(),
        bucket_counts=list(shares),
        global_step=step,
    )


def _summary(values: Mapping[str, float]) -> str:
    losses = "  ".join(
        f"{name.removeprefix('loss/')} {value:.3f}" for name, value in values.items() if name.startswith("loss/")
    )
    conflict = values.get("fork/conflict_share")
    shown = "" if conflict is None else f"  conflict {conflict:.1%}"
    seconds, waiting = values["time/step"], values["time/data"]
    return f"{losses}{shown}  {seconds:.2f} s/step (data {waiting / seconds:.0%})"
