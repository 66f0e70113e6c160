"""The pointer to the checkpoint that did best in the evaluations of its run."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from detection3d.errors import DataError, UserError
from detection3d.files import replace_file

POINTER = "best"


@dataclass(frozen=True)
class Best:
    """What the file `best` says.

    Attributes:
        checkpoint: name of the file beside it.
        step: of the checkpoint.
        metric: that was compared, such as LEVEL_2/APH.
        value: of the metric.
        frames: that it was measured on.
        data_sha256: of the data they belong to.
    """

    checkpoint: str
    step: int
    metric: str
    value: float
    frames: int
    data_sha256: str

    def is_beaten_by(self, other: "Best") -> bool:
        """Whether `other` is better, or can't be compared; an equal value later in the run is not better."""
        ours, theirs = ((best.metric, best.frames, best.data_sha256) for best in (self, other))
        # A run that was taken up from an earlier step does the later ones again.
        return ours != theirs or self.step >= other.step or other.value > self.value


def note_best(folder: Path, candidate: Best) -> bool:
    """Point at a checkpoint if it is the best so far, and return whether it is.

    Call it before the checkpoint is written: a run that is killed in between evaluates again and points anew.

    Args:
        folder: the run's folder of checkpoints.
        candidate: of this step.
    """
    best = read_best(folder)
    if best is not None and not best.is_beaten_by(candidate):
        return False
    folder.mkdir(parents=True, exist_ok=True)
    replace_file(folder / POINTER, (json.dumps(asdict(candidate)) + "\n").encode())
    return True


def read_best(folder: Path) -> Best | None:
    """Return what the pointer says; None without one.

    Raises:
        DataError: the pointer is damaged.
    """
    path = folder / POINTER
    if not path.is_file():
        return None
    try:
        return Best(**json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        raise DataError(path, f"not a pointer to a checkpoint ({error}); delete it to go on without it") from error


def find_best(run: Path) -> Path:
    """Return the run's best checkpoint.

    Raises:
        UserError: the run has none.
    """
    folder = run / "checkpoints"
    best = read_best(folder)
    if best is None:
        raise UserError(
            f"{run}: no best checkpoint, since nothing was evaluated on the way (training.evaluate_every); take last"
        )
    path = folder / best.checkpoint
    if not path.is_file():
        raise UserError(
            f"{folder / POINTER} names {best.checkpoint}, which is not there; go on with the run, or take last"
        )
    return path
