"""The detector: what the paper's figure shows, in order."""

import torch
from torch import Tensor, nn

from detection3d.config import Config, PillarBackboneConfig, VoxelBackboneConfig
from detection3d.model.backbone import SparseBackbone
from detection3d.model.heads import build_heads
from detection3d.model.neck import BevNeck
from detection3d.model.norm import BatchNorm
from detection3d.model.pillars import PillarBackbone, PillarPoints, PillarSorter
from detection3d.model.sparse import SparseTensor
from detection3d.model.voxelize import FEATURES, MeanVoxelizer
from detection3d.multitask import TaskFork
from detection3d.types.tensors import HeadOutputs, Points

Voxels = SparseTensor | PillarPoints
"""What a detector encodes points into."""


class Detector(nn.Module):
    """Points to the three heads' maps, with the fork where the heads part.

    Args:
        config: the run.
        fork: the virtual layer that hands each head its alias and combines the gradients on the way back.
        device: where it will run; move it there yourself.
    """

    def __init__(self, config: Config, fork: TaskFork, device: torch.device) -> None:
        super().__init__()
        model = config.model
        features = FEATURES + (config.data.sweeps > 1)
        match model.backbone:
            case VoxelBackboneConfig():
                self.voxelizer = MeanVoxelizer(model, features)
                self.backbone = SparseBackbone(model.backbone, model.grid_size, device, features)
            case PillarBackboneConfig():
                self.voxelizer = PillarSorter(model, features)
                self.backbone = PillarBackbone(model.backbone, self.voxelizer.features)
        self.neck = BevNeck(self.backbone.out_channels, model.neck)
        self.shared = nn.Conv2d(self.neck.out_channels, model.shared_channels, 3, padding=1, bias=False)
        self.shared_norm = BatchNorm(model.shared_channels)
        self.shared_activation = nn.ReLU() if model.fork_after_relu else nn.Identity()
        self.fork = fork
        self.heads = build_heads(config)
        if device.type == "cuda":  # tensor cores read the channels of a cell together
            for dense in (self.neck, self.shared, self.heads):
                dense.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue] of all modules

    def encode(self, points: Points, batch_size: int) -> Voxels:
        """Turn points into voxels with all kernel maps of the backbone: whatever of a pass no weight has a part in.

        Args:
            points: points of `batch_size` samples.
            batch_size: samples, B; some may have no point.
        """
        voxels = self.voxelizer(points, batch_size)
        if isinstance(self.backbone, SparseBackbone):
            self.backbone.plan(voxels)
        return voxels

    def forward(self, voxels: Voxels, sample_index: Tensor | None = None) -> HeadOutputs:
        """Detect.

        Args:
            voxels: of B samples, as `encode` makes them.
            sample_index: int64 [B], global index of each sample; the fork's draw may depend on it in training.

        Returns:
            Maps of [B, *, H, W], as large as the voxel grid divided by the model's stride.
        """
        bev = self.backbone(voxels)
        features = self.neck(bev)
        shared = self.shared_activation(self.shared_norm(self.shared(features)))
        aliases = self.fork(shared, sample_index)
        maps = {task: head(aliases[task]) for task, head in self.heads.items()}
        return HeadOutputs(maps, features=aliases)

    def detect(self, points: Points, batch_size: int) -> HeadOutputs:
        """Encode, and detect: [N, features] of B samples to maps of [B, *, H, W]."""
        return self(self.encode(points, batch_size))
