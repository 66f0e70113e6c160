"""All that changes while training, in one place, so that a checkpoint can hold every bit of it."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel

from detection3d.config import Config
from detection3d.errors import UserError
from detection3d.model.detector import Detector
from detection3d.model.heads import TASKS
from detection3d.multitask import Method, Ranks, TaskFork
from detection3d.multitask.ranks import current_ranks
from detection3d.training.average import WeightAverage
from detection3d.training.freezing import freeze, refuse_methods_without_effect
from detection3d.training.leaving_out import Buffers
from detection3d.training.loss_pass import LossPass
from detection3d.training.method import build_method
from detection3d.training.optimizer import Optimization, build_optimization, continue_from, restore_optimizer
from detection3d.types.tensors import make_current

# torch's, 2^16, overflows in the first step of every other run at Waymo's scale, and 2^15 no more. It grows by itself.
FIRST_LOSS_SCALE = 2.0**13


@dataclass
class TrainState:
    """The detector, its averaged copy, the optimiser and how far it came.

    Attributes:
        model: the detector that is trained.
        average: exponential moving average of weights and statistics; None where the config switches it off.
        optimization: optimiser and schedule.
        scaler: of the loss; does nothing unless something runs in float16.
        losses: computes them.
        skipped: int64 [2], on the device: steps that were left out, and how many in a row; see `leaving_out`.
        step: optimiser steps done, those left out included: schedule and data depend on it alone.
        parallel: the model as it trains with those of other ranks; None on one rank. See `training.distributed`.
    """

    model: Detector
    average: WeightAverage | None
    optimization: Optimization
    scaler: torch.amp.GradScaler
    losses: LossPass
    skipped: torch.Tensor
    step: int = 0
    parallel: DistributedDataParallel | None = None

    def __post_init__(self) -> None:
        # A walk through all modules takes a millisecond or two, a step's kernels wait for it.
        self.parameters = tuple(self.model.parameters())

    @cached_property
    def buffers(self) -> Buffers:
        """What a step changes in the model beside the weights; of the tensors that it has at its first step."""
        return Buffers(self.model)

    @property
    def network(self) -> Detector | DistributedDataParallel:
        """What a training step calls: the model, or its parallel form."""
        return self.model if self.parallel is None else self.parallel

    @property
    def ranks(self) -> Ranks:
        """Who trains together."""
        return Ranks() if self.parallel is None else current_ranks(self.parallel.process_group)

    @property
    def fork(self) -> TaskFork:
        """The detector's fork."""
        return self.model.fork

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    def capture(self) -> dict[str, Any]:
        """Return everything as tensors and plain values, for a checkpoint."""
        return {
            "model": self.model.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "optimizer": self.optimization.optimizer.state_dict(),
            "schedule": self.optimization.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
            "skipped": self.skipped,
            "generator": torch.get_rng_state(),
            "cuda_generator": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
        }

    def restore(self, checkpoint: dict[str, Any], *, new_settings: bool = False) -> None:
        """Take over what `capture` returned.

        Args:
            checkpoint: that, and the step.
            new_settings: keep the optimiser's settings and the schedule of this state's config, which may have changed.
        """
        self.step = checkpoint["step"]
        self.model.load_state_dict(checkpoint["model"])
        if self.average is not None and checkpoint["average"] is not None:
            self.average.load_state_dict(checkpoint["average"])
        if new_settings:
            continue_from(self.optimization, checkpoint["optimizer"], self.step)
        else:
            restore_optimizer(self.optimization.optimizer, checkpoint["optimizer"])
            self.optimization.schedule.load_state_dict(checkpoint["schedule"])
        if checkpoint["scaler"]:  # empty after steps on a device that needs no scaler
            self.scaler.load_state_dict(checkpoint["scaler"])
        if "skipped" in checkpoint:  # checkpoints before steps were left out lack it
            self.skipped = checkpoint["skipped"].to(self.device)
        torch.set_rng_state(checkpoint["generator"])
        if self.device.type == "cuda" and checkpoint["cuda_generator"] is not None:
            torch.cuda.set_rng_state(checkpoint["cuda_generator"], self.device)


def build_detector(config: Config, device: torch.device) -> Detector:
    """Return a detector with fresh weights, which depend on the config's seed alone."""
    fork = TaskFork(
        TASKS,
        build_method(config.multitask.method),
        seed=config.seed,
        telemetry_every=config.training.log_every,
        map_every=config.training.map_every,
        sync=config.multitask.sync,
        debug=config.multitask.debug,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return Detector(config, fork, device).to(device)


def _why_no_gpu() -> str:
    if torch.version.cuda is None:
        return f" (torch {torch.__version__} is a build without CUDA)"
    return "" if torch.cuda.is_available() else f" (torch {torch.__version__} sees no GPU here)"


def build_state(config: Config, device: torch.device) -> TrainState:
    """Return the state before the first step; a CUDA device becomes this thread's current one.

    Raises:
        UserError: the config asks for a precision that the device lacks.
    """
    precision = config.training.precision
    if device.type != "cuda" and precision != "float32":
        raise UserError(
            f"training.precision={precision} needs a CUDA device, found {device}{_why_no_gpu()}; add"
            " training.precision=float32 to train here, which is slow, or start it on a machine with a GPU"
        )
    make_current(device)
    model = build_detector(config, device)
    if config.training.freeze:
        freeze(model, config.training.freeze)
        refuse_methods_without_effect(model, config)
    decay = config.training.ema_decay
    average = WeightAverage(model, decay, config.training.ema_warmup) if decay else None
    whole = not (config.multitask.debug or config.training.freeze)  # recording puts all of it into training mode
    graphs = device.type == "cuda" and config.training.cuda_graphs and whole
    once = type(model.fork.method).penalty is Method.penalty  # no second derivative is wanted
    if graphs:
        model.record_graphs(heads=once)
    half = device.type == "cuda" and "float16" in (precision, config.model.backbone.precision)
    scaler = torch.amp.GradScaler(device.type, init_scale=FIRST_LOSS_SCALE, enabled=half)
    torch.manual_seed(config.seed)
    skipped = torch.zeros(2, dtype=torch.int64, device=device)
    losses = LossPass(config, graphs=graphs and once)
    return TrainState(model, average, build_optimization(model, config.training), scaler, losses, skipped)
