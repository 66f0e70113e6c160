"""Many small tensors in one, so that what happens to all of them is a kernel or two and not a launch for each."""

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

ALIGNMENT = 512  # bytes, as torch's allocator aligns: kernels read several numbers at once


def pack(tensors: Sequence[Tensor]) -> Tensor:
    """Move tensors into one, of which they are parts from now on, and return it; each keeps its shape and strides.

    Args:
        tensors: at least one, of one dtype and device, without gaps or overlaps.
    """
    flat, parts = room_for(tensors)
    for tensor, part in zip(tensors, parts, strict=True):
        part.copy_(tensor.detach())
        tensor.data = part
    return flat


def room_for(tensors: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Return zeros with room for tensors like these, and its parts of their shapes and strides; see `pack`."""
    first = tensors[0]
    unit = ALIGNMENT // first.element_size()
    sizes = [-(-tensor.numel() // unit) * unit for tensor in tensors]
    flat = torch.zeros(sum(sizes), dtype=first.dtype, device=first.device)
    starts = itertools.accumulate(sizes[:-1], initial=0)
    parts = [
        flat[start : start + tensor.numel()].as_strided(tensor.shape, tensor.stride())
        for start, tensor in zip(starts, tensors, strict=True)
    ]
    return flat, parts
