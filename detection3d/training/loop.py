"""The training loop: load, step, log, evaluate, save; until the last step or a wish to stop."""

from contextlib import ExitStack
from pathlib import Path

import torch

from detection3d.config import Config
from detection3d.data.object_candidates import ObjectSampler
from detection3d.data.store import Store
from detection3d.errors import UserError
from detection3d.training.batches import ALONE, Waiting, training_batches
from detection3d.training.beginning import begin
from detection3d.training.checkpoint import checkpoint_path, save_checkpoint
from detection3d.training.distributed import describe_norms, distribute
from detection3d.training.non_finite import SkippedSteps, describe_skipped, refuse_non_finite_state
from detection3d.training.periodic_evaluation import PeriodicEvaluation
from detection3d.training.profiling import StepProfile
from detection3d.training.recorder import Recorder, Silence
from detection3d.training.run_folder import RunFolder, add_provenance, mark_stopped
from detection3d.training.start import Start
from detection3d.training.state import TrainState, build_state
from detection3d.training.step import train_step
from detection3d.training.step_input import step_inputs
from detection3d.training.step_log import StepLog
from detection3d.training.stop import Interrupted, Stop, stop_signals
from detection3d.training.team import StopAgreement, Team
from detection3d.training.wandb_run import open_wandb

PLAIN = Start()
_OF_A_NODE = ("train", "validation", "workers")  # of the data: where they lie, and how many read them


def train(config: Config, output: Path, device: torch.device, team: Team = ALONE, start: Start = PLAIN) -> None:
    """Train until the config's last step, going on from the last checkpoint in `output` if there is one.

    Args:
        config: the run.
        output: the run's folder.
        device: where to train.
        team: the ranks that train together, each of which calls this. The first one writes the log and the checkpoints,
            from which any number of ranks can go on.
        start: what is special about this start.

    Raises:
        UserError: the data or the settings can't be used, or too many steps in a row are not finite.
        Interrupted: Ctrl-C, SIGTERM, SIGUSR1 or SIGHUP reached a rank; a checkpoint was written first.
    """
    if config.data.train is None:
        raise UserError("data.train is not set: give the folder of a prepared store (tools/prepare_waymo.py makes one)")
    store = Store.open(config.data.train)
    store.require(config.data.returns, config.model.point_range, config.data.sweeps)
    config = config.in_steps(len(store.every(config.data.every)))
    ObjectSampler.of(config)  # here, so that a wrong database is told before anything is built
    state = build_state(config, device)
    _refuse_other_settings(config, store, team)
    with stop_signals() as stop:
        stopped = _train(state, store, config, RunFolder(output), team, start, stop)
        if stopped is not None and team.first:
            mark_stopped(RunFolder(output), state.step)
        # The launcher ends the others when one has ended, and the first one may still have been writing.
        team.wait()
    if stopped is not None:
        message = f"stopped at step {state.step}, saved in {stopped}; run the same command to go on"
        raise Interrupted(message, stop.status)


def _train(
    state: TrainState, store: Store, config: Config, folder: RunFolder, team: Team, start: Start, stop: Stop
) -> Path | None:
    """Train to the end, and return None; or until a rank is asked to stop, and return the checkpoint."""
    training = config.training
    with ExitStack() as stack:
        beginning = begin(state, config, folder, start, team, stack)
        if team.size > 1:
            distribute(state, sync_norms=config.training.synchronizes_norms(team.size))
        if team.first:
            add_provenance(folder, config, state.device, state.step, team.size, beginning.changes)
        recorder = stack.enter_context(_recorder(config, folder, state) if team.first else Silence())
        for line in (_introduction(config, store, state, beginning.checkpoint), *beginning.notes):
            recorder.say(line)
        skipped = SkippedSteps(folder.non_finite, state, training.max_skipped_in_a_row, team, recorder.say)
        log = StepLog(config, recorder)
        evaluation = PeriodicEvaluation(config, folder, team, recorder)
        tracing = StepProfile(start.profile, folder.profile, team.rank, state.device, recorder.say)
        profile = stack.enter_context(tracing)
        agreement = StopAgreement(team)
        batches = Waiting(training_batches(store, config, start_step=state.step, team=team))
        log.start()
        for given in step_inputs(batches, state.model, config, state.device, state.step):
            profile.next()
            result = train_step(state, given, config)
            log.add(result, state, batches)
            skipped.look(result, state, given.batch)
            done = state.step == training.steps
            stopping = agreement.reached(stop.requested) and not done
            evaluating = evaluation.due(state.step)
            if done or stopping or evaluating or state.step % training.checkpoint_every == 0:
                skipped.write()
                refuse_non_finite_state(state)
                if evaluating:
                    evaluation.run(state)  # first: a run that is killed meanwhile goes on from before and does it again
                if team.first:
                    save_checkpoint(folder.checkpoints, state.step, state.capture(), training.keep_checkpoints)
                if stopping:
                    return checkpoint_path(folder.checkpoints, state.step)
                log.start()  # evaluations and checkpoints are no part of a step's time
        recorder.say(f"trained {state.step} steps{describe_skipped(state)}; the run is in {folder.root}")
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


def _recorder(config: Config, folder: RunFolder, state: TrainState) -> Recorder:
    return Recorder(folder, state.step, config.training.steps, open_wandb(config, folder))


def _introduction(config: Config, store: Store, state: TrainState, checkpoint: Path | None) -> str:
    weights = sum(weight.numel() for weight in state.model.parameters())
    start = "from the start" if checkpoint is None else f"on from step {state.step} ({checkpoint})"
    objects = ObjectSampler.of(config)
    backend, ranks = state.model.backbone.backend, state.ranks.size
    slow = state.device.type == "cuda" and backend == "torch" and config.model.backbone.backend == "auto"
    line = (
        f"training {start}: {len(store)} frames, {config.training.steps} steps of {config.training.batch_size},"
        f" {weights / 1e6:.2f} M weights, method {config.multitask.method.kind}, {state.device},"
        f" sparse backend {backend}{'; spconv is faster: pip install detection3d[gpu]' if slow else ''}"
        f"{f', {ranks} ranks with {describe_norms(config, ranks)}' if ranks > 1 else ''}"
    )
    if objects is None:
        return line
    return f"{line}\nobjects of other frames come from {objects.database.root}: {objects.describe()}"
