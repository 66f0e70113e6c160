"""Sparse 3D convolution: one tensor type, three layers, two interchangeable backends."""

from detection3d.model.sparse.backends import Backend, build_backend, spconv_runs
from detection3d.model.sparse.layers import InverseConv3d, SparseConv3d, SparseModule, SubmanifoldConv3d
from detection3d.model.sparse.spconv_backend import Precision, SpconvBackend
from detection3d.model.sparse.tensor import SparseTensor
from detection3d.model.sparse.torch_backend import TorchBackend

__all__ = [
    "Backend",
    "InverseConv3d",
    "Precision",
    "SparseConv3d",
    "SparseModule",
    "SparseTensor",
    "SpconvBackend",
    "SubmanifoldConv3d",
    "TorchBackend",
    "build_backend",
    "spconv_runs",
]
