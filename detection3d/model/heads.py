"""The three heads, one for each task: classification, box and orientation."""

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from detection3d.config import Config
from detection3d.model.neck import convolution_block

TASKS = ("classification", "box", "orientation")
PRIOR = 0.1  # of an object in a cell at the start, so that the focal loss begins small (Lin et al., ICCV 2017)
# Start values of the last bias. An object is 1 m high, of 3 x 1.4 x 1.7 m: Adam moves a bias by one learning rate a
# step, so hundreds of steps from 0.
START = {
    "heatmap": (-math.log((1 - PRIOR) / PRIOR),),  # of each class
    "quality": (0.0,),
    "offset": (0.0, 0.0),
    "height": (1.0,),
    "size": (math.log(3.0), math.log(1.4), math.log(1.7)),
    "velocity": (0.0, 0.0),
    "heading": (0.0, 0.0),
}


class Head(nn.Module):
    """One task's own layers on its alias of the shared feature.

    Args:
        in_channels: channels of the shared feature.
        width: channels of the hidden layer.
        before_relu: whether the alias comes before the shared feature's ReLU; then the head begins with it.
        bias: start values of the last layer's bias, one for each output channel.
    """

    def __init__(self, in_channels: int, width: int, *, before_relu: bool, bias: Sequence[float]) -> None:
        super().__init__()
        self.activation = nn.ReLU() if before_relu else nn.Identity()
        self.hidden = convolution_block(in_channels, width)
        self.output = nn.Conv2d(width, len(bias), 3, padding=1)
        nn.init.normal_(self.output.weight, std=0.01)
        assert self.output.bias is not None
        with torch.no_grad():
            self.output.bias.copy_(torch.tensor(bias))

    def forward(self, alias: Tensor) -> Tensor:
        """[B, C, H, W] to [B, out_channels, H, W]."""
        return self.output(self.hidden(self.activation(alias)))


def build_heads(config: Config) -> nn.ModuleDict:
    """Return the heads by task name."""
    model = config.model
    before_relu = not model.fork_after_relu
    outputs = model.heads.by_task()
    biases = {task: _start_values(outputs[task], len(config.classes)) for task in TASKS}
    return nn.ModuleDict(
        {
            task: Head(model.shared_channels, model.head_channels, before_relu=before_relu, bias=bias)
            for task, bias in biases.items()
        }
    )


def _start_values(outputs: Iterable[str], classes: int) -> list[float]:
    return [value for name in outputs for value in START[name] * (classes if name == "heatmap" else 1)]
