"""The neck's resolutions, and its upsampling against torch's transposed convolution."""

import torch
from torch.nn import functional as F

from detection3d.config import NeckConfig
from detection3d.model.neck import BevNeck


def test_every_stage_comes_back_to_the_first_resolution() -> None:
    config = NeckConfig(layers=(1, 2, 1), strides=(1, 2, 2), channels=(4, 6, 8), upsampled_channels=(3, 5, 7))
    neck = BevNeck(10, config)
    assert neck(torch.randn(2, 10, 8, 12)).shape == (2, 15, 8, 12)
    assert neck.out_channels == 15
    assert neck.stride == 4


def test_upsampling_is_the_transposed_convolution_whose_kernel_is_its_stride() -> None:
    config = NeckConfig(layers=(1, 1), strides=(1, 2), channels=(4, 4), upsampled_channels=(2, 3))
    convolution, shuffle = BevNeck(4, config).upsamplers[1][:2]
    values = torch.randn(2, 4, 5, 6, generator=torch.Generator().manual_seed(0))
    weight = convolution.weight.view(3, 2, 2, 4).permute(3, 0, 1, 2)  # to [C_in, C_out, kernel, kernel]
    torch.testing.assert_close(shuffle(convolution(values)), F.conv_transpose2d(values, weight, stride=2))
