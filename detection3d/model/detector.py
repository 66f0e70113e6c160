"""The detector: what the paper's figure shows, in order."""

import torch
from torch import Tensor, nn

from detection3d.config import Config, PillarBackboneConfig, VoxelBackboneConfig
from detection3d.model.backbone import SparseBackbone
from detection3d.model.heads import build_heads
from detection3d.model.neck import BevNeck
from detection3d.model.norm import BatchNorm
from detection3d.model.pillars import PillarBackbone, PillarSorter
from detection3d.model.voxelize import FEATURES, MeanVoxelizer
from detection3d.multitask import TaskFork
from detection3d.types.tensors import HeadOutputs, Points


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

    def forward(self, points: Points, batch_size: int, sample_index: Tensor | None = None) -> HeadOutputs:
        """Detect.

        Args:
            points: points of `batch_size` samples.
            batch_size: samples, B; some may have no point.
            sample_index: int64 [B], global index of each sample; the fork's draw may depend on it in training.

        Returns:
            Maps of [B, *, H, W], as large as the voxel grid divided by the model's stride.
        """
        voxels = self.voxelizer(points, batch_size)
        bev = self.backbone(voxels)
        features = self.neck(bev)
        shared = self.shared_activation(self.shared_norm(self.shared(features)))
        aliases = self.fork(shared, sample_index)
        maps = {task: head(aliases[task]) for task, head in self.heads.items()}
        return HeadOutputs(maps, features=aliases)
