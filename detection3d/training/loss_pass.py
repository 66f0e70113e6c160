"""The losses of a step, which are hundreds of small operations: on CUDA they may be replayed as a graph."""

from dataclasses import fields

from torch import Tensor, nn
from torch.nn import functional as F

from detection3d.config import Config
from detection3d.model.graphs import GraphedPass
from detection3d.model.losses import compute_losses
from detection3d.types.tensors import BoxLabels, HeadOutputs, Targets, TaskLosses

OBJECTS_TOGETHER = 64
"""Objects of a frame are padded to a multiple of this, so that a few graphs serve all batches."""

_MOST_GRAPHS = 12
_TARGETS = tuple(member.name for member in fields(Targets))
_TASKS = tuple(member.name for member in fields(TaskLosses))


class LossPass:
    """Computes a run's losses.

    Args:
        config: the run.
        graphs: replay them as CUDA graphs; the method at the fork must want no second derivative.
    """

    def __init__(self, config: Config, *, graphs: bool = False) -> None:
        self._config = config
        self._graphed = GraphedPass(_Losses(config), _MOST_GRAPHS) if graphs else None

    def __call__(self, outputs: HeadOutputs, targets: Targets) -> TaskLosses:
        """Compare the heads with the targets; see `compute_losses`. The next call may write over the result."""
        if self._graphed is None:
            return compute_losses(outputs, targets, self._config)
        maps = [outputs.maps[task] for task in _TASKS]
        return TaskLosses(*self._graphed(*maps, *(getattr(targets, name) for name in _TARGETS)))


def pad_objects(labels: BoxLabels) -> BoxLabels:
    """Return labels whose number of columns is a multiple of `OBJECTS_TOGETHER`; what is added is padding."""
    more = -labels.types.shape[1] % OBJECTS_TOGETHER
    values = {member.name: getattr(labels, member.name) for member in fields(labels)}
    return BoxLabels(**{name: F.pad(value, (0, 0) * (value.ndim - 2) + (0, more)) for name, value in values.items()})


class _Losses(nn.Module):
    """Takes and returns tensors alone: maps by task, the targets' fields; losses by task."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self._config = config

    def forward(self, *values: Tensor) -> tuple[Tensor, ...]:
        maps = dict(zip(_TASKS, values[: len(_TASKS)], strict=True))
        targets = Targets(**dict(zip(_TARGETS, values[len(_TASKS) :], strict=True)))
        losses = compute_losses(HeadOutputs(maps), targets, self._config)
        return tuple(losses.as_dict().values())
