"""Features at the occupied cells of a voxel grid."""

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class SparseTensor:
    """Features of V occupied voxels.

    Attributes:
        features: [V, C].
        indices: int32 [V, 4], (batch, z, y, x); unique, in no promised order.
        spatial_shape: cells along (z, y, x).
        batch_size: samples; some may have no voxel.
        maps: kernel maps of this forward pass, shared by all tensors derived from the first; a backend's own affair.
    """

    features: Tensor
    indices: Tensor
    spatial_shape: tuple[int, int, int]
    batch_size: int
    maps: dict[tuple[Any, ...], Any] = field(default_factory=dict, repr=False)

    def with_features(self, features: Tensor) -> "SparseTensor":
        """Return the same voxels with other features, [V, C']."""
        return replace(self, features=features)

    def birds_eye(self, dtype: torch.dtype) -> Tensor:
        """Return [B, C * Z, H, W] of `dtype`, zero where no voxel is; channel c * Z + z holds feature c of plane z.

        On CUDA in the channels-last format, which the two-dimensional convolutions work in.
        """
        if not self.features.is_cuda:
            return self.dense().flatten(1, 2).to(dtype)
        depth, height, width = self.spatial_shape
        batch, z, y, x = self.indices.long().unbind(1)
        shape = (self.batch_size * height * width, self.features.shape[1], depth)
        flat = torch.zeros(shape, dtype=dtype, device=self.features.device)
        flat[(batch * height + y) * width + x, :, z] = self.features.to(dtype)
        return flat.view(self.batch_size, height, width, -1).permute(0, 3, 1, 2)

    def dense(self) -> Tensor:
        """Return [B, C, Z, Y, X], zero where no voxel is."""
        depth, height, width = self.spatial_shape
        cells = self.batch_size * depth * height * width
        flat = self.features.new_zeros((cells, self.features.shape[1]))
        flat = flat.index_copy(0, flat_keys(self.indices, self.spatial_shape), self.features)
        return flat.view(self.batch_size, depth, height, width, -1).permute(0, 4, 1, 2, 3)


def flat_keys(indices: Tensor, spatial_shape: tuple[int, int, int], margin: int = 0) -> Tensor:
    """Number the cells of a grid.

    Args:
        indices: integer [V, 4], (batch, z, y, x).
        spatial_shape: cells along (z, y, x).
        margin: empty cells added around the grid, so that a neighbour outside it has a number of its own.

    Returns:
        int64 [V], different for different cells. 64 bits, since large grids pass 2^31 at usual batch sizes.
    """
    batch, z, y, x = indices.to(torch.int64).unbind(1)
    depth, height, width = (size + 2 * margin for size in spatial_shape)
    return ((batch * depth + z + margin) * height + y + margin) * width + x + margin
