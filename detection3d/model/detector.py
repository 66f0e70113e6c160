"""The detector: what the paper's figure shows, in order."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from detection3d.config import Config, PillarBackboneConfig, VoxelBackboneConfig
from detection3d.model.backbone import SparseBackbone
from detection3d.model.graphs import GraphedPass
from detection3d.model.heads import TASKS, build_heads
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
        self.shared_norm = BatchNorm(model.shared_channels, relu=model.fork_after_relu)
        self.fork = fork
        self.heads = build_heads(config)
        # Not registered, since their weights have their names already.
        self._passes = _Passes(_Trunk(self.neck, self.shared, self.shared_norm), _Heads(self.heads))
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
        shared = self._passes.trunk(bev)
        aliases = self.fork(shared, sample_index)
        maps: dict[str, Tensor] = dict(zip(TASKS, self._passes.heads(*(aliases[task] for task in TASKS)), strict=True))
        return HeadOutputs(maps, features=aliases)

    def record_graphs(self, *, heads: bool) -> None:
        """From the next training pass on, replay the dense part as CUDA graphs; see `GraphedPass`.

        Args:
            heads: the heads', too, of which the method at the fork must want no second derivative.
        """
        self._passes = _Passes(
            GraphedPass(self._passes.trunk), GraphedPass(self._passes.heads) if heads else self._passes.heads
        )

    @property
    def records_graphs(self) -> bool:
        """Whether the dense part is, or will be, replayed as CUDA graphs."""
        return isinstance(self._passes.trunk, GraphedPass)

    def detect(self, points: Points, batch_size: int) -> HeadOutputs:
        """Encode, and detect: [N, features] of B samples to maps of [B, *, H, W]."""
        return self(self.encode(points, batch_size))


@dataclass(frozen=True)
class _Passes:
    """How the dense part is run: from the bird's-eye view to the shared feature, and from its aliases to the maps."""

    trunk: nn.Module
    heads: nn.Module


class _Trunk(nn.Module):
    def __init__(self, neck: BevNeck, shared: nn.Conv2d, norm: BatchNorm) -> None:
        super().__init__()
        self.neck, self.shared, self.norm = neck, shared, norm

    def forward(self, bev: Tensor) -> Tensor:
        return self.norm(self.shared(self.neck(bev)))


class _Heads(nn.Module):
    def __init__(self, heads: nn.ModuleDict) -> None:
        super().__init__()
        self.heads = heads

    def forward(self, *aliases: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.heads[task](alias) for task, alias in zip(TASKS, aliases, strict=True))
