"""AdamW with the one-cycle schedule, the recipe that voxel detectors are trained with."""

from dataclasses import dataclass

import torch
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR

from detection3d.config import TrainingConfig

MOMENTUM = (0.85, 0.95)  # at the peak of the learning rate, and at both ends (Smith, arXiv 1803.09820)
FINAL_DIVISOR = 1e4  # the last step's rate is the first one's over this
BETA2 = 0.99
SHORTEST_WARMUP = 1.5  # steps, so that the first one is never at the peak


@dataclass(frozen=True)
class Optimization:
    """The optimiser and its schedule; both step once for each batch."""

    optimizer: torch.optim.AdamW
    schedule: OneCycleLR


def build_optimization(model: nn.Module, config: TrainingConfig) -> Optimization:
    """Return AdamW and its schedule; norms and biases, all one-dimensional, do not decay."""
    decaying = [weight for weight in model.parameters() if weight.requires_grad and weight.ndim > 1]
    others = [weight for weight in model.parameters() if weight.requires_grad and weight.ndim <= 1]
    groups = [{"params": decaying, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    # OneCycleLR divides by the steps up to the peak, warmup * steps - 1, which is 0 for 10 steps at 0.1.
    warmup = max(config.warmup, SHORTEST_WARMUP / config.steps) if config.steps > 1 else config.warmup
    on_cuda = decaying[0].is_cuda
    optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, betas=(MOMENTUM[1], BETA2), fused=on_cuda)
    schedule = OneCycleLR(
        optimizer,
        max_lr=config.learning_rate,
        total_steps=config.steps,
        pct_start=warmup,
        div_factor=config.initial_divisor,
        final_div_factor=FINAL_DIVISOR,
        base_momentum=MOMENTUM[0],
        max_momentum=MOMENTUM[1],
    )
    return Optimization(optimizer, schedule)
