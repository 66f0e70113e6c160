"""Multiple gradient descent: Désidéri 2012; for deep nets Sener and Koltun, NeurIPS 2018, arXiv 1810.04650."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from detection3d.multitask.fused import solvers_for
from detection3d.multitask.method import Context, Weighting


@dataclass(frozen=True)
class MGDA(Weighting):
    """The shortest vector in the convex hull of the tasks' gradients at the shared activation (MGDA-UB).

    Its weights add up to 1, so the update is about K times shorter than the sum's: give it a learning rate of its own.
    A task whose gradient is exactly 0 takes no part; else a batch without objects would stop the other tasks.

    Attributes:
        iterations: of pairwise Frank-Wolfe, a fixed number, so that the device need not be waited for.
        normalize: "norm" finds the weights with gradients of length 1, "none" with the gradients as they are.
    """

    iterations: int = 50
    normalize: Literal["none", "norm"] = "none"

    def __post_init__(self) -> None:
        """Check the settings."""
        if self.iterations < 1:
            raise ValueError(f"iterations is {self.iterations}; at least one is needed")
        if self.normalize not in ("none", "norm"):
            raise ValueError(f'normalize is "{self.normalize}"; choose "none" or "norm"')

    def weights(self, gram: Tensor, context: Context) -> Tensor:
        """Return a point of the simplex."""
        if self.normalize == "norm":
            norms = gram.diagonal().sqrt()
            scale = torch.where(norms == 0, 1.0, norms)
            gram = gram / scale[:, None] / scale
        return shortest_in_hull(gram, self.iterations)


def shortest_in_hull(gram: Tensor, iterations: int) -> Tensor:
    """Return the weights of the shortest convex combination, by pairwise Frank-Wolfe with exact line search.

    Each step moves weight from the worst vector that has any to the best one (Lacoste-Julien and Jaggi, NeurIPS 2015);
    the plain form, which draws weight from all of them, zigzags near the boundary.

    Args:
        gram: float64 [K, K], products of the vectors; vectors of length 0 get the weight 0.
        iterations: steps, at least 1.

    Returns:
        float64 [K], not negative, of sum 1; all 0 where every vector is 0.
    """
    if (kernels := solvers_for(gram)) is not None:
        return kernels.shortest_in_hull(gram, iterations)
    active = gram.diagonal() != 0
    vertices = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    point = active.to(gram.dtype) / active.sum().clamp(min=1)
    for _ in range(iterations):
        slopes = gram @ point
        # Shape [1], since an index without dims would be read by the host.
        best = torch.where(active, slopes, torch.inf).argmin(0, keepdim=True)
        worst = torch.where(point > 0, slopes, -torch.inf).argmax(0, keepdim=True)
        direction = (vertices[best] - vertices[worst])[0]
        curvature = direction @ gram @ direction
        step = torch.where(curvature > 0, -(slopes @ direction) / curvature, 0.0).clamp(min=0)
        point = point + torch.minimum(step, point[worst]) * direction
    return point
