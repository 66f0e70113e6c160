"""The three heads, one for each task: classification, box and orientation."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from detection3d.model.neck import convolution_block

TASKS = ("classification", "box", "orientation")
BOX_CHANNELS = 6  # offset x, y; z; log length, width, height
ORIENTATION_CHANNELS = 2  # sine, cosine
# Offset 0, 1 m high, 3 x 1.4 x 1.7 m: Adam moves a bias by one learning rate a step, so hundreds of steps from 0.
TYPICAL_BOX = (0.0, 0.0, 1.0, math.log(3.0), math.log(1.4), math.log(1.7))
PRIOR = 0.1  # of an object in a cell at the start, so that the focal loss begins small (Lin et al., ICCV 2017)


class Head(nn.Module):
    """One task's own layers on its alias of the shared feature.

    Args:
        in_channels: channels of the shared feature.
        width: channels of the hidden layer.
        out_channels: channels of the task.
        before_relu: whether the alias comes before the shared feature's ReLU; then the head begins with it.
        bias: start values of the last layer's bias, one for each output channel.
    """

    def __init__(
        self, in_channels: int, width: int, out_channels: int, *, before_relu: bool, bias: Sequence[float]
    ) -> None:
        super().__init__()
        self.activation = nn.ReLU() if before_relu else nn.Identity()
        self.hidden = convolution_block(in_channels, width)
        self.output = nn.Conv2d(width, out_channels, 3, padding=1)
        nn.init.normal_(self.output.weight, std=0.01)
        assert self.output.bias is not None
        with torch.no_grad():
            self.output.bias.copy_(torch.tensor(bias))

    def forward(self, alias: Tensor) -> Tensor:
        """[B, C, H, W] to [B, out_channels, H, W]."""
        return self.output(self.hidden(self.activation(alias)))


def build_heads(in_channels: int, width: int, classes: int, *, before_relu: bool) -> nn.ModuleDict:
    """Return the heads by task name."""
    logit = -math.log((1 - PRIOR) / PRIOR)
    return nn.ModuleDict(
        {
            "classification": Head(in_channels, width, classes, before_relu=before_relu, bias=[logit] * classes),
            "box": Head(in_channels, width, BOX_CHANNELS, before_relu=before_relu, bias=TYPICAL_BOX),
            "orientation": Head(
                in_channels, width, ORIENTATION_CHANNELS, before_relu=before_relu, bias=[0.0] * ORIENTATION_CHANNELS
            ),
        }
    )
