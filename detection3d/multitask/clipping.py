"""Each task's gradient clipped at the fork."""

import math
from dataclasses import dataclass

from torch import Tensor

from detection3d.multitask.method import Context, Weighting


@dataclass(frozen=True)
class TaskClipping(Weighting):
    """Scale each task's gradient down to a largest norm: c_i = min(1, max_norm / ||g_i||).

    The norm is that of the gradient at the shared activation, over all samples and ranks.

    Attributes:
        max_norm: largest L2 norm of one task's gradient, above 0.
    """

    max_norm: float = 1.0

    def __post_init__(self) -> None:
        """Check the norm."""
        if not (math.isfinite(self.max_norm) and self.max_norm > 0):
            raise ValueError(f"max_norm is {self.max_norm}; it must be above 0")

    def weights(self, gram: Tensor, context: Context) -> Tensor:
        """Return c_i."""
        return (self.max_norm / gram.diagonal().sqrt()).clamp(max=1)
