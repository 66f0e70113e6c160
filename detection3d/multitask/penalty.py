"""A penalty on the gradient at the fork: Drucker and Le Cun, 1992; Gulrajani et al., NeurIPS 2017."""

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from detection3d.multitask.convolutions import cheap_second_derivatives
from detection3d.multitask.ranks import Ranks
from detection3d.multitask.wrapping import Wrapping


@dataclass(frozen=True)
class GradientPenalty(Wrapping):
    """Add weight ||d sum_i L_i / dA||^2 to the losses.

    The norm is taken through the heads alone; its own gradient then flows to the heads and, as part of each task's, to
    the fork. `fork.weigh` needs the features for it.

    Attributes:
        weight: of the penalty, above 0.
        then: what combines the gradients.
    """

    weight: float = 0.1

    def __post_init__(self) -> None:
        """Check the weight."""
        if not (math.isfinite(self.weight) and self.weight > 0):
            raise ValueError(f"weight is {self.weight}; it must be above 0")

    def penalty(self, losses: Tensor, aliases: Sequence[Tensor], ranks: Ranks) -> Tensor:
        """Return the penalty, of this rank's samples times what DistributedDataParallel's mean takes away.

        Raises:
            ValueError: no aliases, or such as need no gradient.
        """
        if not aliases:
            raise ValueError("a gradient penalty needs the fork's features: fork.weigh(losses, features)")
        if not all(alias.requires_grad for alias in aliases):
            raise ValueError(
                "a gradient penalty needs the gradient of the shared features, and they require none: is the backbone"
                " frozen? Then train with `then` alone"
            )
        with cheap_second_derivatives() if losses.is_cuda else nullcontext():  # it would save nothing on a CPU
            found = torch.autograd.grad(losses.sum(), aliases, create_graph=True, allow_unused=True)
        gradients = [gradient for gradient in found if gradient is not None]
        if not gradients:
            return losses.sum() * 0.0
        total = torch.stack(gradients).sum(0)
        # Losses count `ranks.size` times what they do on one rank: the square is too large by its square, and the mean
        # over the ranks makes up for one factor.
        own = self.weight / ranks.size * total.to(torch.promote_types(total.dtype, torch.float32)).square().sum()
        other = self.then.penalty(losses, aliases, ranks)
        return own if other is None else own + other
