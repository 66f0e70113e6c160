"""Loss weights learnt as the tasks' noise: Kendall et al., CVPR 2018, arXiv 1705.07115."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from detection3d.multitask.wrapping import Wrapping


@dataclass(frozen=True)
class Uncertainty(Wrapping):
    """Weigh each loss by exp(-s_i) and add s_i, where s_i, the logarithm of the noise's variance, is a parameter.

    The parameter is the fork's (`fork.state.log_variance`, [K], 0 at the start): hand the fork's parameters to the
    optimizer with the model's.

    Attributes:
        then: what combines the weighed gradients.
    """

    def new_parameters(self, tasks: int) -> dict[str, Tensor]:
        """Return log-variances of 0."""
        return {**self.then.new_parameters(tasks), "log_variance": torch.zeros(tasks)}

    def weigh(self, losses: Tensor, state: Mapping[str, Tensor]) -> Tensor:
        """Return exp(-s) L + s."""
        log_variance = state["log_variance"]
        return self.then.weigh(losses * torch.exp(-log_variance) + log_variance, state)
