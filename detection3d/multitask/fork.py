"""The place where the shared features part into the tasks' heads, and where the tasks' gradients meet again.

One autograd Function returns an alias of the shared activation for each task. Its backward receives all the tasks'
gradients at once and returns the one that the method makes of them. So a training step is a single `backward`: each
head and the backbone are traversed once.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from detection3d.multitask.checks import FlowCheck, check_flow
from detection3d.multitask.conflict_map import ConflictMap, map_probe_size, map_shape, read_conflict_map
from detection3d.multitask.draw import stream_words
from detection3d.multitask.exchange import Exchange
from detection3d.multitask.fork_function import ForkFunction, Plan
from detection3d.multitask.method import Method
from detection3d.multitask.positions import Cells
from detection3d.multitask.ranks import Ranks, Sync, current_ranks
from detection3d.multitask.telemetry import Telemetry, probe_size, read


class TaskFork(nn.Module):
    """Hands each task its own alias of the shared features and combines the gradients that come back.

    Each loss must reach the shared features through its own task's alias only, and no head may modify its alias in
    place. In evaluation mode, under no_grad and with a single task the fork is the exact identity.

    Example:
        Any net with several heads; with activations [B, T, C] the method takes `channel_dim=2`::

            import torch
            from torch import nn
            from torch.nn.functional import binary_cross_entropy_with_logits, mse_loss

            from detection3d.multitask import GradDrop, TaskFork

            class Net(nn.Module):
                def __init__(self):
                    super().__init__()
                    self.backbone = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 32))
                    self.fork = TaskFork(("value", "sign"), GradDrop())
                    self.value = nn.Sequential(nn.ReLU(), nn.Linear(32, 1))
                    self.sign = nn.Sequential(nn.ReLU(), nn.Linear(32, 1))

                def forward(self, x):
                    features = self.fork(self.backbone(x))  # each head reads its own alias
                    return self.value(features["value"])[:, 0], self.sign(features["sign"])[:, 0]

            torch.manual_seed(0)
            net, x = Net(), torch.randn(256, 8)
            target = x[:, 0] * x[:, 1]
            optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
            for step in range(200):
                net.fork.set_step(step)  # the draw depends on it
                value, sign = net(x)
                sign_loss = binary_cross_entropy_with_logits(sign, (target > 0).float())
                losses = net.fork.weigh({"value": mse_loss(value, target), "sign": sign_loss})
                optimizer.zero_grad()
                sum(losses.values()).backward()  # the fork combines the gradients on the way back
                optimizer.step()
                net.fork.update()  # for methods that learn, such as GradNorm

    Args:
        tasks: names of the tasks, at least one, all different.
        method: how the gradients are combined.
        seed: of the draw.
        name: tells this fork's draw from another fork's with the same seed.
        telemetry_every: measure the conflict at steps divisible by this; 0 never, at no cost.
        map_every: measure where in the map it lies, at steps divisible by this; 0 never, at no cost. For activations
            [B, C, H, W] only.
        sync: "full" sums statistics over the ranks of torch.distributed, so that R ranks with B/R samples each get the
            gradients of one rank with B samples, given losses that are each rank's share times R, as
            DistributedDataParallel averages. "none" leaves each rank to itself.
        process_group: the ranks that train together; None is all of them. Give DistributedDataParallel the same.
        debug: check every pass for gradients that go around the fork or never reach it; slow.

    Attributes:
        step: int64 buffer, the optimizer step that the draw depends on. The training loop sets it by `set_step`;
            forward never counts, so all micro-batches of a step, and recomputed ones, draw the same.
        state: what the method learns, as buffers and parameters.
        exchange: through which small sums over the ranks go, where they have one; see `open_exchange`.

    Raises:
        ValueError: no tasks, a name twice, or settings of the method that do not fit the tasks.
    """

    step: Tensor

    def __init__(
        self,
        tasks: Sequence[str],
        method: Method,
        seed: int = 0,
        name: str = "fork",
        telemetry_every: int = 0,
        *,
        sync: Sync = "full",
        process_group: ProcessGroup | None = None,
        debug: bool = False,
        map_every: int = 0,
    ) -> None:
        super().__init__()
        self.tasks = tuple(tasks)
        if not self.tasks:
            raise ValueError("a fork needs at least one task, found none")
        if len(set(self.tasks)) != len(self.tasks):
            raise ValueError(f"tasks are {', '.join(self.tasks)}; each needs a name of its own")
        for setting, every in (("telemetry_every", telemetry_every), ("map_every", map_every)):
            if every < 0:
                raise ValueError(f"{setting} is {every}; give a number of steps, or 0 for never")
        if sync not in ("full", "none"):
            raise ValueError(f'sync is "{sync}"; choose "full" or "none"')
        method.check_tasks(self.tasks)
        self.method = method
        self.telemetry_every = telemetry_every
        self.map_every = map_every
        self.sync: Sync = sync
        self.process_group = process_group
        self.exchange: Exchange | None = None
        self.debug = debug
        self._words = stream_words(seed, name)
        self._measuring = telemetry_every > 0
        self._mapping = map_every > 0
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        self.state = _State(method, len(self.tasks))
        self._reset_probes()

    def forward(
        self, shared: Tensor, sample_index: Tensor | None = None, cells: Cells | None = None
    ) -> dict[str, Tensor]:
        """Return an alias of the shared features for each task.

        Args:
            shared: [B, ...], the activation at which the tasks' gradients are compared.
            sample_index: int64 [B], global index of each sample; used only where the method draws for each sample apart
                (`marginalize="none"`), and then counted from 0 if None.
            cells: places of the rows of sparse features [V, C]; needed for `marginalize="coordinates"` only.

        Returns:
            By task name, tensors that share the memory of `shared`.

        Raises:
            ValueError: the activation, or what comes with it, does not fit the method, or has no map to measure.
        """
        if not (self.training and torch.is_grad_enabled() and shared.requires_grad) or len(self.tasks) == 1:
            return dict.fromkeys(self.tasks, shared)
        if self.method.marginalize == "coordinates" and cells is None:
            raise ValueError('marginalize "coordinates" needs the place of each row: fork(shared, cells=Cells.of(...))')
        plan = Plan(
            self.tasks,
            self.method,
            self._words,
            self._ranks() if self.sync == "full" else Ranks(),
            cells.count if cells is not None else 0,
            FlowCheck(shared, self.tasks) if self.debug else None,
        )
        # The step is copied, so that a set_step between forward and backward changes nothing of this pass.
        aliases = ForkFunction.apply(
            shared,
            self._learning_probe,
            self._telemetry_probe if self._measuring else None,
            self._map_probe_for(shared) if self._mapping else None,
            self.step.clone(),
            sample_index,
            cells.index if cells is not None else None,
            plan,
        )
        return dict(zip(self.tasks, aliases, strict=True))

    def weigh(self, losses: Mapping[str, Tensor], features: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Return the losses to be added up: the tasks' in their order, weighed by the method, and its penalty if any.

        Args:
            losses: a scalar for each task.
            features: what `forward` returned; a gradient penalty and the debug mode need it.

        Returns:
            By task name; a gradient penalty follows under the name "penalty".

        Raises:
            ValueError: a task without a loss, a loss without a task, or no features where they are needed.
            RuntimeError: in debug mode, a loss that does not reach its alias, or reaches another task's.
        """
        self._check_names(losses)
        if self.debug and self.training and torch.is_grad_enabled():
            check_flow(self.tasks, losses, features)
        stacked = torch.stack([losses[task] for task in self.tasks])
        weighed = self.method.weigh(stacked, self.state.tensors())
        if self._loss_sum is not None and self.training and torch.is_grad_enabled():
            self._loss_sum = self._loss_sum + stacked.detach().double()
        result = dict(zip(self.tasks, weighed.unbind(), strict=True))
        if self.training and torch.is_grad_enabled():
            aliases = [features[task] for task in self.tasks] if features else []
            penalty = self.method.penalty(weighed, aliases, self._ranks())
            if penalty is not None:
                result["penalty"] = penalty
        return result

    def set_step(self, step: int) -> None:
        """Set the optimizer step (0 or more) that the draw depends on, before the step's first forward."""
        if step < 0:
            raise ValueError(f"step is {step}; it counts from 0")
        self.step.fill_(step)
        self._measuring = self.telemetry_every > 0 and step % self.telemetry_every == 0
        self._mapping = self.map_every > 0 and step % self.map_every == 0

    def update(self, loss_scale: float | Tensor = 1.0) -> None:
        """Let the method learn from the step's backward passes; call it once, after the last of them.

        Nothing happens unless the method learns (GradNorm). On several ranks this is a collective of K numbers.

        Args:
            loss_scale: what a loss scaler multiplied the losses with.
        """
        if self._learning_probe is None or self._loss_sum is None:
            return
        loss_sum, self._loss_sum = self._loss_sum, torch.zeros_like(self._loss_sum)
        if self._learning_probe.grad is None:  # no backward pass went through the fork: the backbone is frozen, say
            return
        ranks = self._ranks()  # what is learnt is the same on every rank, whatever `sync` says
        learning = self._learning_probe.grad / loss_scale**2
        if self.sync == "none":
            learning = ranks.sum(learning) / ranks.size
        losses = ranks.sum(loss_sum) / ranks.size
        with torch.no_grad():
            self.method.learn(learning, losses, self.state.tensors())
        self._learning_probe.grad = None

    def read_telemetry(self, loss_scale: float | Tensor = 1.0) -> Telemetry | None:
        """Return what was measured since the last reading, None if nothing was; waits for the device.

        Args:
            loss_scale: what a loss scaler multiplied the losses with; the norms are divided by it.
        """
        numbers = self._telemetry_probe.grad
        if numbers is None:
            return None
        self._telemetry_probe.grad = None
        return read(numbers, self.tasks, float(loss_scale))

    def read_map(self, loss_scale: float | Tensor = 1.0) -> ConflictMap | None:
        """Return the map measured since the last reading, None if none was; waits for the device.

        Args:
            loss_scale: what a loss scaler multiplied the losses with; the masses are divided by it.
        """
        if self._map_probe is None or self._map_probe.grad is None:
            return None
        numbers, self._map_probe.grad = self._map_probe.grad, None
        return read_conflict_map(numbers, self._map_shape, float(loss_scale))

    def extra_repr(self) -> str:
        """Name the tasks and the method when the model is printed."""
        return f"tasks={self.tasks}, method={self.method}, sync={self.sync}"

    def _ranks(self) -> Ranks:
        return replace(current_ranks(self.process_group), exchange=self.exchange)

    def _check_names(self, losses: Mapping[str, Tensor]) -> None:
        missing = [task for task in self.tasks if task not in losses]
        unknown = [name for name in losses if name not in self.tasks]
        if missing or unknown:
            raise ValueError(
                f"losses are needed for exactly the tasks {', '.join(self.tasks)}; "
                f"missing: {', '.join(missing) or 'none'}; unknown: {', '.join(unknown) or 'none'}"
            )

    def _map_probe_for(self, shared: Tensor) -> Tensor:
        """Return the probe of a map of this size, made when a map is first due: only then is the size known."""
        shape = map_shape(shared.shape, self.method.channel_dim)
        if self._map_probe is not None and self._map_probe.grad is not None and shape != self._map_shape:
            raise ValueError(f"the activation's map was {self._map_shape} and is {shape} now; read_map() in between")
        if self._map_probe is None or shape != self._map_shape:
            # torch.compile breaks the graph here, once for each size: graphs make no leaves that keep a gradient.
            self._map_shape = shape
            self._map_probe = _probe(map_probe_size(shape), shared.device)
        return self._map_probe

    def _reset_probes(self) -> None:
        # Neither parameters nor buffers: optimizers, DistributedDataParallel and checkpoints must not see them.
        tasks = len(self.tasks)
        size = self.method.learning_size(tasks)
        self._telemetry_probe = _probe(probe_size(tasks), self.step.device)
        self._learning_probe = _probe(size, self.step.device) if size else None
        self._map_probe: Tensor | None = None
        self._map_shape = (0, 0)
        self._loss_sum = torch.zeros(tasks, dtype=torch.float64, device=self.step.device) if size else None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "TaskFork":
        super()._apply(fn, recurse)
        self._reset_probes()  # follow the module to its new device
        return self


def _probe(size: int, device: torch.device) -> Tensor:
    """Return zeros whose gradient carries numbers out of the backward pass."""
    return torch.zeros(size, dtype=torch.float64, device=device, requires_grad=True)


class _State(nn.Module):
    """What a method learns: its buffers and parameters under their own names."""

    def __init__(self, method: Method, tasks: int) -> None:
        super().__init__()
        for name, value in method.new_buffers(tasks).items():
            self.register_buffer(name, value)
        for name, value in method.new_parameters(tasks).items():
            self.register_parameter(name, nn.Parameter(value))

    def tensors(self) -> dict[str, Tensor]:
        return {**dict(self.named_buffers()), **dict(self.named_parameters())}
