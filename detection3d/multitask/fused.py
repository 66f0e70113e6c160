"""Whether operations at the fork run as fused kernels: on CUDA, where Triton is installed and works."""

import warnings
from functools import cache
from importlib.util import find_spec
from types import ModuleType

import torch
from torch import Tensor

MOST_TASKS = 64
"""Gradients up to which the solvers' kernels keep their matrix in registers."""


def solvers_for(gram: Tensor) -> ModuleType | None:
    """Return `kernels_for` the products [K, K] of K gradients; None where there are too many of them."""
    return kernels_for(gram) if len(gram) <= MOST_TASKS else None


def kernels_for(tensor: Tensor) -> ModuleType | None:
    """Return `triton_kernels` where they can take this tensor, else None: then the same is done by torch operations."""
    return _kernels() if tensor.is_cuda and not torch.compiler.is_compiling() else None


@cache
def _kernels() -> ModuleType | None:
    if find_spec("triton") is None:
        return None
    try:
        from detection3d.multitask import triton_kernels

        step = torch.zeros((), dtype=torch.int64, device="cuda")
        triton_kernels.draw((2,), (0, 0), step, None, None)  # compiles: Triton needs a C compiler, which may be missing
    except Exception as error:  # whatever Triton's compiler meets on this machine, the torch operations do without it
        warnings.warn(
            f"Triton does not work here ({type(error).__name__}: {error}), so the fork runs on torch operations, which"
            " are slower; a C compiler such as gcc is what it usually lacks",
            stacklevel=2,
        )
        return None
    return triton_kernels
