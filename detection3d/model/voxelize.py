"""Points to voxels: each occupied voxel holds the mean of all its points, without caps on either number.

Dynamic voxelisation after Zhou et al., "End-to-End Multi-View Fusion for 3D Object Detection in LiDAR Point Clouds"
(CoRL 2019): no point and no voxel is dropped at random, as fixed-size buffers do.
"""

import torch
from torch import Tensor, nn

from detection3d.config import ModelConfig
from detection3d.model.sparse.kernel_map import unflatten_keys
from detection3d.model.sparse.tensor import SparseTensor, flat_keys
from detection3d.types.tensors import Points

FEATURES = 5
"""Of a point of a single sweep; with several, its age is one more."""


def point_scale(point_range: tuple[float, ...], features: int) -> Tensor:
    """Return what a point's features are multiplied with, so that x, y and z reach about 1; float32 [features]."""
    reach = max(abs(value) for value in (*point_range[:2], *point_range[3:5]))
    scale = torch.ones(features)
    scale[:2] = 1 / reach
    scale[2] = 1 / max(abs(point_range[2]), point_range[5], 1.0)
    return scale


class MeanVoxelizer(nn.Module):
    """Mean of the points in each voxel; intensity and elongation are squashed with tanh, x and y scaled to the range.

    Args:
        config: the range and the voxel size, metres in the vehicle frame.
        features: columns of a point: `FEATURES`, and one more where it carries its age in seconds.
    """

    low: Tensor
    size: Tensor
    feature_scale: Tensor

    def __init__(self, config: ModelConfig, features: int = FEATURES) -> None:
        super().__init__()
        depth, height, width = config.grid_size
        # one more plane in z, so that the strided stages keep the cells aligned (SECOND's layout)
        self.spatial_shape = (depth + 1, height, width)
        self.cells = (width, height, depth)
        self.register_buffer("low", torch.tensor(config.point_range[:3]), persistent=False)
        self.register_buffer("size", torch.tensor(config.voxel_size), persistent=False)
        self.features = features
        self.register_buffer("feature_scale", point_scale(config.point_range, features), persistent=False)

    @torch.no_grad()
    def forward(self, points: Points, batch_size: int) -> SparseTensor:
        """Average the points of each voxel.

        Args:
            points: N points, [N, features].
            batch_size: samples, B.

        Returns:
            Features [V, features] at voxels in ascending order; none for a batch without any point in range.
        """
        values = points.values
        cell = torch.floor((values[:, :3] - self.low) / self.size).to(torch.int64)
        limits = torch.tensor(self.cells, device=cell.device)
        inside = ((cell >= 0) & (cell < limits)).all(dim=1)
        kept = inside.nonzero().flatten()  # once: a mask would be counted for each of the three
        values, cell, batch = values[kept], cell[kept], points.batch_index[kept]
        indices = torch.stack([batch, cell[:, 2], cell[:, 1], cell[:, 0]], dim=1)
        if not len(values):
            return SparseTensor(values, indices.to(torch.int32), self.spatial_shape, batch_size)
        keys, order = flat_keys(indices, self.spatial_shape).sort(stable=True)
        unique, counts = torch.unique_consecutive(keys, return_counts=True)
        # Squashed are intensity and elongation, which have no bound; an age stays seconds.
        squashed = torch.cat([values[:, :3], torch.tanh(values[:, 3:FEATURES]), values[:, FEATURES:]], dim=1)
        squashed = squashed * self.feature_scale
        features = torch.segment_reduce(squashed[order], "mean", lengths=counts, unsafe=True)
        return SparseTensor(features, unflatten_keys(unique, self.spatial_shape), self.spatial_shape, batch_size)
