"""AdamW with the one-cycle schedule, the recipe that voxel detectors are trained with."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR

from detection3d.config import TrainingConfig
from detection3d.training.packed_adamw import PackedAdamW

MOMENTUM = (0.85, 0.95)  # at the peak of the learning rate, and at both ends (Smith, arXiv 1803.09820)
BETA2 = 0.99
SHORTEST_WARMUP = 1.5  # steps, so that the first one is never at the peak


class CycleWithTail(OneCycleLR):
    """One cycle, after which rate and momentum stay as its last step has them."""

    def step(self, epoch: int | None = None) -> None:
        """Go on to the next step of the cycle."""
        if self.last_epoch + 1 < self.total_steps:
            super().step(epoch)


@dataclass(frozen=True)
class Optimization:
    """The optimiser and its schedule; both step once for each batch."""

    optimizer: torch.optim.AdamW
    schedule: CycleWithTail

    def gradients(self, weights: Sequence[nn.Parameter]) -> tuple[Any, Sequence[Any]]:
        """Return what a scaler takes for the optimiser, and what has the gradients in it, for clipping.

        Args:
            weights: all of the model's.
        """
        optimizer = self.optimizer
        if isinstance(optimizer, PackedAdamW) and optimizer.take_gradients():
            return optimizer.packed, optimizer.packed.param_groups[0]["params"]
        return optimizer, weights


def build_optimization(model: nn.Module, config: TrainingConfig) -> Optimization:
    """Return AdamW and its schedule; norms and biases, all one-dimensional, do not decay."""
    decaying = [weight for weight in model.parameters() if weight.requires_grad and weight.ndim > 1]
    others = [weight for weight in model.parameters() if weight.requires_grad and weight.ndim <= 1]
    groups = [{"params": decaying, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    cycle = max(1, config.steps - round(config.tail * config.steps))
    warmup = config.warmup * (config.steps / cycle)
    # OneCycleLR divides by the steps up to the peak, warmup * cycle - 1, which is 0 for 10 steps at 0.1.
    warmup = max(warmup, SHORTEST_WARMUP / cycle) if cycle > 1 else config.warmup
    betas = MOMENTUM[1], BETA2
    if next(model.parameters()).is_cuda:
        optimizer = PackedAdamW(groups, config.learning_rate, betas)
    else:
        optimizer = torch.optim.AdamW(groups, config.learning_rate, betas, fused=False)
    schedule = CycleWithTail(
        optimizer,
        max_lr=config.learning_rate,
        total_steps=cycle,
        pct_start=warmup,
        div_factor=config.initial_divisor,
        final_div_factor=config.final_divisor / config.initial_divisor,
        base_momentum=MOMENTUM[0],
        max_momentum=MOMENTUM[1],
    )
    return Optimization(optimizer, schedule)


def restore_optimizer(optimizer: torch.optim.AdamW, saved: dict[str, Any]) -> None:
    """Take over moments and settings, but for how this device does it.

    A state dict of the CPU would switch the fused optimiser off, and with it the steps that the device leaves out.

    Args:
        optimizer: of this device.
        saved: state dict of one that may have been on another.
    """
    groups = [{**group, "fused": optimizer.defaults["fused"]} for group in saved["param_groups"]]
    optimizer.load_state_dict({**saved, "param_groups": groups})


def continue_from(optimization: Optimization, saved: dict[str, Any], step: int) -> None:
    """Take over the optimiser's moments, but not the settings that they were made with.

    Args:
        optimization: as the new settings make it.
        saved: state dict of the optimiser that did the steps so far.
        step: steps done; the schedule goes on from there.
    """
    optimizer, schedule = optimization.optimizer, optimization.schedule
    optimizer.load_state_dict({**optimizer.state_dict(), "state": saved["state"]})
    schedule.last_epoch = min(step, schedule.total_steps - 1) - 1
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Detected call of")  # of a schedule that goes before its optimiser
        schedule.step()
