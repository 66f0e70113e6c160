"""One step of training: augment, forward, one backward, step."""

from dataclasses import dataclass

import torch
from torch import Tensor

from detection3d.config import Config
from detection3d.data.augment import augment
from detection3d.data.object_paste import paste_objects
from detection3d.data.unpack import unpack
from detection3d.model.losses import compute_losses
from detection3d.model.targets import build_targets
from detection3d.training.clock import Moment, StepTimes
from detection3d.training.distributed import count_objects
from detection3d.training.leaving_out import (
    bring_back,
    count_skipped,
    remember,
    spoil_unless_finite,
    step_optimizer,
    update_average,
)
from detection3d.training.state import TrainState
from detection3d.types.tensors import Batch, BoxLabels, Points, TaskLosses

DENSE_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class StepResult:
    """What one step gives to the log, still on the device.

    Attributes:
        losses: of the three tasks; on several ranks, their mean over the ranks is the loss of the batch.
        gradient_norm: L2 norm of the gradient of all parameters before clipping; equal on all ranks.
        left_out: bool scalar, whether the step changed nothing because a loss or a gradient of any rank was not finite;
            equal on all ranks.
        learning_rate: that the step was done with.
        loss_scale: what the losses were multiplied with before the backward pass.
        objects: int64 scalar, objects of this rank that losses were taken of.
        times: of the step's parts.
    """

    losses: TaskLosses
    gradient_norm: Tensor
    left_out: Tensor
    learning_rate: float
    loss_scale: Tensor
    objects: Tensor
    times: StepTimes


def train_step(state: TrainState, batch: Batch, config: Config) -> StepResult:
    """Do one optimiser step; one that is not finite counts as done, too, but changes nothing else.

    Args:
        state: changed in place.
        batch: on the device.
        config: the run.
    """
    start = Moment(state.device)
    points, labels = network_input(batch, config, state.step)
    targets = count_objects(build_targets(labels, config), state.ranks)
    state.fork.set_step(state.step + 1)  # counted as in the log, so that the conflict is measured at logged steps
    remembered = remember(state.model)
    dtype = DENSE_DTYPES[config.training.precision]
    with torch.autocast(points.values.device.type, dtype=dtype, enabled=dtype != torch.float32):
        outputs = state.network(points, batch.size, batch.sample_index)
    losses = compute_losses(outputs, targets, config.loss)
    total = torch.stack(list(state.fork.weigh(losses.as_dict(), outputs.features).values())).sum()

    forward = Moment(state.device)

    optimizer = state.optimization.optimizer
    learning_rate = state.optimization.schedule.get_last_lr()[0]
    loss_scale = state.scaler.scale(torch.ones((), device=total.device))  # `get_scale` would wait for the device
    state.scaler.scale(spoil_unless_finite(total)).backward()
    backward = Moment(state.device)
    state.fork.update(loss_scale)
    state.scaler.unscale_(optimizer)
    norm = torch.nn.utils.clip_grad_norm_(state.model.parameters(), config.training.clip_norm)
    left_out = ~norm.isfinite()
    bring_back(remembered, left_out)
    step_optimizer(optimizer, left_out)  # not by the scaler, which would wait for the device and knows gradients alone
    state.scaler.update()
    optimizer.zero_grad(set_to_none=True)
    state.optimization.schedule.step()
    if state.average is not None:
        update_average(state.average, state.model, config.training.ema_decay, left_out)
    state.skipped = count_skipped(state.skipped, left_out, loss_scale)
    state.step += 1
    times = StepTimes(start, forward, backward, Moment(state.device))
    return StepResult(losses, norm, left_out, float(learning_rate), loss_scale, targets.valid.sum(), times)


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
