"""The training loop: load, step, log, save; and where it goes on after a stop."""

import time
from contextlib import ExitStack
from pathlib import Path

import torch

from detection3d.config import Config
from detection3d.data.object_candidates import ObjectSampler
from detection3d.data.store import Store
from detection3d.errors import UserError
from detection3d.training.batches import ALONE, timed, training_batches
from detection3d.training.checkpoint import (
    checkpoint_path,
    fitting,
    last_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from detection3d.training.distributed import distribute
from detection3d.training.non_finite import SkippedSteps, describe_skipped, refuse_non_finite_state
from detection3d.training.periodic_evaluation import PeriodicEvaluation
from detection3d.training.recorder import Recorder, Silence
from detection3d.training.run_folder import RunFolder, add_provenance, mark_stopped, open_run
from detection3d.training.state import TrainState, build_state
from detection3d.training.step import train_step
from detection3d.training.step_log import StepLog
from detection3d.training.stop import Interrupted, Stop, stop_signals
from detection3d.training.team import StopAgreement, Team

_OF_A_NODE = ("train", "validation", "workers")  # of the data: where they lie, and how many read them


def train(config: Config, output: Path, device: torch.device, team: Team = ALONE) -> None:
    """Train until the config's last step, going on from the last checkpoint in `output` if there is one.

    Args:
        config: the run.
        output: the run's folder.
        device: where to train.
        team: the ranks that train together, each of which calls this. The first one writes the log and the checkpoints,
            from which any number of ranks can go on.

    Raises:
        UserError: the data or the settings can't be used, or too many steps in a row are not finite.
        Interrupted: Ctrl-C, SIGTERM, SIGUSR1 or SIGHUP reached a rank; a checkpoint was written first.
    """
    if config.data.train is None:
        raise UserError("data.train is not set: give the folder of a prepared store (tools/prepare_waymo.py makes one)")
    store = Store.open(config.data.train)
    store.require(config.data.returns, config.model.point_range, config.data.sweeps)
    objects = ObjectSampler.of(config)  # here, so that a wrong database is told before anything is built
    state = build_state(config, device)
    _refuse_other_settings(config, store, team)
    with stop_signals() as stop:
        stopped = _train(state, store, objects, config, output, device, team, stop)
        if stopped is not None and team.first:
            mark_stopped(RunFolder(output), state.step)
        # The launcher ends the others when one has ended, and the first one may still have been writing.
        team.wait()
    if stopped is not None:
        message = f"stopped at step {state.step}, saved in {stopped}; run the same command to go on"
        raise Interrupted(message, stop.status)


def _train(
    state: TrainState,
    store: Store,
    objects: ObjectSampler | None,
    config: Config,
    output: Path,
    device: torch.device,
    team: Team,
    stop: Stop,
) -> Path | None:
    """Train to the end, and return None; or until a rank is asked to stop, and return the checkpoint."""
    with ExitStack() as stack:
        folder = RunFolder(output)
        checkpoint = team.from_first(lambda: last_checkpoint(stack.enter_context(open_run(output, config)).checkpoints))
        if checkpoint is not None:
            # Read by one rank for all: on a network file system another node may not see the newest file yet.
            saved = team.from_first(lambda: load_checkpoint(checkpoint))
            refusal = "is not of this run's network and settings ({reason}); delete it to use the one before"
            with fitting(checkpoint, refusal):
                state.restore(saved)
        batches = training_batches(store, config, start_step=state.step, team=team)
        if team.size > 1:
            distribute(state, sync_norms=config.training.sync_batch_norm)
        if team.first:
            add_provenance(folder, config, device, state.step, team.size)
        recorder = stack.enter_context(Recorder(folder, state.step, config.training.steps) if team.first else Silence())
        skipped = SkippedSteps(folder.non_finite, state, config.training.max_skipped_in_a_row, team, recorder.say)
        log = StepLog(config, recorder)
        evaluation = PeriodicEvaluation(config, folder, team, recorder)
        agreement = StopAgreement(team)
        recorder.say(_introduction(config, store, state, checkpoint, device))
        if objects is not None:
            recorder.say(f"objects of other frames come from {objects.database.root}: {objects.describe()}")
        for batch, waited in timed(batches, device):
            started = time.perf_counter()
            result = train_step(state, batch, config)
            log.add(result, state, waited, started)
            skipped.look(result, state, batch)
            done = state.step == config.training.steps
            stopping = agreement.reached(stop.requested) and not done
            evaluating = evaluation.due(state.step)
            if done or stopping or evaluating or state.step % config.training.checkpoint_every == 0:
                skipped.write()
                refuse_non_finite_state(state)
                if evaluating:
                    evaluation.run(state)  # first: a run that is killed meanwhile goes on from before and does it again
                if team.first:
                    save_checkpoint(folder.checkpoints, state.step, state.capture(), config.training.keep_checkpoints)
                if stopping:
                    return checkpoint_path(folder.checkpoints, state.step)
        recorder.say(f"trained {state.step} steps{describe_skipped(state)}; the run is in {output}")
    return None


def _refuse_other_settings(config: Config, store: Store, team: Team) -> None:
    """Compare what every rank was started with: weights and collectives would part without a word."""
    tree = config.model_dump(mode="json")
    tree["data"] = {name: value for name, value in tree["data"].items() if name not in _OF_A_NODE}
    mine = tree, len(store)
    theirs = team.from_first(lambda: mine)
    if mine != theirs:
        changed = [name for name in tree if tree[name] != theirs[0][name]] or [f"{len(store)} training frames"]
        raise UserError(
            f"rank {team.rank} was started with other settings than rank 0 ({', '.join(changed)}); start all nodes with"
            " the same command, on the same data"
        )


def _introduction(
    config: Config, store: Store, state: TrainState, checkpoint: Path | None, device: torch.device
) -> str:
    weights = sum(weight.numel() for weight in state.model.parameters())
    start = "from the start" if checkpoint is None else f"on from step {state.step} ({checkpoint})"
    return (
        f"training {start}: {len(store)} frames, {config.training.steps} steps of {config.training.batch_size},"
        f" {weights / 1e6:.2f} M weights, method {config.multitask.method.kind}, {device},"
        f" sparse backend {state.model.backbone.backend}"
    )
