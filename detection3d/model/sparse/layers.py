"""The three sparse convolutions. Weights are [C_out, kz, ky, kx, C_in], spconv's layout, whatever the backend.

None has a bias: a BatchNorm follows each. Kernels of 1 x 1 x 1 are a `nn.Linear` on the features.
"""

import math

import torch
from torch import Tensor, nn

from detection3d.model.sparse.backends import Backend
from detection3d.model.sparse.kernel_map import Triple
from detection3d.model.sparse.tensor import SparseTensor


class SparseModule(nn.Module):
    """Base of the convolutions: the weight, and the backend that runs it.

    Args:
        in_channels: C_in.
        out_channels: C_out.
        kernel_size: along (z, y, x).
        stage: name shared by the layers that see the same voxels; they build one kernel map.
        backend: which implementation runs.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: Triple, stage: str, backend: Backend) -> None:
        super().__init__()
        self.kernel_size = kernel_size
        self.stage = stage
        self.backend = backend
        self.weight = nn.Parameter(torch.empty(out_channels, *kernel_size, in_channels))
        fan_in = math.prod(kernel_size) * in_channels
        # He initialisation for a ReLU after it; about a third of the places of a 3D kernel meet a voxel
        nn.init.normal_(self.weight, std=math.sqrt(2 / fan_in))

    def extra_repr(self) -> str:
        """Name the shape of the weight and the stage."""
        return f"{self.weight.shape[-1]} -> {self.weight.shape[0]}, kernel {self.kernel_size}, stage {self.stage!r}"

    def _convolve(self, features: Tensor, plan: object) -> Tensor:
        return self.backend.convolve(features, self.weight, plan)  # pyright: ignore[reportArgumentType]


class SubmanifoldConv3d(SparseModule):
    """Convolution that leaves the set of voxels as it is (Graham et al., CVPR 2018); stride 1, odd kernel."""

    def plan(self, tensor: SparseTensor) -> SparseTensor:
        """Build the kernel map, which depends on the voxels alone, and return the tensor as its output's places."""
        self.backend.submanifold(tensor, self.stage, self.kernel_size)
        return tensor

    def forward(self, tensor: SparseTensor) -> SparseTensor:
        """Convolve; [V, C_in] to [V, C_out] at the same voxels."""
        plan = self.backend.submanifold(tensor, self.stage, self.kernel_size)
        return tensor.with_features(self._convolve(tensor.features, plan))


class SparseConv3d(SparseModule):
    """Convolution whose output voxels are all that see an input voxel; with a stride it leads into the next stage.

    Args:
        in_channels: C_in.
        out_channels: C_out.
        kernel_size: along (z, y, x).
        stage: name of the stage that it leads into.
        backend: which implementation runs.
        stride: along (z, y, x).
        padding: likewise.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Triple,
        stage: str,
        backend: Backend,
        *,
        stride: Triple,
        padding: Triple,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stage, backend)
        self.stride = stride
        self.padding = padding

    def plan(self, tensor: SparseTensor) -> SparseTensor:
        """Build the kernel map, and return the voxels of the coarser grid, without features."""
        plan = self.backend.strided(tensor, self.stage, self.kernel_size, self.stride, self.padding)
        nothing = tensor.features.new_empty((len(plan.output_indices), 0))
        return SparseTensor(nothing, plan.output_indices, plan.output_shape, tensor.batch_size, tensor.maps)

    def forward(self, tensor: SparseTensor) -> SparseTensor:
        """Convolve; [V, C_in] to [V', C_out] on the coarser grid."""
        plan = self.backend.strided(tensor, self.stage, self.kernel_size, self.stride, self.padding)
        features = self._convolve(tensor.features, plan)
        return SparseTensor(features, plan.output_indices, plan.output_shape, tensor.batch_size, tensor.maps)


class InverseConv3d(SparseModule):
    """Transposed convolution back to the voxels that the strided convolution into `stage` came from."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Triple,
        stage: str,
        backend: Backend,
        *,
        stride: Triple,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stage, backend)
        self.stride = stride

    def forward(self, tensor: SparseTensor) -> SparseTensor:
        """Convolve; [V', C_in] to [V, C_out] on the finer grid."""
        plan = self.backend.inverse(tensor, self.stage, self.kernel_size, self.stride)
        features = self._convolve(tensor.features, plan)
        return SparseTensor(features, plan.output_indices, plan.output_shape, tensor.batch_size, tensor.maps)
