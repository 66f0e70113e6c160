"""Sparse residual backbone of stride 8, from voxels to the bird's-eye view.

The layout of SECOND (Yan et al., Sensors 2018) with residual blocks in place of plain convolutions: four stages at
stride 1, 2, 4 and 8, then a reduction along z. What is left of z becomes channels.
"""

import torch
from torch import Tensor, nn

from detection3d.config import VoxelBackboneConfig
from detection3d.model.norm import BatchNorm
from detection3d.model.sparse import Backend, SparseConv3d, SparseTensor, SubmanifoldConv3d, build_backend
from detection3d.model.voxelize import FEATURES

DOWN = (3, 3, 3)
SUBMANIFOLD = (3, 3, 3)


class SparseBackbone(nn.Module):
    """From voxels to a dense [B, out_channels * depth, H, W] at stride 8.

    Args:
        config: widths, depth, backend and precision.
        grid_size: voxels along (z, y, x).
        device: where it will run; it decides the backend where the config says "auto".
        features: of a voxel.
    """

    def __init__(
        self,
        config: VoxelBackboneConfig,
        grid_size: tuple[int, int, int],
        device: torch.device,
        features: int = FEATURES,
    ) -> None:
        super().__init__()
        backend = build_backend(config.backend, config.precision, device)
        self.backend = backend.name
        self.dtype = backend.dtype
        first, second, third, fourth = config.channels
        self.stem = _Stem(features, first, "stage1", backend)
        self.stages = nn.ModuleList(
            [
                _Stage(first, first, config.blocks[0], "stage1", backend, down_padding=None),
                _Stage(first, second, config.blocks[1], "stage2", backend, down_padding=(1, 1, 1)),
                _Stage(second, third, config.blocks[2], "stage3", backend, down_padding=(1, 1, 1)),
                _Stage(third, fourth, config.blocks[3], "stage4", backend, down_padding=(0, 1, 1)),
            ]
        )
        self.reduce = SparseConv3d(
            fourth, config.out_channels, (3, 1, 1), "reduced", backend, stride=(2, 1, 1), padding=(0, 0, 0)
        )
        self.reduce_norm = BatchNorm(config.out_channels, relu=True)
        depth = ((grid_size[0] // 8) - 1) // 2  # 24, 40, 56 voxels leave 1, 2, 3 planes
        self.out_channels = config.out_channels * depth

    @torch.compiler.disable
    def forward(self, voxels: SparseTensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return the bird's-eye view [B, out_channels, H, W], in the voxels' type, or autocast's where it is on."""
        device = voxels.features.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else voxels.features.dtype
        with torch.autocast(device, enabled=False):
            tensor = voxels if self.dtype is None else voxels.with_features(voxels.features.to(self.dtype))
            tensor = self.stem(tensor)
            for stage in self.stages:
                tensor = stage(tensor)
            tensor = self.reduce(tensor)
            tensor = tensor.with_features(self.reduce_norm(tensor.features))
            return tensor.birds_eye(dtype)

    @torch.no_grad()
    def plan(self, voxels: SparseTensor) -> None:
        """Build all kernel maps, which depend on the voxels alone, and keep them in `voxels.maps` for `forward`."""
        tensor = self.stem.plan(voxels)
        for stage in self.stages:
            assert isinstance(stage, _Stage)
            tensor = stage.plan(tensor)
        self.reduce.plan(tensor)


class _Stem(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, stage: str, backend: Backend) -> None:
        super().__init__()
        self.convolution = SubmanifoldConv3d(in_channels, out_channels, SUBMANIFOLD, stage, backend)
        self.norm = BatchNorm(out_channels, relu=True)

    def forward(self, tensor: SparseTensor) -> SparseTensor:
        tensor = self.convolution(tensor)
        return tensor.with_features(self.norm(tensor.features))

    def plan(self, tensor: SparseTensor) -> SparseTensor:
        return self.convolution.plan(tensor)


class _Stage(nn.Module):
    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        blocks: int,
        stage: str,
        backend: Backend,
        *,
        down_padding: tuple[int, int, int] | None,
    ) -> None:
        super().__init__()
        self.down = (
            None
            if down_padding is None
            else SparseConv3d(in_channels, out_channels, DOWN, stage, backend, stride=(2, 2, 2), padding=down_padding)
        )
        self.down_norm = None if down_padding is None else BatchNorm(out_channels, relu=True)
        self.blocks = nn.ModuleList([ResidualBlock(out_channels, stage, backend) for _ in range(blocks)])

    def forward(self, tensor: SparseTensor) -> SparseTensor:
        if self.down is not None and self.down_norm is not None:
            tensor = self.down(tensor)
            tensor = tensor.with_features(self.down_norm(tensor.features))
        for block in self.blocks:
            tensor = block(tensor)
        return tensor

    def plan(self, tensor: SparseTensor) -> SparseTensor:
        if self.down is not None:
            tensor = self.down.plan(tensor)
        for block in self.blocks:
            assert isinstance(block, ResidualBlock)
            tensor = block.first.plan(tensor)  # the second one's kernel map is the same
        return tensor


class ResidualBlock(nn.Module):
    """Two submanifold convolutions around which the input is carried (He et al., CVPR 2016)."""

    def __init__(self, channels: int, stage: str, backend: Backend) -> None:
        super().__init__()
        self.first = SubmanifoldConv3d(channels, channels, SUBMANIFOLD, stage, backend)
        self.first_norm = BatchNorm(channels, relu=True)
        self.second = SubmanifoldConv3d(channels, channels, SUBMANIFOLD, stage, backend)
        self.second_norm = BatchNorm(channels, relu=True)

    def forward(self, tensor: SparseTensor) -> SparseTensor:
        """Keep the voxels; [V, C] to [V, C]."""
        inner = self.first(tensor)
        inner = inner.with_features(self.first_norm(inner.features))
        inner = self.second(inner)
        return tensor.with_features(self.second_norm(inner.features, residual=tensor.features))
