"""Sparse convolution by gathering, multiplying and adding back, in plain torch: any device, any dtype, no voxels too.

For each place of the kernel an output row occurs once at most and the places are added one after the other, so results
are the same bits in every run.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from detection3d.model.sparse.kernel_map import KernelMap, Triple, strided_map, submanifold_map
from detection3d.model.sparse.tensor import SparseTensor


class TorchBackend:
    """The oracle, and the path on the CPU.

    Attributes:
        dtype: in which features go from layer to layer; None: their own.
    """

    name = "torch"
    dtype = None

    def submanifold(self, tensor: SparseTensor, stage: str, kernel_size: Triple) -> KernelMap:
        """Plan a submanifold convolution, once for a stage."""
        key = (self.name, "submanifold", stage, kernel_size)
        known = tensor.maps.get(key)
        if known is None or known.input_indices is not tensor.indices:  # other voxels, or the same in another order
            tensor.maps[key] = submanifold_map(tensor.indices, tensor.spatial_shape, kernel_size)
        return tensor.maps[key]

    def strided(
        self, tensor: SparseTensor, stage: str, kernel_size: Triple, stride: Triple, padding: Triple
    ) -> KernelMap:
        """Plan a strided convolution, which leads into `stage`, once for its voxels."""
        key = (self.name, "strided", stage, kernel_size, stride)
        known = tensor.maps.get(key)
        if known is None or known.input_indices is not tensor.indices:
            tensor.maps[key] = strided_map(tensor.indices, tensor.spatial_shape, kernel_size, stride, padding)
        return tensor.maps[key]

    def inverse(self, tensor: SparseTensor, stage: str, kernel_size: Triple, stride: Triple) -> KernelMap:
        """Return the plan that undoes the strided convolution into `stage`."""
        return tensor.maps[(self.name, "strided", stage, kernel_size, stride)].inverted()

    def convolve(self, features: Tensor, weight: Tensor, plan: KernelMap) -> Tensor:
        """Apply a planned convolution: [V_in, C_in] and [C_out, kz, ky, kx, C_in] to [V_out, C_out]."""
        result = _GatherMultiplyAdd.apply(features, weight.to(features.dtype), plan)
        assert isinstance(result, Tensor)
        return result


class _GatherMultiplyAdd(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, weight: Tensor, plan: KernelMap) -> Tensor:
        ctx.save_for_backward(features, weight)
        ctx.plan = plan
        kernels = weight.flatten(1, 3).unbind(1)  # K times [C_out, C_in]
        result = features.new_zeros((len(plan.output_indices), weight.shape[0]))
        for place, kernel in enumerate(kernels):
            if place == plan.identity:
                result += features @ kernel.T
            elif len(plan.inputs[place]):
                result.index_add_(0, plan.outputs[place], features.index_select(0, plan.inputs[place]) @ kernel.T)
        return result

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride] the decorator loses the names
        ctx: Any, *gradients: Tensor
    ) -> tuple[Tensor | None, Tensor | None, None]:
        (gradient,) = gradients
        gradient = gradient.contiguous()
        features, weight = ctx.saved_tensors
        plan: KernelMap = ctx.plan
        kernels = weight.flatten(1, 3).unbind(1)
        to_features = torch.zeros_like(features) if ctx.needs_input_grad[0] else None
        to_kernels = torch.zeros_like(weight.flatten(1, 3)) if ctx.needs_input_grad[1] else None
        for place, kernel in enumerate(kernels):
            rows, targets = plan.inputs[place], plan.outputs[place]
            whole = place == plan.identity
            if not whole and not len(rows):
                continue
            arriving = gradient if whole else gradient.index_select(0, targets)
            if to_features is not None:
                if whole:
                    to_features += arriving @ kernel
                else:
                    to_features.index_add_(0, rows, arriving @ kernel)
            if to_kernels is not None:
                to_kernels[:, place] = arriving.T @ (features if whole else features.index_select(0, rows))
        return to_features, None if to_kernels is None else to_kernels.view_as(weight), None
