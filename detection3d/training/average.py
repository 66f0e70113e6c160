"""The exponential moving average of a detector's weights and statistics, which is what is evaluated."""

import itertools

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


class WeightAverage(AveragedModel):
    """torch's averaged model, updated without waiting for the device and without a walk through all modules.

    Whole numbers, such as counts of batches, are taken over as they are.

    Args:
        model: what is averaged. From the first update on it must keep its tensors.
        decay: what is left of the average after each update.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        super().__init__(model, use_buffers=True)
        self._decay = decay
        self._tensors: tuple[list[Tensor], list[Tensor]] | None = None

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Move the average towards the model; the first time, to it."""
        if self._tensors is None:
            self._tensors = _tensors(self.module), _tensors(model)
        ours, theirs = self._tensors
        if self.n_averaged == 0:  # which stays on the host
            torch._foreach_copy_(ours, theirs)  # pyright: ignore[reportPrivateImportUsage] as its optimisers use it
        else:
            whole = [place for place, tensor in enumerate(ours) if not tensor.is_floating_point()]
            floats = [place for place, tensor in enumerate(ours) if tensor.is_floating_point()]
            torch._foreach_lerp_([ours[i] for i in floats], [theirs[i] for i in floats], 1 - self._decay)  # pyright: ignore[reportPrivateImportUsage]
            torch._foreach_copy_([ours[i] for i in whole], [theirs[i] for i in whole])  # pyright: ignore[reportPrivateImportUsage]
        self.n_averaged += 1


def _tensors(module: nn.Module) -> list[Tensor]:
    return [tensor.detach() for tensor in itertools.chain(module.parameters(), module.buffers())]
