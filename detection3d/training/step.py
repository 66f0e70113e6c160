"""One step of training: forward, one backward, step."""

from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from detection3d.config import Config
from detection3d.training.clock import Moment, StepTimes
from detection3d.training.distributed import ObjectCount, without_averaging
from detection3d.training.leaving_out import count_skipped, spoil_unless_finite, step_optimizer
from detection3d.training.state import TrainState
from detection3d.training.step_input import MicroBatch, StepInput, step_input
from detection3d.types.tensors import Batch, TaskLosses

DENSE_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class StepResult:
    """What one step gives to the log, still on the device.

    Attributes:
        losses: of the three tasks, over all micro-batches; on several ranks, their mean over the ranks is the loss of
            the batch.
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


def train_step(state: TrainState, batch: Batch | StepInput, config: Config) -> StepResult:
    """Do one optimiser step; one that is not finite counts as done, too, but changes nothing else.

    Micro-batches go through the network one after the other and add up their gradients. They share the loss's divisor
    and the fork's draw; batch statistics and the conflict at the fork are each one's own.

    Args:
        state: changed in place.
        batch: on the device; one that is not prepared yet is now.
        config: the run.
    """
    moments = [Moment(state.device)]
    given = batch if isinstance(batch, StepInput) else step_input(batch, state.model, config, state.step)
    count = ObjectCount(given.targets, state.ranks)
    state.fork.set_step(state.step + 1)  # counted as in the log, so that the conflict is measured at logged steps
    remembered = state.buffers.remember()
    losses = []
    zeros = _begin_with_zeros(state.parameters) if len(given.parts) > 1 and state.model.records_graphs else None
    for number, part in enumerate(given.parts, 1):
        # The ranks' gradients are averaged once, with those of the last micro-batch.
        with nullcontext() if number == len(given.parts) else without_averaging(state):
            part_losses, total = _forward(state, part, count, config)
            moments.append(Moment(state.device))
            state.scaler.scale(spoil_unless_finite(total)).backward()
            moments.append(Moment(state.device))
        losses.append(part_losses if len(given.parts) == 1 else _kept(part_losses))
    del zeros  # from here on this stream has waited for the one that added to them

    optimizer = state.optimization.optimizer
    learning_rate = state.optimization.schedule.get_last_lr()[0]
    loss_scale = state.scaler.scale(torch.ones((), device=state.device))  # `get_scale` would wait for the device
    state.fork.update(loss_scale)
    whole, holders = state.optimization.gradients(state.parameters)
    state.scaler.unscale_(whole)
    norm = torch.nn.utils.clip_grad_norm_(holders, config.training.clip_norm)
    left_out = ~norm.isfinite()
    state.buffers.bring_back(remembered, left_out)
    step_optimizer(optimizer, left_out)  # not by the scaler, which would wait for the device and knows gradients alone
    state.scaler.update()
    optimizer.zero_grad(set_to_none=True)
    state.optimization.schedule.step()
    if state.average is not None:
        state.average.update(state.model, left_out)
    state.skipped = count_skipped(state.skipped, left_out, loss_scale)
    state.step += 1
    start, forward, backward, *more = moments
    times = StepTimes(start, forward, backward, Moment(state.device), tuple(more))
    return StepResult(_added_up(losses), norm, left_out, float(learning_rate), loss_scale, count.objects, times)


def _forward(state: TrainState, part: MicroBatch, count: ObjectCount, config: Config) -> tuple[TaskLosses, Tensor]:
    """Return the losses of a micro-batch, and what to go backward from."""
    dtype = DENSE_DTYPES[config.training.precision]
    with torch.autocast(state.device.type, dtype=dtype, enabled=dtype != torch.float32):
        outputs = state.network(part.voxels, part.sample_index)
    losses = state.losses(outputs, replace(part.targets, global_count=count.global_count))
    weighed = state.fork.weigh(losses.as_dict(), outputs.features)
    return losses, torch.stack(list(weighed.values())).sum()


def _begin_with_zeros(parameters: Iterable[nn.Parameter]) -> list[Tensor]:
    """Have gradients added to zeros: where there are none, torch keeps the first, which the next replay writes over.

    Returns:
        The zeros, to be kept until the backward passes have returned. DistributedDataParallel lets go of them on the
        way, while another stream still adds to them, and this one would get their memory for something else.
    """
    zeros = []
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
        zeros.append(parameter.grad)
    return zeros


def _kept(losses: TaskLosses) -> TaskLosses:
    """Copy the losses of a micro-batch, which the next one's replay writes over."""
    return TaskLosses(**{name: loss.detach().clone() for name, loss in losses.as_dict().items()})


def _added_up(losses: list[TaskLosses]) -> TaskLosses:
    """Return the losses of all micro-batches; each is a part of the batch's already."""
    if len(losses) == 1:
        return losses[0]
    return TaskLosses(
        **{name: torch.stack([part.as_dict()[name] for part in losses]).sum() for name in losses[0].as_dict()}
    )
