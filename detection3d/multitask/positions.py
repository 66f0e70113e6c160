"""What counts as one position of the shared activation, and the gradient that arrives there."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from detection3d.multitask.draw import uniform_at, uniform_from_words
from detection3d.multitask.ranks import Ranks

Marginalize = Literal["batch", "batch+space", "none", "coordinates"]
"""What is summed before signs are compared: the batch, all but the channels, nothing, or equal coordinates (sparse)."""


@dataclass(frozen=True)
class Cells:
    """Where the rows of a sparse feature map [V, C] lie in their grid.

    Attributes:
        index: int64 [V], flat index of each row's cell, the same for the same place in different samples.
        count: cells in the grid of one sample.
    """

    index: Tensor
    count: int

    @classmethod
    def of(cls, indices: Tensor, spatial_shape: Sequence[int]) -> "Cells":
        """Return the cells of voxels.

        Args:
            indices: int [V, 1 + dims]: the sample, then the place in the grid, such as (batch, z, y, x).
            spatial_shape: the grid's size in each of the dims, such as (z, y, x).

        Raises:
            ValueError: the columns are not one for the sample and one for each of the grid's dims.
        """
        if indices.ndim != 2 or indices.shape[1] != 1 + len(spatial_shape):
            raise ValueError(
                f"indices have shape {tuple(indices.shape)}; a grid of {len(spatial_shape)} dims needs"
                f" [V, {1 + len(spatial_shape)}], the sample first"
            )
        index = torch.zeros_like(indices[:, 0], dtype=torch.int64)
        for size, place in zip(spatial_shape, indices[:, 1:].long().unbind(1), strict=True):
            index = index * size + place
        return cls(index, math.prod(spatial_shape))


class Positions(ABC):
    """The positions at which signs are compared."""

    @abstractmethod
    def sum(self, gradients: Tensor, activation: Tensor, ranks: Ranks) -> Tensor:
        """Sum each task's gradient over what shares a position (G_i of batch-separated GradDrop, arXiv 2010.06808).

        G_i = sum of sgn(A) g_i: the gradient of a weight of 1 multiplied onto the activation, with the sign in place of
        the activation's value.

        Args:
            gradients: [K, ...], float32 or float64.
            activation: A, shaped like one gradient.
            ranks: whose samples are summed too.

        Returns:
            G, [K, ...], one number for each task and position.

        Raises:
            ValueError: the activation has no such dims.
        """

    @abstractmethod
    def spread(self, values: Tensor) -> Tensor:
        """Bring [K, ...], one value for each position, to a shape that broadcasts onto the gradients."""

    @abstractmethod
    def uniform(
        self, activation: Tensor, words: tuple[int, int], step: Tensor, sample_index: Tensor | None, ranks: Ranks
    ) -> Tensor:
        """Draw a number in [0, 1) for each position: float32, shaped like one G_i.

        Args:
            activation: for its shape and device.
            words: of the stream (`draw.stream_words`).
            step: int64 scalar on the activation's device.
            sample_index: int64 [B], global index of each sample, used where samples are drawn apart.
            ranks: how many there are: without `sample_index` samples are counted on one rank only.
        """


@dataclass(frozen=True)
class DensePositions(Positions):
    """Positions of a dense activation [B, ...]: "batch" sums over the samples, "batch+space" over all but the channels.

    With "none" nothing is summed and G_i = g_i, whatever A.

    Attributes:
        marginalize: "batch", "batch+space" or "none".
        channel_dim: the dim that "batch+space" keeps.
    """

    marginalize: Marginalize = "batch"
    channel_dim: int = 1

    def shape(self, activation_shape: Sequence[int]) -> tuple[int, ...]:
        """Return the shape of one G_i: the activation's, marginalized dims as size 1."""
        summed = self._summed_dims(len(activation_shape))
        return tuple(1 if dim in summed else size for dim, size in enumerate(activation_shape))

    def sum(self, gradients: Tensor, activation: Tensor, ranks: Ranks) -> Tensor:
        """Sum over the marginalized dims, kept as size 1, and over the ranks."""
        summed = self._summed_dims(activation.ndim)
        if not summed:
            return gradients
        products = gradients * activation.sign().to(gradients.dtype)
        return ranks.sum(products.sum([dim + 1 for dim in summed], keepdim=True))

    def spread(self, values: Tensor) -> Tensor:
        """Return the values: they broadcast as they are."""
        return values

    def uniform(
        self, activation: Tensor, words: tuple[int, int], step: Tensor, sample_index: Tensor | None, ranks: Ranks
    ) -> Tensor:
        """Draw by the flat index in G; with "none" by the global index of the sample and the flat index in it."""
        shape = self.shape(activation.shape)
        if self.marginalize != "none":
            return uniform_from_words(shape, words, step)
        if sample_index is None:
            if ranks.size > 1:
                raise ValueError(
                    f'marginalize "none" draws for each sample apart, and {ranks.size} ranks train together: give the'
                    " fork the samples' global indices (sample_index)"
                )
            sample_index = torch.arange(shape[0], device=step.device)
        return uniform_from_words(shape, words, step, sample_index)

    def _summed_dims(self, ndim: int) -> tuple[int, ...]:
        if self.marginalize == "none":
            return ()
        if ndim == 0 or not -ndim <= self.channel_dim < ndim:
            raise ValueError(f"an activation of {ndim} dims has no batch dim, or no channel dim {self.channel_dim}")
        if self.marginalize == "batch":
            return (0,)
        if self.marginalize == "batch+space":
            return tuple(dim for dim in range(ndim) if dim != self.channel_dim % ndim)
        raise ValueError(f'marginalize is "{self.marginalize}"; choose "batch", "batch+space" or "none"')


@dataclass(frozen=True)
class CellPositions(Positions):
    """Positions of sparse features [V, C]: rows of equal coordinates in different samples share them.

    Equal to "batch" on the densified map [B, C, cells], draw included: an empty cell has A = 0 and adds nothing. On
    CUDA the rows of a cell are added up in no fixed order, so there a sum may differ by rounding from run to run.

    Attributes:
        cells: where the rows lie.
    """

    cells: Cells

    def sum(self, gradients: Tensor, activation: Tensor, ranks: Ranks) -> Tensor:
        """Sum rows of the same cell: [K, V, C] to [K, U, C], the U occupied cells in ascending order."""
        if ranks.size > 1:
            raise ValueError(
                f'marginalize "coordinates" works on one rank, found {ranks.size}, whose voxels differ; choose'
                ' "batch+space", which sums over all of them'
            )
        if activation.ndim != 2 or len(activation) != len(self.cells.index):
            raise ValueError(
                f'marginalize "coordinates" takes features [V, C] and one cell a row, found {tuple(activation.shape)}'
                f" and {len(self.cells.index)} cells"
            )
        occupied, row = self._occupied
        products = gradients * activation.sign().to(gradients.dtype)
        return products.new_zeros(len(gradients), len(occupied), activation.shape[1]).index_add_(1, row, products)

    def spread(self, values: Tensor) -> Tensor:
        """Give each row its cell's values: [K, U, C] to [K, V, C]."""
        return values[:, self._occupied[1]]

    def uniform(
        self, activation: Tensor, words: tuple[int, int], step: Tensor, sample_index: Tensor | None, ranks: Ranks
    ) -> Tensor:
        """Draw by the flat index in the dense [C, cells], so that it does not depend on the order of the rows."""
        channels = torch.arange(activation.shape[1], device=activation.device)
        return uniform_at(self._occupied[0][:, None] + channels * self.cells.count, words, step)

    @cached_property
    def _occupied(self) -> tuple[Tensor, Tensor]:
        """The occupied cells [U], ascending, and for each row which of them is its own [V]."""
        occupied, row = torch.unique(self.cells.index, return_inverse=True)
        return occupied, row


def build_positions(marginalize: Marginalize, channel_dim: int, cells: Cells | None) -> Positions:
    """Return the positions of one pass; `cells` are needed for "coordinates"."""
    if marginalize == "coordinates":
        assert cells is not None, "the fork asks for them"
        return CellPositions(cells)
    return DensePositions(marginalize, channel_dim)
