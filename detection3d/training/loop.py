"""The training loop: load, forward, one backward, step; and the bookkeeping around it."""

import resource
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from detection3d.config import Config
from detection3d.data.augment import augment
from detection3d.data.loader import build_loader
from detection3d.data.object_candidates import ObjectSampler
from detection3d.data.object_paste import paste_objects
from detection3d.data.sampling import Sampling
from detection3d.data.store import Store
from detection3d.data.unpack import unpack
from detection3d.errors import UserError
from detection3d.model.losses import compute_losses
from detection3d.model.targets import build_targets
from detection3d.training.checkpoint import (
    checkpoint_path,
    fitting,
    last_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from detection3d.training.conflict_files import conflict_view
from detection3d.training.distributed import count_objects, distribute
from detection3d.training.non_finite import refuse_non_finite, refuse_non_finite_state
from detection3d.training.recorder import Recorder, Silence
from detection3d.training.run_folder import RunFolder, add_provenance, mark_stopped, open_run
from detection3d.training.state import TrainState, build_state
from detection3d.training.stopping import Interrupted, StopRequest, stop_signals
from detection3d.training.team import StopAgreement, Team
from detection3d.types.tensors import Batch, BoxLabels, Points, TaskLosses, to_device

ALONE = Team()
_OF_A_NODE = ("train", "validation", "workers")  # of the data: where they lie, and how many read them
DENSE_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class StepResult:
    """What one step gives to the log, still on the device.

    Attributes:
        losses: of the three tasks; on several ranks, their mean over the ranks is the loss of the batch.
        gradient_norm: L2 norm of the gradient of all parameters before clipping.
        learning_rate: that the step was done with.
        loss_scale: what the losses were multiplied with before the backward pass.
    """

    losses: TaskLosses
    gradient_norm: Tensor
    learning_rate: float
    loss_scale: float


def train_step(state: TrainState, batch: Batch, config: Config) -> StepResult:
    """Do one optimiser step.

    Args:
        state: changed in place.
        batch: on the device.
        config: the run.
    """
    points, labels = network_input(batch, config, state.step)
    targets = count_objects(build_targets(labels, config), state.ranks)
    state.fork.set_step(state.step + 1)  # counted as in the log, so that the conflict is measured at logged steps
    dtype = DENSE_DTYPES[config.training.precision]
    with torch.autocast(points.values.device.type, dtype=dtype, enabled=dtype != torch.float32):
        outputs = state.network(points, batch.size, batch.sample_index)
    losses = compute_losses(outputs, targets, config.loss)
    total = torch.stack(list(state.fork.weigh(losses.as_dict(), outputs.features).values())).sum()

    optimizer = state.optimization.optimizer
    learning_rate = state.optimization.schedule.get_last_lr()[0]
    loss_scale = state.scaler.get_scale()
    state.scaler.scale(total).backward()
    state.fork.update(loss_scale)
    state.scaler.unscale_(optimizer)
    norm = torch.nn.utils.clip_grad_norm_(state.model.parameters(), config.training.clip_norm)
    state.scaler.step(optimizer)
    state.scaler.update()
    optimizer.zero_grad(set_to_none=True)
    state.optimization.schedule.step()
    if state.average is not None:
        state.average.update_parameters(state.model)
    state.step += 1
    return StepResult(losses, norm, float(learning_rate), loss_scale)


def network_input(batch: Batch, config: Config, step: int) -> tuple[Points, BoxLabels]:
    """Return a training batch as the network and its targets take it: in floats, augmented.

    Args:
        batch: on the device.
        config: the run.
        step: optimiser steps done.
    """
    returns, without_zones = config.data.returns, config.data.drop_no_label_zone_points
    points, labels = unpack(batch.points, returns=returns, drop_no_label_zone=without_zones), batch.labels
    if batch.objects is not None:
        objects = unpack(batch.objects.points, returns=returns, drop_no_label_zone=without_zones)
        points, labels = paste_objects(points, labels, objects, batch.objects.labels, config.loss.min_points)
    if step < config.training.steps - config.augmentation.off_for_last_steps:
        points, labels = augment(
            points, labels, config=config.augmentation, seed=config.seed, sample_index=batch.sample_index
        )
    return points, labels


def train(config: Config, output: Path, device: torch.device, team: Team = ALONE) -> None:
    """Train until the config's last step, going on from the last checkpoint in `output` if there is one.

    Args:
        config: the run.
        output: the run's folder.
        device: where to train.
        team: the ranks that train together, each of which calls this. The first one writes the log and the checkpoints,
            from which any number of ranks can go on.

    Raises:
        UserError: the data or the settings can't be used, or a loss is not finite.
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
    stop: StopRequest,
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
        agreement = StopAgreement(team)
        recorder.say(_introduction(config, store, state, checkpoint, device))
        if objects is not None:
            recorder.say(f"objects of other frames come from {objects.database.root}: {objects.describe()}")
        for batch, waited in _timed(batches, device):
            result = _logged_step(state, batch, config, recorder, waited)
            done = state.step == config.training.steps
            stopping = agreement.reached(stop.requested) and not done
            if done or stopping or state.step % config.training.checkpoint_every == 0:
                refuse_non_finite(result, state, batch)
                refuse_non_finite_state(state)
                if team.first:
                    save_checkpoint(folder.checkpoints, state.step, state.capture(), config.training.keep_checkpoints)
                if stopping:
                    return checkpoint_path(folder.checkpoints, state.step)
        recorder.say(f"trained {state.step} steps; the run is in {output}")
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


def _logged_step(
    state: TrainState, batch: Batch, config: Config, recorder: Recorder | Silence, waited: float
) -> StepResult:
    """Do a step, and log it where it is due; a loss that is seen to be not finite ends the run."""
    started = time.perf_counter()
    result = train_step(state, batch, config)
    due = state.step % config.training.log_every == 0 or state.step == config.training.steps
    if due or (not state.scaler.is_enabled() and batch.labels.boxes.device.type == "cpu"):
        refuse_non_finite(result, state, batch)
    if due:
        values = {f"loss/{task}": loss for task, loss in _losses_of_all(result, state).items()}
        values["optimizer/gradient_norm"] = float(result.gradient_norm)
        values["optimizer/learning_rate"] = result.learning_rate
        telemetry = state.fork.read_telemetry(result.loss_scale)
        purities = {}
        if telemetry is not None:
            values |= {f"fork/{name}": value for name, value in telemetry.scalars().items()}
            purities["fork/purity"] = telemetry.purity_histogram.tolist()
        values |= {"time/step": time.perf_counter() - started + waited, "time/data": waited}
        values["memory/GB"] = _memory(batch)
        recorder.log(state.step, values, purities)
    conflict = state.fork.read_map(result.loss_scale)
    if conflict is not None:
        recorder.log_map(conflict_view(state.step, conflict, config.model.point_range))
    recorder.advance(state.step)
    return result


def _losses_of_all(result: StepResult, state: TrainState) -> dict[str, float]:
    """Return the losses of the whole batch: on several ranks, the mean of theirs."""
    losses = {task: loss.detach() for task, loss in result.losses.as_dict().items()}
    if state.ranks.size == 1:
        return {task: float(loss) for task, loss in losses.items()}
    means = state.ranks.sum(torch.stack(list(losses.values()))) / state.ranks.size
    return dict(zip(losses, means.tolist(), strict=True))


def training_batches(
    store: Store,
    config: Config,
    *,
    start_step: int = 0,
    total_steps: int | None = None,
    workers: int | None = None,
    team: Team = ALONE,
) -> Iterator[Batch]:
    """Yield the batches of a run, on the CPU.

    Args:
        store: the training data.
        config: the run.
        start_step: steps done.
        total_steps: where to end; None takes the config's.
        workers: loader processes; None takes the config's.
        team: whose share of the batches to take; the batch of the config is that of all ranks.
    """
    return build_loader(
        store,
        global_batch_size=config.training.batch_size,
        seed=config.seed,
        workers=config.data.workers if workers is None else workers,
        start_step=start_step,
        rank=team.rank,
        world_size=team.size,
        total_steps=config.training.steps if total_steps is None else total_steps,
        sampling=Sampling.of(config),
        sweeps=config.data.sweeps,
        objects=ObjectSampler.of(config),
    )


def _timed(batches: Iterator[Batch], device: torch.device) -> Iterator[tuple[Batch, float]]:
    """Yield each batch on the device, with the seconds that the loop waited for it."""
    while True:
        started = time.perf_counter()
        batch = next(batches, None)
        if batch is None:
            return
        yield to_device(batch, device), time.perf_counter() - started


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


def _memory(batch: Batch) -> float:
    """Return the peak use in GB: of the GPU that the batch is on, else of the process."""
    device = batch.labels.boxes.device
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
