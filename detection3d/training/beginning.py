"""Where a run begins: from random weights, from those of another run, or from its own last checkpoint."""

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from detection3d.config import Config
from detection3d.errors import UserError
from detection3d.training.checkpoint import fitting, last_checkpoint, load_checkpoint, save_checkpoint
from detection3d.training.freezing import describe_frozen
from detection3d.training.initialize import initialize, refuse_forgotten, write_initialization
from detection3d.training.run_folder import RunFolder, changed_settings, open_run, write_config
from detection3d.training.start import Start
from detection3d.training.state import TrainState
from detection3d.training.team import Team

_REFUSAL = "is not of this run's network and settings ({reason}); delete it to use the one before"


@dataclass(frozen=True)
class Beginning:
    """How a run begins, or goes on.

    Attributes:
        checkpoint: that it goes on from; None for a new run.
        changes: of the run's settings, as `key: before -> now`.
        notes: lines for the person who started it.
    """

    checkpoint: Path | None
    changes: tuple[str, ...]
    notes: tuple[str, ...]


def begin(
    state: TrainState, config: Config, folder: RunFolder, start: Start, team: Team, stack: ExitStack
) -> Beginning:
    """Take the run's folder, and bring the state to where the run is.

    Args:
        state: as the config makes it; changed in place.
        config: the run.
        folder: of the run.
        start: what the command line says.
        team: the ranks, each of which must call this; the first one takes the folder.
        stack: holds the folder until it is closed.

    Raises:
        UserError: the folder, its checkpoint or the weights to begin with can't be used.
    """

    def take() -> tuple[Path | None, tuple[str, ...]]:
        changes = changed_settings(folder, config)  # first: opening a run writes the new config
        stack.enter_context(open_run(folder.root, config, allow_changes=start.allow_changes))
        return last_checkpoint(folder.checkpoints), tuple(changes)

    checkpoint, changes = team.from_first(take)
    if checkpoint is not None:
        notes = _go_on(state, config, folder, start, team, checkpoint, changes)
    else:
        notes = _begin_anew(state, folder, start, team)
    if team.first and changes:
        write_config(folder, config)
    if config.training.freeze:
        random = checkpoint is None and start.initialize_from is None
        notes.append(describe_frozen(state.model, config.training.freeze, from_random=random))
    return Beginning(checkpoint, changes, tuple(notes))


def _go_on(
    state: TrainState,
    config: Config,
    folder: RunFolder,
    start: Start,
    team: Team,
    checkpoint: Path,
    changes: tuple[str, ...],
) -> list[str]:
    # Read by one rank for all: on a network file system another node may not see the newest file yet.
    saved = team.from_first(lambda: load_checkpoint(checkpoint))
    with fitting(checkpoint, _REFUSAL):
        state.restore(saved, new_settings=bool(changes))
    if state.step > config.training.steps:
        raise UserError(
            f"{folder.root}: the run is at step {state.step}, beyond training.steps={config.training.steps}; give more"
            " steps, or start a new run in another folder (--output)"
        )
    notes = []
    if changes:
        team.wait()  # until all have read it
        if team.first:
            # With the new settings in it, so that a later start, for which nothing has changed, takes them over.
            save_checkpoint(folder.checkpoints, state.step, state.capture(), config.training.keep_checkpoints)
        notes.append(
            "\n".join(["goes on with changed settings (--allow-changes):", *(f"  {item}" for item in changes)])
        )
    if start.initialize_from is not None:
        notes.append(f"--initialize-from is for new runs and not used: this one goes on from {checkpoint}")
    return notes


def _begin_anew(state: TrainState, folder: RunFolder, start: Start, team: Team) -> list[str]:
    if start.initialize_from is None:
        team.from_first(lambda: refuse_forgotten(folder.initialized))
        return []
    initialization = initialize(state, start.initialize_from)
    if team.first:
        write_initialization(folder.initialized, initialization)
    return [initialization.describe()]
