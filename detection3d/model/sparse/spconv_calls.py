"""spconv's two kernels without what its own Python repeats for each of them: a step calls them forty times.

Of the host's time in a call, most goes into wrapping ten tensors, asking for the device's architecture and setting up
an allocator. Here a plan's tensors are wrapped once, for all layers and both passes, and the rest is kept short.
"""
# pyright: reportMissingImports=false
# spconv and cumm have no wheels for every machine.

from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from cumm import tensorview
from spconv.constants import AllocKeys
from spconv.core_cc.csrc.sparse.alloc import ExternalAllocator
from spconv.core_cc.csrc.sparse.convops.spops import ConvGemmOps
from spconv.pytorch.cppcore import get_arch, torch_tensor_to_tv
from torch import Tensor

if TYPE_CHECKING:
    from detection3d.model.sparse.spconv_backend import SpconvPlan

_TO_TENSORVIEW = {
    torch.float32: tensorview.float32,
    torch.float16: tensorview.float16,
    torch.int32: tensorview.int32,
}
_TO_TORCH = {
    tensorview.float32: torch.float32,
    tensorview.float16: torch.float16,
    tensorview.int32: torch.int32,
    tensorview.uint32: torch.int32,  # masks, of which only the bits count
    tensorview.uint8: torch.uint8,
}
_DEVICE = 0  # tensorview's word for "on CUDA"; the current device says which GPU


class PlanTables:
    """A plan's tensors as spconv's kernels take them; the plan must be kept as long.

    Args:
        plan: of one convolution.
    """

    def __init__(self, plan: "SpconvPlan") -> None:
        self.pair_fwd, self.pair_bwd = torch_tensor_to_tv(plan.pair_fwd), torch_tensor_to_tv(plan.pair_bwd)
        self.mask_fwd, self.mask_bwd, self.argsort_fwd, self.argsort_bwd = (
            [torch_tensor_to_tv(tensor) for tensor in splits]
            for splits in (
                plan.pair_mask_fwd_splits,
                plan.pair_mask_bwd_splits,
                plan.mask_argsort_fwd_splits,
                plan.mask_argsort_bwd_splits,
            )
        )
        self.masks = tensorview.from_numpy(np.concatenate(plan.masks)).clone()


class _Room(ExternalAllocator):
    """Gives spconv torch's memory, and keeps it until the call is over."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self._device = device
        self.named: dict[str, Tensor] = {}
        self._unnamed: list[Tensor] = []

    def empty(
        self, name: str, shape: list[int], dtype: int, device: int, stream: int = 0, temporary: bool = False,
        scale: float = 1.0,
    ) -> Any:  # fmt: skip
        """Return room of a shape; spconv calls it so."""
        return self._keep(name, torch.empty(shape, dtype=_TO_TORCH[dtype], device=self._device), shape, dtype)

    def zeros(
        self, name: str, shape: list[int], dtype: int, device: int, stream: int = 0, temporary: bool = False,
        scale: float = 1.0,
    ) -> Any:  # fmt: skip
        """Return zeros of a shape; spconv calls it so."""
        return self._keep(name, torch.zeros(shape, dtype=_TO_TORCH[dtype], device=self._device), shape, dtype)

    def free(self, values: Any) -> None:
        """Leave room without a name until the call is over, which it nearly is; spconv calls it so."""

    free_noexcept = free

    def _keep(self, name: str, values: Tensor, shape: list[int], dtype: int) -> Any:
        if name:
            self.named[name] = values
        else:
            self._unnamed.append(values)
        return tensorview.from_blob(values.data_ptr(), shape, dtype, _DEVICE)


def forward(
    features: Tensor, weight: Tensor, plan: "SpconvPlan", tuner: Any, *, tf32: bool
) -> tuple[Tensor, Tensor, int]:
    """Convolve on the current device; return what comes out, and two things that `backward` wants.

    Args:
        features: [V_in, C_in], contiguous.
        weight: [C_out, kz, ky, kx, C_in] of the same type, contiguous.
        plan: of the convolution.
        tuner: which of spconv's kernels there are, and which it chose.
        tf32: whether it may choose those.
    """
    tables, room = plan.tables, _Room(features.device)
    width, _ = ConvGemmOps.implicit_gemm(
        room, tuner, _wrapped(features), _wrapped(weight), tables.pair_fwd, tables.mask_fwd, tables.argsort_fwd,
        len(plan.output_indices), tables.masks, _architecture(features.device), True, plan.submanifold,
        _stream(features.device), use_tf32=tf32,
    )  # fmt: skip
    return room.named[AllocKeys.OutFeatures], room.named[AllocKeys.MaskOutputFwd], width


def backward(
    features: Tensor,
    weight: Tensor,
    gradient: Tensor,
    plan: "SpconvPlan",
    output_mask: Tensor,
    width: int,
    tuner: Any,
    *,
    tf32: bool,
) -> tuple[Tensor, Tensor]:
    """Return the gradients of features and weight.

    Args:
        features: as `forward` had them.
        weight: the same.
        gradient: [V_out, C_out] of the same type, contiguous.
        plan: of the convolution.
        output_mask: from `forward`.
        width: from `forward`.
        tuner: as for `forward`.
        tf32: the same.
    """
    tables, room = plan.tables, _Room(features.device)
    ConvGemmOps.implicit_gemm_backward(
        room, tuner, _wrapped(features), _wrapped(weight), _wrapped(gradient), tables.pair_fwd, tables.pair_bwd,
        tables.mask_fwd, tables.mask_bwd, tables.argsort_fwd, tables.argsort_bwd, _wrapped(output_mask), tables.masks,
        _architecture(features.device), width, plan.submanifold, _stream(features.device), use_tf32=tf32,
    )  # fmt: skip
    return room.named[AllocKeys.DIn], room.named[AllocKeys.DFilters]


def _wrapped(values: Tensor) -> Any:
    return tensorview.from_blob(values.data_ptr(), list(values.shape), _TO_TENSORVIEW[values.dtype], _DEVICE)


def _stream(device: torch.device) -> int:
    return torch.cuda.current_stream(device).cuda_stream


@cache
def _architecture(device: torch.device) -> tuple[int, int]:
    with torch.cuda.device(device):
        return get_arch()  # warns where spconv was not built for it
