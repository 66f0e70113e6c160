"""Projecting conflicting gradients: Yu et al., NeurIPS 2020, arXiv 2001.06782."""

from dataclasses import dataclass

import torch
from torch import Tensor

from detection3d.multitask.draw import uniform_from_words
from detection3d.multitask.fused import solvers_for
from detection3d.multitask.method import Context, Weighting


@dataclass(frozen=True)
class PCGrad(Weighting):
    """Each task's gradient loses what points against another one's, one after the other in random order; then the sum.

    All is done on the products of the gradients: the projected gradient of task i is sum_j C_ij g_j, and what it has in
    common with g_j is (C M)_ij. The order is drawn from the step, the same on every rank.
    """

    def weights(self, gram: Tensor, context: Context) -> Tensor:
        """Return the column sums of C."""
        tasks = len(gram)
        draws = uniform_from_words((tasks, tasks), context.words, context.step)
        order = draws.argsort(dim=1, stable=True)  # equal draws in the same order on every device
        if (kernels := solvers_for(gram)) is not None:
            return kernels.projected_sum(gram, order)
        return projected_coefficients(gram, order).sum(0)


def projected_coefficients(gram: Tensor, order: Tensor) -> Tensor:
    """Return C: row i holds the projected gradient of task i in terms of all gradients.

    Args:
        gram: float64 [K, K], products of the gradients.
        order: int64 [K, K]; row i is the order in which task i meets the tasks; itself is passed over.

    Returns:
        float64 [K, K].
    """
    tasks = torch.arange(len(gram), device=gram.device)
    coefficients = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    squares = gram.diagonal()
    for others in order.unbind(1):  # all tasks at once, each with its own next one
        common = (coefficients * gram[others]).sum(1)
        against = (common < 0) & (others != tasks)  # never of a gradient of 0, with which nothing is in common
        share = torch.where(against, common / squares[others], 0.0)
        coefficients = coefficients - torch.zeros_like(coefficients).scatter_(1, others[:, None], share[:, None])
    return coefficients
