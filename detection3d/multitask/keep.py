"""From the purity of the sign to the probability of keeping the positive one."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Keep = Callable[[Tensor], Tensor]
GRID = 1001  # purities at which a function is tried


@dataclass(frozen=True)
class Identity:
    """The purity itself, as in the paper."""

    def __call__(self, purity: Tensor) -> Tensor:
        """Return the purity."""
        return purity


@dataclass(frozen=True)
class Sigmoid:
    """sigmoid(4 scale (P - 1/2)): slope `scale` at 1/2 (lingvo's keep_prob_function "sigmoid").

    It never reaches 0 or 1, so gradients that all tasks agree on are dropped too, with probability sigmoid(-2 scale):
    12 % at scale 1, 1.8 % at scale 2.

    Attributes:
        scale: slope at P = 1/2, above 0.
    """

    scale: float = 1.0

    def __post_init__(self) -> None:
        """Check the scale."""
        if not (math.isfinite(self.scale) and self.scale > 0):
            raise ValueError(f"scale of the sigmoid is {self.scale}; it must be above 0")

    def __call__(self, purity: Tensor) -> Tensor:
        """Return the probability of the positive sign."""
        return torch.sigmoid(4 * self.scale * (purity - 0.5))


@dataclass(frozen=True)
class Half:
    """1/2 whatever the purity: the sign is picked at random, the paper's random GradDrop."""

    def __call__(self, purity: Tensor) -> Tensor:
        """Return 1/2 everywhere."""
        return torch.full_like(purity, 0.5)


def check_keep(keep: Keep) -> None:
    """Try `keep` on purities from 0 to 1.

    Raises:
        ValueError: it does not return one probability for each purity, or one falls where the purity rises.
    """
    purity = torch.linspace(0, 1, GRID, dtype=torch.float64)
    probability = keep(purity)
    if probability.shape != purity.shape:
        raise ValueError(f"keep turns purities [{GRID}] into {tuple(probability.shape)}; it must keep the shape")
    if not bool(((probability >= 0) & (probability <= 1)).all()):
        raise ValueError(
            f"keep gives values from {float(probability.min()):g} to {float(probability.max()):g}; they are"
            " probabilities and must lie in [0, 1]"
        )
    falls = (probability.diff() < 0).nonzero()
    if len(falls):
        low, high = float(purity[falls[0]]), float(purity[falls[0] + 1])
        raise ValueError(
            f"keep falls between the purities {low:g} and {high:g}; a purer positive sign must not be kept less often"
        )
