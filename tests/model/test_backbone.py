"""Where a voxel comes out of the backbone, and what its blocks carry around their convolutions."""

import pytest
import torch
from torch import nn

from detection3d.config import Config
from detection3d.model.backbone import ResidualBlock, SparseBackbone
from detection3d.model.sparse import SparseTensor, TorchBackend

CPU = torch.device("cpu")


def test_a_block_adds_to_its_input() -> None:
    block = ResidualBlock(4, "stage", TorchBackend())
    indices = torch.tensor([[0, 1, 2, 3], [0, 1, 2, 4], [1, 0, 0, 0]], dtype=torch.int32)
    features = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    tensor = SparseTensor(features, indices, (4, 8, 8), 2)
    nn.init.zeros_(block.second_norm.weight)
    assert torch.equal(block(tensor).features, features.relu())
    nn.init.constant_(block.second_norm.bias, 0.5)
    torch.testing.assert_close(block(tensor).features, (features + 0.5).relu())


@pytest.mark.parametrize(("sample", "y", "x"), [(0, 4, 100), (1, 124, 60)])
def test_a_voxel_reaches_the_cells_around_it_and_no_others(config: Config, sample: int, y: int, x: int) -> None:
    torch.manual_seed(0)
    backbone = SparseBackbone(config.model.backbone, config.model.grid_size, CPU).eval()
    depth, height, width = config.model.grid_size
    column = torch.tensor([[sample, z, y, x] for z in range(depth)], dtype=torch.int32)
    bev = backbone(SparseTensor(torch.ones(depth, 5), column, (depth + 1, height, width), 2))
    assert bev.shape == (2, backbone.out_channels, height // 8, width // 8)
    samples, rows, columns = (bev.abs().sum(1) > 0).nonzero().unbind(1)
    assert len(samples) > 0
    assert (samples == sample).all()
    # Each strided convolution may reach one cell further, of its own size.
    assert ((rows - y / 8).abs() <= 1.5).all()
    assert ((columns - x / 8).abs() <= 1.5).all()
