"""The exponential moving average of a detector's weights and statistics, which is what is evaluated."""

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from detection3d.training.packing import pack, room_for


class WeightAverage(AveragedModel):
    """torch's averaged model, updated without waiting for the device and without a walk through all modules.

    Whole numbers, such as counts of batches, are taken over as they are.

    Args:
        model: what is averaged. From the first update on it must keep its tensors.
        decay: what is left of the average after each update.
        warm_up: begin with a short memory, which grows with the updates until it reaches `decay`'s: after n of them at
            most (1 + n) / (10 + n) is left, as in TensorFlow's ExponentialMovingAverage. Without it the first weights
            still weigh `decay` ** n.
    """

    def __init__(self, model: nn.Module, decay: float, warm_up: bool = False) -> None:
        super().__init__(model, use_buffers=True)
        self._decay = decay
        self._warm_up = warm_up
        self._tensors: tuple[list[Tensor], list[Tensor]] | None = None
        self._packed: list[_Group] | None = None

    @property
    def rate(self) -> float:
        """Share of the way to the model that the next update moves."""
        if self.n_averaged == 0:  # which stays on the host
            return 1.0
        updates = int(self.n_averaged)
        return 1 - (min(self._decay, (1 + updates) / (10 + updates)) if self._warm_up else self._decay)

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Move the average towards the model; the first time, to it."""
        if self._tensors is None:
            self._tensors = _tensors(self.module), _tensors(model)
        ours, theirs = self._tensors
        if self.n_averaged == 0:
            torch._foreach_copy_(ours, theirs)  # pyright: ignore[reportPrivateImportUsage] as its optimisers use it
        else:
            whole = [place for place, tensor in enumerate(ours) if not tensor.is_floating_point()]
            floats = [place for place, tensor in enumerate(ours) if tensor.is_floating_point()]
            torch._foreach_lerp_([ours[i] for i in floats], [theirs[i] for i in floats], self.rate)  # pyright: ignore[reportPrivateImportUsage]
            torch._foreach_copy_([ours[i] for i in whole], [theirs[i] for i in whole])  # pyright: ignore[reportPrivateImportUsage]
        self.n_averaged += 1

    @torch.no_grad()
    def update(self, model: nn.Module, left_out: Tensor) -> None:
        """Move the average as `update_parameters` does, unless the step is left out.

        On CUDA, where the host does not know, a first step that is left out makes the average begin at the first
        weights, and the last bits may differ from those of `update_parameters`.

        Args:
            model: after the step.
            left_out: bool scalar; the host waits for it on the CPU alone.
        """
        if not left_out.is_cuda:
            if not left_out:
                self.update_parameters(model)
        elif self.n_averaged == 0:
            self.update_parameters(model)
        else:
            self.move(model, torch.where(left_out, 0.0, self.rate))

    @torch.no_grad()
    def move(self, model: nn.Module, rate: Tensor) -> None:
        """Move the average by a share of the way that the device knows.

        Args:
            model: where to.
            rate: float scalar, 0 for not at all.
        """
        if self._packed is None:
            self._packed = _packed(self.module, model)
            self._tensors = None  # they are elsewhere now
        for group in self._packed:
            torch._foreach_copy_(group.parts, group.values)  # pyright: ignore[reportPrivateImportUsage]
            if group.average.is_floating_point():
                group.average.lerp_(group.together, rate.to(group.average.dtype))
            else:
                group.average.copy_(group.together)
        self.n_averaged += 1


@dataclass(frozen=True)
class _Group:
    """The tensors of a dtype, packed.

    Attributes:
        average: those of the average, whose parts they are.
        values: those of the model, where they are.
        together: room for these, laid out as `average`.
        parts: parts of that room, one for each of `values`.
    """

    average: Tensor
    values: list[Tensor]
    together: Tensor
    parts: list[Tensor]


def _packed(average: nn.Module, model: nn.Module) -> list[_Group]:
    groups: dict[torch.dtype, tuple[list[Tensor], list[Tensor]]] = {}
    for own, value in zip(_tensors_of(average), _tensors(model), strict=True):
        averages, values = groups.setdefault(own.dtype, ([], []))
        averages.append(own)
        values.append(value)
    packed = []
    for averages, values in groups.values():
        together, parts = room_for(averages)
        packed.append(_Group(pack(averages), values, together, parts))
    return packed


def _tensors_of(module: nn.Module) -> list[Tensor]:
    return list(itertools.chain(module.parameters(), module.buffers()))


def _tensors(module: nn.Module) -> list[Tensor]:
    return [tensor.detach() for tensor in _tensors_of(module)]
