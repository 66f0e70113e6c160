"""The place where the shared features part into the tasks' heads, and where the tasks' gradients meet again.

One autograd Function returns an alias of the shared activation for each task. Its backward receives all the tasks'
gradients at once and returns the one that the method makes of them. So a training step is a single `backward`: each
head and the backbone are traversed once.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from detection3d.multitask.draw import stream_words
from detection3d.multitask.method import Context, Method, promote
from detection3d.multitask.telemetry import Telemetry, measure, probe_size, read


class TaskFork(nn.Module):
    """Hands each task its own alias of the shared features and combines the gradients that come back.

    Each loss must reach the shared features through its own task's alias only, and no head may modify its alias in
    place. In evaluation mode, under no_grad and with a single task the fork is the exact identity.

    Example:
        fork = TaskFork(("box", "class"), GradDrop())
        features = fork(shared)
        losses = fork.weigh({"box": box_loss(features["box"]), "class": class_loss(features["class"])})
        sum(losses.values()).backward()

    Args:
        tasks: names of the tasks, at least one, all different.
        method: how the gradients are combined.
        seed: of the draw.
        name: tells this fork's draw from another fork's with the same seed.
        telemetry_every: measure the conflict at steps divisible by this; 0 never, at no cost.

    Attributes:
        step: int64 buffer, the optimizer step that the draw depends on. The training loop sets it by `set_step`;
            forward never counts, so all micro-batches of a step, and recomputed ones, draw the same.

    Raises:
        ValueError: no tasks, a name twice, or settings of the method that do not fit the tasks.
    """

    step: Tensor

    def __init__(
        self, tasks: Sequence[str], method: Method, seed: int = 0, name: str = "fork", telemetry_every: int = 0
    ) -> None:
        super().__init__()
        self.tasks = tuple(tasks)
        if not self.tasks:
            raise ValueError("a fork needs at least one task, found none")
        if len(set(self.tasks)) != len(self.tasks):
            raise ValueError(f"tasks are {', '.join(self.tasks)}; each needs a name of its own")
        if telemetry_every < 0:
            raise ValueError(f"telemetry_every is {telemetry_every}; give a number of steps, or 0 for never")
        method.check_tasks(self.tasks)
        self.method = method
        self.telemetry_every = telemetry_every
        self._words = stream_words(seed, name)
        self._measuring = telemetry_every > 0
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        self._probe = self._new_probe()

    def forward(self, shared: Tensor, sample_index: Tensor | None = None) -> dict[str, Tensor]:
        """Return an alias of the shared features for each task.

        Args:
            shared: [B, ...], the activation at which the tasks' gradients are compared.
            sample_index: int64 [B], global index of each sample; used only where the method draws for each sample apart
                (`marginalize="none"`), and then counted from 0 if None.

        Returns:
            By task name, tensors that share the memory of `shared`.

        Raises:
            RuntimeError: in training under torch.distributed with more than one rank.
        """
        if not (self.training and torch.is_grad_enabled() and shared.requires_grad) or len(self.tasks) == 1:
            return dict.fromkeys(self.tasks, shared)
        _refuse_several_ranks()
        plan = _Plan(self.tasks, self.method, self._words)
        probe = self._probe if self._measuring else None
        # The step is copied, so that a set_step between forward and backward changes nothing of this pass.
        aliases = _Fork.apply(shared, probe, self.step.clone(), sample_index, plan)
        return dict(zip(self.tasks, aliases, strict=True))

    def weigh(self, losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the losses to be added up, in the order of the tasks: as they are, since no method here weighs losses.

        Args:
            losses: a scalar for each task.

        Raises:
            ValueError: a task without a loss, or a loss without a task.
        """
        missing = [task for task in self.tasks if task not in losses]
        unknown = [name for name in losses if name not in self.tasks]
        if missing or unknown:
            raise ValueError(
                f"losses are needed for exactly the tasks {', '.join(self.tasks)}; "
                f"missing: {', '.join(missing) or 'none'}; unknown: {', '.join(unknown) or 'none'}"
            )
        return {task: losses[task] for task in self.tasks}

    def set_step(self, step: int) -> None:
        """Set the optimizer step (0 or more) that the draw depends on, before the step's first forward."""
        if step < 0:
            raise ValueError(f"step is {step}; it counts from 0")
        self.step.fill_(step)
        self._measuring = self.telemetry_every > 0 and step % self.telemetry_every == 0

    def read_telemetry(self, loss_scale: float = 1.0) -> Telemetry | None:
        """Return what was measured since the last reading, None if nothing was; waits for the device.

        Args:
            loss_scale: what a loss scaler multiplied the losses with; the norms are divided by it.
        """
        numbers = self._probe.grad
        if numbers is None:
            return None
        self._probe.grad = None
        return read(numbers, self.tasks, loss_scale)

    def extra_repr(self) -> str:
        """Name the tasks and the method when the model is printed."""
        return f"tasks={self.tasks}, method={self.method}"

    def _new_probe(self) -> Tensor:
        # Neither a parameter nor a buffer: optimizers, DistributedDataParallel and checkpoints must not see it.
        return torch.zeros(
            probe_size(len(self.tasks)), dtype=torch.float64, device=self.step.device, requires_grad=True
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "TaskFork":
        super()._apply(fn, recurse)
        self._probe = self._new_probe()  # follows the module to its new device
        return self


@dataclass(frozen=True)
class _Plan:
    tasks: tuple[str, ...]
    method: Method
    words: tuple[int, int]


class _Fork(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, activation: Tensor, probe: Tensor | None, step: Tensor, sample_index: Tensor | None, plan: _Plan
    ) -> tuple[Tensor, ...]:
        # `.data` gives each alias a version counter of its own, which tells in backward which head wrote into it. A
        # view or `.detach()` would share the activation's counter.
        aliases = tuple(activation.data for _ in plan.tasks)
        ctx.save_for_backward(activation, step, sample_index, *aliases)
        ctx.plan = plan
        ctx.measuring = probe is not None
        return aliases

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *alias_gradients: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        # A task whose loss doesn't depend on its alias (no objects, say) arrives here as zeros, in its own place.
        plan: _Plan = ctx.plan
        try:
            activation, step, sample_index, *_ = ctx.saved_tensors
        except RuntimeError as error:
            raise RuntimeError(_explain(error, plan.tasks)) from error
        gradients = promote(alias_gradients)
        context = Context(plan.tasks, plan.words, step, sample_index)
        combined = plan.method.combine(gradients, activation, context)
        numbers = None
        if ctx.measuring:
            coefficients = plan.method.coefficients(gradients, activation, context)
            numbers = measure(gradients, coefficients, activation, plan.method.marginalize, plan.method.channel_dim)
        return combined.to(activation.dtype), numbers, None, None, None


def _explain(error: RuntimeError, tasks: tuple[str, ...]) -> str:
    """Say which head wrote into the fork's features, from autograd's message about a saved tensor."""
    if "modified by an inplace operation" not in str(error):
        return str(error)
    output = re.search(r"which is output (\d+) of _Fork", str(error))
    if output is None:
        return (
            "the shared features were modified in place after the fork, so the gradients of "
            f"{', '.join(tasks)} are wrong; make the operation that follows the fork out of place"
        )
    return (
        f'the head "{tasks[int(output.group(1))]}" modified its features in place, and with them those of the others; '
        "make its first operation out of place, such as ReLU(inplace=False)"
    )


def _refuse_several_ranks() -> None:
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1:
        raise RuntimeError(
            f"the fork combines the gradients of one rank only, found {distributed.get_world_size()} ranks; "
            "train on one process"
        )
