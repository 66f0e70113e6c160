"""Sparse convolution through spconv's implicit GEMM kernels: the path on CUDA.

This is the only module that imports spconv, with `spconv_calls`, on first use. What it does about spconv 2.3.8's traps:

- On the CPU, with two or more threads, its results are silently wrong: other devices than CUDA are refused.
- Under autocast its autograd function computes in float16 whatever was asked: its kernels are called directly, and the
  precision given here decides.
- Its float16 kernels may add up in float16, and the argument that forbids it is ignored: those kernels are taken out.
- Its TF32 kernels cut the mantissa off instead of rounding it, which biases every product: operands are rounded first.
- Whether TF32 is allowed is one switch for the process, read at every call, also when gradients are computed: each call
  of ours says it. The kernels that it tuned stay, under the numbers of channels alone, so these must decide.
- It refuses to convolve no voxels at all: they pass it by.
- It waits for the device with Python's lock held, so that no other thread goes on: that is avoided, or kept short.
- It launches on the thread's current device, wherever its tensors are: that is set around every call.
"""

import warnings
from dataclasses import dataclass
from functools import cache, cached_property
from threading import Lock
from types import SimpleNamespace
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from detection3d.errors import UserError
from detection3d.model.sparse.kernel_map import Triple, convolved_shape
from detection3d.model.sparse.tensor import SparseTensor
from detection3d.model.sparse.tf32 import round_gradient, runs_in_tf32, tf32_operands

Precision = Literal["float32", "tf32", "float16"]
MAX_KERNEL_PLACES = 32  # of spconv's implicit GEMM
MAX_ELEMENTS = 2**31  # spconv numbers the elements of a tensor with 32 bits and overflows without a word


@dataclass(frozen=True)
class SpconvPlan:
    """spconv's pair tables of one convolution; names as in `spconv.pytorch.ops`."""

    output_indices: Tensor
    output_shape: Triple
    input_indices: Tensor
    input_shape: Triple
    pair_fwd: Tensor
    pair_bwd: Tensor
    pair_mask_fwd_splits: list[Tensor]
    pair_mask_bwd_splits: list[Tensor]
    mask_argsort_fwd_splits: list[Tensor]
    mask_argsort_bwd_splits: list[Tensor]
    masks: list[Any]
    submanifold: bool

    @cached_property
    def tables(self) -> Any:
        """These tensors as spconv's kernels take them."""
        return _library().calls.PlanTables(self)

    def inverted(self) -> "SpconvPlan":
        """Return the plan of the inverse convolution."""
        return SpconvPlan(
            output_indices=self.input_indices,
            output_shape=self.input_shape,
            input_indices=self.output_indices,
            input_shape=self.output_shape,
            pair_fwd=self.pair_bwd,
            pair_bwd=self.pair_fwd,
            pair_mask_fwd_splits=self.pair_mask_bwd_splits,
            pair_mask_bwd_splits=self.pair_mask_fwd_splits,
            mask_argsort_fwd_splits=self.mask_argsort_bwd_splits,
            mask_argsort_bwd_splits=self.mask_argsort_fwd_splits,
            masks=self.masks,
            submanifold=False,
        )


class SpconvBackend:
    """Layers planned and run by spconv.

    Args:
        precision: what the products are computed in; with "tf32" thin layers keep float32 (`runs_in_tf32`). Weights are
            float32 all the same, and so are the sums.

    Attributes:
        dtype: in which features go from layer to layer.
    """

    name = "spconv"

    def __init__(self, precision: Precision = "float32") -> None:
        self.precision: Precision = precision
        self.dtype = torch.float16 if precision == "float16" else torch.float32

    def submanifold(self, tensor: SparseTensor, stage: str, kernel_size: Triple) -> SpconvPlan:
        """Plan a submanifold convolution, once for a stage."""
        key = (self.name, "submanifold", stage, kernel_size)
        known = tensor.maps.get(key)
        if known is None or known.input_indices is not tensor.indices:  # other voxels, or the same in another order
            padding = tuple(size // 2 for size in kernel_size)
            tensor.maps[key] = self._plan(tensor, kernel_size, (1, 1, 1), padding, tensor.spatial_shape, True)
        return tensor.maps[key]

    def strided(
        self, tensor: SparseTensor, stage: str, kernel_size: Triple, stride: Triple, padding: Triple
    ) -> SpconvPlan:
        """Plan a strided convolution, which leads into `stage`, once for its voxels."""
        key = (self.name, "strided", stage, kernel_size, stride)
        known = tensor.maps.get(key)
        if known is None or known.input_indices is not tensor.indices:
            output_shape = convolved_shape(tensor.spatial_shape, kernel_size, stride, padding)
            tensor.maps[key] = self._plan(tensor, kernel_size, stride, padding, output_shape, False)
        return tensor.maps[key]

    def inverse(self, tensor: SparseTensor, stage: str, kernel_size: Triple, stride: Triple) -> SpconvPlan:
        """Return the plan that undoes the strided convolution into `stage`."""
        return tensor.maps[(self.name, "strided", stage, kernel_size, stride)].inverted()

    def convolve(self, features: Tensor, weight: Tensor, plan: SpconvPlan) -> Tensor:
        """Apply a planned convolution: [V_in, C_in] and [C_out, kz, ky, kx, C_in] to [V_out, C_out]."""
        if features.dtype not in (torch.float32, self.dtype):
            raise UserError(f"the spconv backend takes float32 features, found {features.dtype}; use the torch backend")
        if not len(features):
            return features @ weight.flatten(1, 3).sum(1).T.to(
                features.dtype
            )  # no rows, but the weight gets its gradient of zeros
        if self.precision == "float16":
            return _convolve(features.half(), weight.half(), plan, tf32=False).to(features.dtype)
        _claim_process(self.precision)
        if self.precision == "tf32" and runs_in_tf32(weight):
            return round_gradient(_convolve(*tf32_operands(features, weight), plan, tf32=True))
        return _convolve(features, weight, plan, tf32=False)

    def _plan(
        self,
        tensor: SparseTensor,
        kernel_size: Triple,
        stride: Triple,
        padding: tuple[int, ...],
        output_shape: Triple,
        submanifold: bool,
    ) -> SpconvPlan:
        if not len(tensor.indices):
            return _empty_plan(tensor, output_shape, submanifold)
        library = _library()
        if not tensor.indices.is_cuda:
            raise UserError("the spconv backend needs a CUDA device: its CPU path gives wrong results; use torch")
        places = kernel_size[0] * kernel_size[1] * kernel_size[2]
        assert places <= MAX_KERNEL_PLACES, "no layer of ours has a larger kernel"
        if len(tensor.indices) * places >= MAX_ELEMENTS:
            raise UserError(
                f"{len(tensor.indices)} voxels are too many for spconv at once; use a smaller batch or larger voxels"
            )
        with torch.cuda.device_of(tensor.indices):
            if not submanifold:
                # It waits for the number of voxels with Python's lock held; here other threads go on meanwhile.
                torch.cuda.current_stream().synchronize()
            found = library.ops.get_indice_pairs_implicit_gemm(
                tensor.indices.contiguous(),
                tensor.batch_size,
                list(tensor.spatial_shape),
                library.algorithm,
                ksize=list(kernel_size),
                stride=list(stride),
                padding=list(padding),
                dilation=[1, 1, 1],
                out_padding=[0, 0, 0],
                subm=submanifold,
                transpose=False,
                is_train=True,
                do_sort=False,
            )
            mask_fwd, argsort_fwd = _sorted(found[4])
            mask_bwd, argsort_bwd = _sorted(found[5])
        return SpconvPlan(
            output_indices=found[0],
            output_shape=output_shape,
            input_indices=tensor.indices,
            input_shape=tensor.spatial_shape,
            pair_fwd=found[2],
            pair_bwd=found[3],
            pair_mask_fwd_splits=mask_fwd,
            pair_mask_bwd_splits=mask_bwd,
            mask_argsort_fwd_splits=argsort_fwd,
            mask_argsort_bwd_splits=argsort_bwd,
            masks=found[8],
            submanifold=submanifold,
        )


def _sorted(masks: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Bring voxels with the same neighbours together, as the kernels want them; return masks and places in that order.

    spconv's own sort waits for the device with Python's lock held, so all threads wait.

    Args:
        masks: int32 [V, 1], of which neighbours each voxel has.
    """
    pairs = [mask.flatten().sort(stable=True) for mask in masks]
    return [values.view(-1, 1) for values, _ in pairs], [order.int() for _, order in pairs]


def _empty_plan(tensor: SparseTensor, output_shape: Triple, submanifold: bool) -> SpconvPlan:
    """Return the plan of a convolution of no voxels, which leads to none."""
    none = tensor.indices.new_zeros(0)
    return SpconvPlan(
        output_indices=tensor.indices,
        output_shape=output_shape,
        input_indices=tensor.indices,
        input_shape=tensor.spatial_shape,
        pair_fwd=none,
        pair_bwd=none,
        pair_mask_fwd_splits=[],
        pair_mask_bwd_splits=[],
        mask_argsort_fwd_splits=[],
        mask_argsort_bwd_splits=[],
        masks=[],
        submanifold=submanifold,
    )


def _convolve(features: Tensor, weight: Tensor, plan: SpconvPlan, *, tf32: bool) -> Tensor:
    result = _ImplicitGemm.apply(features.contiguous(), weight.contiguous(), plan, tf32)
    assert isinstance(result, Tensor)
    return result


class _ImplicitGemm(torch.autograd.Function):
    """spconv's masked implicit GEMM, whose backward pass may use the same kernels as its forward pass."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, weight: Tensor, plan: SpconvPlan, tf32: bool) -> Tensor:
        library = _library()
        with torch.cuda.device_of(features), _one_at_a_time:
            result, ctx.output_mask, ctx.mask_width = library.calls.forward(
                features, weight, plan, library.tuner, tf32=tf32
            )
        ctx.save_for_backward(features, weight)
        ctx.plan, ctx.tf32 = plan, tf32
        return result

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride] the decorator loses the names
        ctx: Any, *gradients: Tensor
    ) -> tuple[Tensor, Tensor, None, None]:
        features, weight = ctx.saved_tensors
        plan: SpconvPlan = ctx.plan
        library = _library()
        with torch.cuda.device_of(features), _one_at_a_time:
            to_features, to_weight = library.calls.backward(
                features,
                weight,
                gradients[0].contiguous(),
                plan,
                ctx.output_mask,
                ctx.mask_width,
                library.tuner,
                tf32=ctx.tf32,
            )
        return to_features, to_weight, None, None


def _claim_process(precision: Precision) -> None:
    """Note that this process runs spconv in float32 or with TF32.

    Raises:
        UserError: the process has computed with the other choice. spconv keeps the kernels that it tuned for a shape,
            so a change would have no effect, or only on some layers.
    """
    if not _claimed:
        _claimed.append(precision)
    if _claimed[0] != precision:
        now = "on" if _claimed[0] == "tf32" else "off"
        raise UserError(f"this process runs spconv with TF32 {now}; use another process for the other precision")


_one_at_a_time = Lock()  # spconv's choice of kernels is one for the process
_claimed: list[Precision] = []


@cache
def _library() -> SimpleNamespace:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of its build tools; nothing that a user could mend
            import spconv.pytorch.ops  # pyright: ignore[reportMissingImports]
            from cumm import tensorview  # pyright: ignore[reportMissingImports]
            from spconv import algocore  # pyright: ignore[reportMissingImports]
            from spconv.algo import ConvTunerSimple  # pyright: ignore[reportMissingImports]
            from spconv.core import ALL_IMPGEMM_PARAMS, ConvAlgo  # pyright: ignore[reportMissingImports]

            from detection3d.model.sparse import spconv_calls
    except ImportError as error:
        raise UserError(
            "the spconv backend needs the packages spconv-cu126 and cumm-cu126: pip install 'detection3d[gpu]',"
            f" or set model.backbone.backend=torch ({error})"
        ) from error
    kernels = [algocore.get_conv_algo_desp_from_param(parameters) for parameters in ALL_IMPGEMM_PARAMS]
    spconv.pytorch.ops.CONV_CPP = ConvTunerSimple([item for item in kernels if item.dacc != tensorview.float16])
    return SimpleNamespace(
        calls=spconv_calls,
        ops=spconv.pytorch.ops,
        tuner=spconv.pytorch.ops.CONV_CPP,
        algorithm=ConvAlgo.MaskImplicitGemm,
    )
