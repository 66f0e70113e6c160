"""Which input voxel meets which output voxel at which place of the kernel: the torch backend's plan."""

from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from detection3d.model.sparse.tensor import flat_keys

Triple = tuple[int, int, int]


@dataclass(frozen=True)
class KernelMap:
    """Pairs of rows for each of the K places of a kernel, in the order of its weights (z, y, x).

    Attributes:
        inputs: K int64 tensors, rows of the input.
        outputs: K int64 tensors as long, rows of the output; within one place every output occurs once at most.
        input_indices: int32 [V_in, 4].
        output_indices: int32 [V_out, 4].
        input_shape: grid of the input, cells along (z, y, x).
        output_shape: grid of the output.
        identity: place of the kernel where input row and output row are the same, if there is one.
    """

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    input_indices: Tensor
    output_indices: Tensor
    input_shape: Triple
    output_shape: Triple
    identity: int | None = None

    def inverted(self) -> "KernelMap":
        """Return the map of the inverse convolution: the same pairs, seen from the other side."""
        return KernelMap(
            inputs=self.outputs,
            outputs=self.inputs,
            input_indices=self.output_indices,
            output_indices=self.input_indices,
            input_shape=self.output_shape,
            output_shape=self.input_shape,
            identity=self.identity,
        )


def submanifold_map(indices: Tensor, spatial_shape: Triple, kernel_size: Triple) -> KernelMap:
    """Plan a convolution whose output voxels are its input voxels.

    Args:
        indices: int32 [V, 4], unique.
        spatial_shape: cells along (z, y, x).
        kernel_size: odd sizes along (z, y, x); the output voxel is in the kernel's middle.
    """
    reach_z, reach_y, reach_x = (size // 2 for size in kernel_size)
    margin = max(kernel_size) // 2
    keys = flat_keys(indices, spatial_shape, margin)
    ordered, rows = keys.sort()
    _, height, width = (size + 2 * margin for size in spatial_shape)
    places = kernel_size[0] * kernel_size[1] * kernel_size[2]
    everything = torch.arange(len(indices), device=indices.device)
    inputs: list[Tensor] = [everything] * places
    outputs: list[Tensor] = [everything] * places
    lines = list(product(range(-reach_z, reach_z + 1), range(-reach_y, reach_y + 1)))
    for line, (dz, dy) in enumerate(lines[: len(lines) // 2 + 1]):
        # The neighbours along x have consecutive keys: one search finds the first, and each hit moves on by one.
        wanted = ordered + (dz * height + dy) * width - reach_x
        position = torch.searchsorted(ordered, wanted)
        for step in range(kernel_size[2] if (dz, dy) != (0, 0) else reach_x):
            hit = ordered[position.clamp(max=max(len(ordered) - 1, 0))] == wanted
            found = hit.nonzero().squeeze(1)
            place = line * kernel_size[2] + step
            inputs[place], outputs[place] = rows[position[found]], rows[found]
            mirrored = places - 1 - place  # the neighbour sees this voxel at the opposite place
            inputs[mirrored], outputs[mirrored] = outputs[place], inputs[place]
            wanted, position = wanted + 1, position + hit
    shape = spatial_shape
    return KernelMap(tuple(inputs), tuple(outputs), indices, indices, shape, shape, identity=places // 2)


def strided_map(
    indices: Tensor, spatial_shape: Triple, kernel_size: Triple, stride: Triple, padding: Triple
) -> KernelMap:
    """Plan a convolution whose output voxels are all those that see an input voxel.

    Args:
        indices: int32 [V, 4], unique.
        spatial_shape: cells along (z, y, x).
        kernel_size: sizes along (z, y, x).
        stride: likewise.
        padding: empty cells before and after the grid, likewise.
    """
    output_shape = convolved_shape(spatial_shape, kernel_size, stride, padding)
    depth, height, width = output_shape
    batch, *cells = indices.to(torch.int64).unbind(1)
    z, y, x = (
        [_reached(cell + pad - offset, step, limit) for offset in range(size)]
        for cell, size, step, pad, limit in zip(cells, kernel_size, stride, padding, output_shape, strict=True)
    )
    inputs, keys = [], []
    for (plane, in_z), (row, in_y), (column, in_x) in product(z, y, x):
        source = (in_z & in_y & in_x).nonzero().squeeze(1)
        inputs.append(source)
        keys.append(((batch[source] * depth + plane[source]) * height + row[source]) * width + column[source])
    unique, outputs = torch.unique(torch.cat(keys), return_inverse=True)
    sizes = [len(source) for source in inputs]
    output_indices = unflatten_keys(unique, output_shape)
    return KernelMap(tuple(inputs), outputs.split(sizes), indices, output_indices, spatial_shape, output_shape)


def _reached(shifted: Tensor, step: int, limit: int) -> tuple[Tensor, Tensor]:
    """Return the output coordinate along one axis, and whether there is one: int64 [V] and bool [V]."""
    target = torch.div(shifted, step, rounding_mode="floor")
    return target, (target * step == shifted) & (target >= 0) & (target < limit)


def convolved_shape(shape: Triple, kernel_size: Triple, stride: Triple, padding: Triple) -> Triple:
    """Return the grid that a strided convolution of `shape` has."""
    z, y, x = (
        (size + 2 * pad - kernel) // step + 1
        for size, kernel, step, pad in zip(shape, kernel_size, stride, padding, strict=True)
    )
    return z, y, x


def unflatten_keys(keys: Tensor, spatial_shape: Triple) -> Tensor:
    """Undo `flat_keys` without margin: int64 [V] to int32 [V, 4]."""
    _, height, width = spatial_shape
    row = torch.div(keys, width, rounding_mode="floor")
    plane = torch.div(row, height, rounding_mode="floor")
    batch = torch.div(plane, spatial_shape[0], rounding_mode="floor")
    z, y, x = plane - batch * spatial_shape[0], row - plane * height, keys - row * width
    return torch.stack([batch, z, y, x], dim=1).to(torch.int32)
