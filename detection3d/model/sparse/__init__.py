"""Sparse 3D convolution: one tensor type, three layers, two interchangeable backends."""

from detection3d.model.sparse.layers import (
    InverseConv3d,
    SparseConv3d,
    SparseModule,
    SubmanifoldConv3d,
    available_backends,
    resolve_backend,
)
from detection3d.model.sparse.tensor import SparseTensor

__all__ = [
    "InverseConv3d",
    "SparseConv3d",
    "SparseModule",
    "SparseTensor",
    "SubmanifoldConv3d",
    "available_backends",
    "resolve_backend",
]
