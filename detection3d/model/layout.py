"""Where each output lies among the channels of the heads' maps."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from detection3d.config import Config
from detection3d.types.tensors import HeadOutputs

CHANNELS = {"quality": 1, "offset": 2, "height": 1, "size": 3, "velocity": 2, "heading": 2}
"""Of each output; the heatmap has one for each class."""


@dataclass(frozen=True)
class HeadLayout:
    """The config's answer to which head predicts what.

    Attributes:
        outputs: of each task, in the order of its channels.
        channels: of each output among those of its task.
    """

    outputs: dict[str, tuple[str, ...]]
    channels: dict[str, slice]

    def width(self, task: str) -> int:
        """Number of channels of a task's map."""
        return self.channels[self.outputs[task][-1]].stop

    def map_of(self, outputs: HeadOutputs, name: str) -> Tensor:
        """Return an output's own channels, [B, C, H, W]."""
        task = next(task for task, names in self.outputs.items() if name in names)
        found = outputs.maps[task]
        own = self.channels[name]
        return found if own == slice(0, found.shape[1]) else found[:, own]

    def at_cells(self, outputs: HeadOutputs, cells: Tensor) -> dict[str, Tensor]:
        """Read the maps at cells, int64 [B, M] (y * W + x); float32 [B, M, C] by task. A heatmap alone is left out."""
        return {
            task: gather_cells(outputs.maps[task].float(), cells)
            for task, names in self.outputs.items()
            if names != ("heatmap",)
        }

    def split(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return values [..., C] that are given by task by output instead."""
        return {name: values[task][..., self.channels[name]] for task in values for name in self.outputs[task]}


def head_layout(config: Config) -> HeadLayout:
    """Return the layout of a config's heads."""
    channels = {}
    outputs = config.model.heads.by_task()
    for names in outputs.values():
        start = 0
        for name in names:
            width = len(config.classes) if name == "heatmap" else CHANNELS[name]
            channels[name] = slice(start, start + width)
            start += width
    return HeadLayout(dict(outputs), channels)


def gather_cells(values: Tensor, cell: Tensor) -> Tensor:
    """Pick the cells of objects: [B, C, H, W] and int64 [B, M] to [B, M, C]."""
    index = cell.unsqueeze(1).expand(-1, values.shape[1], -1)
    return values.flatten(2).gather(2, index).transpose(1, 2)
