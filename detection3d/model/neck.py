"""Two-dimensional network on the bird's-eye view: stages of 3x3 convolutions, all brought back to one resolution."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detection3d.config import NeckConfig
from detection3d.model.norm import BatchNorm


class BevNeck(nn.Module):
    """From [B, C, H, W] to [B, sum of upsampled channels, H, W], after SECOND's region proposal network.

    Args:
        in_channels: C.
        config: layers, strides and widths of the stages.
    """

    def __init__(self, in_channels: int, config: NeckConfig) -> None:
        super().__init__()
        self.stages = nn.ModuleList()
        self.upsamplers = nn.ModuleList()
        scale = 1
        channels = in_channels
        for layers, stride, width, upsampled in zip(
            config.layers, config.strides, config.channels, config.upsampled_channels, strict=True
        ):
            scale *= stride
            blocks = [convolution_block(channels, width, stride)]
            blocks += [convolution_block(width, width) for _ in range(layers)]
            self.stages.append(nn.Sequential(*blocks))
            self.upsamplers.append(_upsampler(width, upsampled, scale))
            channels = width
        self.stride = scale
        self.out_channels = sum(config.upsampled_channels)

    def forward(self, bev: Tensor) -> Tensor:
        """Return the features that all heads share the way to; H and W stay."""
        upsampled = []
        for stage, upsampler in zip(self.stages, self.upsamplers, strict=True):
            bev = stage(bev)
            upsampled.append(upsampler(bev))
        return torch.cat(upsampled, dim=1)


def convolution_block(in_channels: int, out_channels: int, stride: int = 1) -> nn.Sequential:
    """Return a 3x3 convolution, BatchNorm and ReLU."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False),
        BatchNorm(out_channels, relu=True),
    )


def _upsampler(in_channels: int, out_channels: int, scale: int) -> nn.Sequential:
    """Return a transposed convolution whose kernel is its stride, written as one matrix product for any scale."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels * scale * scale, 1, bias=False),
        _SpreadCells(scale),
        BatchNorm(out_channels, relu=True),
    )


class _SpreadCells(nn.Module):
    """Turn scale^2 channels into as many cells, as `nn.PixelShuffle` does, but keep the channels-last format."""

    def __init__(self, scale: int) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, input: Tensor) -> Tensor:
        if self.scale == 1:
            return input
        if not input.is_contiguous(memory_format=torch.channels_last):
            return F.pixel_shuffle(input, self.scale)
        batch, channels, height, width = input.shape
        inner = (channels // self.scale**2, self.scale, self.scale)
        cells = input.permute(0, 2, 3, 1).view(batch, height, width, *inner).permute(0, 1, 4, 2, 5, 3)
        return cells.reshape(batch, height * self.scale, width * self.scale, inner[0]).permute(0, 3, 1, 2)
