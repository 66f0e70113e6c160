"""Conflict-averse gradient descent: Liu et al., NeurIPS 2021, arXiv 2110.14048."""

from dataclasses import dataclass

import torch
from torch import Tensor

from detection3d.multitask.fused import solvers_for
from detection3d.multitask.method import Context, Weighting

CANCELLED = 1e-4
"""Where the parts of g_w cancel to less than this share of their lengths, g_w / ||g_w|| is shortened: scaled up to
length 1, its weights would be so large that float32 gradients lose the rest of the update in rounding."""


@dataclass(frozen=True)
class CAGrad(Weighting):
    """The direction near the mean gradient that helps the worst-served task most, times K.

    With g0 the mean, the update is g0 + c ||g0|| g_w / ||g_w||, where g_w = sum_i w_i g_i with w on the simplex
    minimises g_w . g0 + c ||g0|| ||g_w||. It is multiplied by K, so that c = 0 is the sum. A task whose gradient is
    exactly 0 takes no part: the update is that of the other tasks alone.

    Attributes:
        c: how far from the mean, as a share of its norm, in [0, 1).
        iterations: of exponentiated gradient descent, a fixed number, so that the device need not be waited for.
    """

    c: float = 0.5
    iterations: int = 50

    def __post_init__(self) -> None:
        """Check the settings."""
        if not 0 <= self.c < 1:
            raise ValueError(f"c is {self.c}; it must lie in [0, 1)")
        if self.iterations < 1:
            raise ValueError(f"iterations is {self.iterations}; at least one is needed")

    def weights(self, gram: Tensor, context: Context) -> Tensor:
        """Return 1 + K c ||g0|| w / ||g_w||."""
        tasks = len(gram)
        active = gram.diagonal() != 0
        share = active.to(gram.dtype) / active.sum().clamp(min=1)
        # In the place of a task without a gradient stands the mean of the others, which adds nothing to their hull.
        stand_in = torch.where(active[:, None], torch.eye(tasks, dtype=gram.dtype, device=gram.device), share)
        others = stand_in @ gram @ stand_in.T
        simplex = self._solve(others, others.mean().clamp(min=0).sqrt()) @ stand_in

        norm = (simplex @ gram @ simplex).clamp(min=0).sqrt()
        norm = torch.maximum(norm, CANCELLED * (simplex @ gram.diagonal().sqrt()))
        ratio = torch.where(norm > 0, gram.mean().clamp(min=0).sqrt() / norm, 0.0)
        return 1 + tasks * self.c * ratio * simplex

    def _solve(self, gram: Tensor, mean_norm: Tensor) -> Tensor:
        """Return w, float64 [K]."""
        if (kernels := solvers_for(gram)) is not None:
            return kernels.conflict_averse(gram, self.c, self.iterations)
        with_mean = gram.mean(1)
        simplex = torch.full_like(with_mean, 1 / len(gram))
        best, lowest = simplex, torch.full_like(mean_norm, torch.inf)
        for turn in range(self.iterations):
            products = gram @ simplex
            norm = (simplex @ products).clamp(min=0).sqrt()
            value = with_mean @ simplex + self.c * mean_norm * norm
            best = torch.where(value < lowest, simplex, best)
            lowest = torch.minimum(value, lowest)
            slope = with_mean + torch.where(norm > 0, self.c * mean_norm / norm, 0.0) * products
            slope = slope - slope.amin()
            # Steps by the largest slope, so that the scale of the losses does not matter.
            rate = 4.0 / (1 + turn) ** 0.5
            simplex = torch.softmax(simplex.log() - rate * slope / torch.where(slope.amax() > 0, slope.amax(), 1.0), 0)
        return best
