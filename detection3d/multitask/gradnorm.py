"""GradNorm: loss weights that balance how fast the tasks train. Chen et al., ICML 2018, arXiv 1711.02257."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from detection3d.multitask.method import Combination, Context
from detection3d.multitask.wrapping import Wrapping


@dataclass(frozen=True)
class GradNorm(Wrapping):
    """Learn a weight for each loss, such that a task that trains slowly gets the larger gradient.

    With n_i = ||w_i dL_i / dA|| at the fork and r_i the loss relative to its first value, over the mean of these, each
    step moves the w_i down the slope of sum_i |n_i - mean(n) r_i^alpha|, the second term held fixed, and scales them to
    the sum K. Unlike the paper, which takes the norms at the last shared layer's weights and steps in w, the norms are
    those at the fork, where they come free, and steps are taken in log w over mean(n): so weights stay above 0, and the
    learning rate depends neither on the scale of the losses nor on how far apart they are.

    Losses are to be above 0, since r_i is a ratio of them: one below 0 counts as 0, and a task's first value is that of
    the first step at which it is above 0.

    Attributes:
        alpha: 0 makes the norms equal; more favours slow tasks.
        learning_rate: of the logarithm of the weights.
        then: what combines the weighed gradients, such as `GradDrop()`.
    """

    alpha: float = 1.5
    learning_rate: float = 0.025

    def __post_init__(self) -> None:
        """Check the settings."""
        if not (math.isfinite(self.alpha) and self.alpha >= 0):
            raise ValueError(f"alpha is {self.alpha}; it must be 0 or more")
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise ValueError(f"learning_rate is {self.learning_rate}; it must be above 0")
        if self.then.learning_size(1):
            raise ValueError(f"{type(self.then).__name__} learns from the gradients, too; only one method can")

    def new_buffers(self, tasks: int) -> dict[str, Tensor]:
        """Return weights of 1, and losses of 0 that stand for none seen yet."""
        own = {
            "loss_weight": torch.ones(tasks, dtype=torch.float64),
            "first_loss": torch.zeros(tasks, dtype=torch.float64),
        }
        return {**self.then.new_buffers(tasks), **own}

    def learning_size(self, tasks: int) -> int:
        """Return K, for the squared norms."""
        return tasks

    def weigh(self, losses: Tensor, state: Mapping[str, Tensor]) -> Tensor:
        """Multiply the losses with their weights."""
        # A copy, since the weights change before a second backward pass could read them.
        return self.then.weigh(losses * state["loss_weight"].to(losses.dtype, copy=True), state)

    def combine(self, gradients: Tensor, activation: Tensor, context: Context) -> Combination:
        """Leave the gradients to `then`, and note their squared norms."""
        dims = list(range(1, gradients.ndim))
        squares = torch.linalg.vector_norm(gradients, dim=dims, dtype=torch.float64).square()
        # Of R ranks these are R^2 times those of one, which does not matter: `learn` takes the norms over their mean.
        learning = context.ranks.sum(squares)
        return replace(self.then.combine(gradients, activation, context), learning=learning)

    def learn(self, learning: Tensor, losses: Tensor, state: Mapping[str, Tensor]) -> None:
        """Move the weights by one step; an overflow under a loss scaler leaves them as they are."""
        weight, first = state["loss_weight"], state["first_loss"]
        usable = torch.isfinite(learning).all() & torch.isfinite(losses).all()
        first.copy_(torch.where(usable & (first == 0) & (losses > 0), losses, first))

        norms = learning.sqrt()
        mean = norms.mean()
        progress = torch.where(first > 0, losses.clamp(min=0) / first, 1.0)
        relative = progress / progress.mean()
        target = mean * relative**self.alpha
        slope = (norms - target).sign() * norms / mean
        moved = weight * torch.exp(-self.learning_rate * slope)
        moved = moved * (len(moved) / moved.sum())
        weight.copy_(torch.where(usable & torch.isfinite(moved).all(), moved, weight))
