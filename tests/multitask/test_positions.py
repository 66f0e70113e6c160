"""What counts as one position: shapes, draws, and sparse rows against the same features on a dense map."""

import re
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from detection3d.multitask import Cells, GradDrop, Method, TaskFork, graddrop, uniform
from detection3d.multitask.draw import stream_words, uniform_at, uniform_from_words
from detection3d.multitask.method import Context
from detection3d.multitask.positions import CellPositions, DensePositions, build_positions
from detection3d.multitask.ranks import Ranks

GRID = (2, 3, 4)  # z, y, x
TASKS = ("class", "box", "heading")
WORDS = stream_words(3, "fork")


class Sparse(NamedTuple):
    """Features [V, C] of some voxels of a batch, the tasks' gradients [K, V, C], and (batch, z, y, x) [V, 4]."""

    features: Tensor
    gradients: Tensor
    indices: Tensor

    def dense(self, values: Tensor, samples: int) -> Tensor:
        """Put rows [..., V, C] into a map [..., B, C, z, y, x], zeros elsewhere."""
        full = values.new_zeros(*values.shape[:-2], samples, *GRID, values.shape[-1])
        b, z, y, x = self.indices.unbind(1)
        full[..., b, z, y, x, :] = values
        return full.movedim(-1, -4)

    def rows(self, full: Tensor) -> Tensor:
        """Take the rows out of a map [B, C, z, y, x]."""
        b, z, y, x = self.indices.unbind(1)
        return full.movedim(1, -1)[b, z, y, x]


def sparse(samples: int = 2, channels: int = 5, seed: int = 0, occupied: float = 0.6) -> Sparse:
    """Multiples of 2^-6, so that every sum is exact in whatever order it is taken."""
    generator = torch.Generator().manual_seed(seed)
    indices = (torch.rand(samples, *GRID, generator=generator) < occupied).nonzero()
    features = torch.randint(-64, 64, (len(indices), channels), generator=generator).double() / 64
    gradients = torch.randint(-64, 64, (3, len(indices), channels), generator=generator).double() / 64
    return Sparse(features, gradients, indices)


def fork_gradient(method: Method, gradients: Tensor, shared: Tensor, cells: Cells | None = None) -> Tensor:
    fork, leaf = TaskFork(TASKS, method, seed=3), shared.clone().requires_grad_()
    fork.set_step(7)
    features = fork(leaf, cells=cells)
    sum((features[task] * weight).sum() for task, weight in zip(TASKS, gradients, strict=True)).backward()
    assert leaf.grad is not None
    return leaf.grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("samples", [1, 2, 5])
@pytest.mark.parametrize("preserve_norm", [True, False])
@pytest.mark.parametrize("leak", [0.0, {"box": 0.5}])
def test_rows_are_combined_as_on_the_dense_map(samples: int, preserve_norm: bool, leak, dtype: torch.dtype) -> None:
    # Oracle 17: "coordinates" equals "batch" on the densified map, draw included, bit for bit.
    voxels = sparse(samples, seed=samples)
    features, gradients = voxels.features.to(dtype), voxels.gradients.to(dtype)
    found = fork_gradient(
        GradDrop(leak, marginalize="coordinates", preserve_norm=preserve_norm),
        gradients,
        features,
        Cells.of(voxels.indices, GRID),
    )
    wanted = fork_gradient(
        GradDrop(leak, preserve_norm=preserve_norm), voxels.dense(gradients, samples), voxels.dense(features, samples)
    )
    assert torch.equal(found, voxels.rows(wanted))
    assert not torch.allclose(found, gradients.sum(0))


@pytest.mark.parametrize("preserve_norm", [True, False])
def test_the_order_of_the_rows_does_not_matter(preserve_norm: bool) -> None:
    # Oracle 17.
    voxels = sparse(3, seed=9)
    order = torch.randperm(len(voxels.indices), generator=torch.Generator().manual_seed(1))
    method = GradDrop(marginalize="coordinates", preserve_norm=preserve_norm)
    straight = fork_gradient(method, voxels.gradients, voxels.features, Cells.of(voxels.indices, GRID))
    mixed = fork_gradient(
        method, voxels.gradients[:, order], voxels.features[order], Cells.of(voxels.indices[order], GRID)
    )
    assert torch.equal(mixed, straight[order])


def test_one_sample_alone_is_combined_element_by_element_with_the_cells_draw() -> None:
    # With one row a cell, G_i = sgn(A) g_i; the draw is that of the cell, wherever the row stands.
    voxels = sparse(1, seed=4)
    cells = Cells.of(voxels.indices, GRID)
    method = GradDrop(marginalize="coordinates", preserve_norm=False)
    found = fork_gradient(method, voxels.gradients, voxels.features, cells)
    numbers = uniform((5, *GRID), 3, 7, "fork", "cpu").flatten(1)[:, cells.index].T
    sign = voxels.features.sign()
    wanted = graddrop(voxels.gradients * sign, sign, numbers, marginalize="none", preserve_norm=False) * sign
    alive = voxels.features != 0  # without a sign everything passes
    assert torch.equal(found, torch.where(alive, wanted, voxels.gradients.sum(0)))


def test_samples_share_the_sign_of_their_cell() -> None:
    # Two samples at one place, and one that is elsewhere: (batch, x) on a grid of one dim.
    cells = Cells.of(torch.tensor([[0, 2], [1, 2], [1, 0]]), (3,))
    positions = CellPositions(cells)
    features = torch.tensor([[1.0], [-2.0], [3.0]])
    gradients = torch.tensor([[[5.0], [1.0], [2.0]], [[-1.0], [4.0], [0.0]]])
    totals = positions.sum(gradients, features, Ranks())
    assert totals[:, :, 0].tolist() == [[2.0, 4.0], [0.0, -5.0]]  # cells 0 and 2
    assert positions.spread(totals)[:, :, 0].tolist() == [[4.0, 4.0, 2.0], [-5.0, -5.0, 0.0]]


def test_no_rows_at_all() -> None:
    cells = Cells.of(torch.zeros(0, 4, dtype=torch.int32), GRID)
    empty = torch.zeros(0, 5)
    found = fork_gradient(GradDrop(marginalize="coordinates"), torch.zeros(3, 0, 5), empty, cells)
    assert found.shape == (0, 5)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_flat_index_of_cells(dtype: torch.dtype) -> None:
    indices = torch.tensor([[0, 1, 2, 3], [4, 0, 0, 1], [1, 1, 0, 0]], dtype=dtype)
    cells = Cells.of(indices, GRID)
    assert cells.index.tolist() == [23, 1, 12]
    assert cells.index.dtype == torch.int64
    assert cells.count == 24
    assert Cells.of(indices[:, :3], (2, 3)).index.tolist() == [5, 0, 3]
    # Beyond 2^31 places, also from int32 indices.
    far = Cells.of(torch.tensor([[0, 99_999, 99_999]], dtype=dtype), (100_000, 100_000))
    assert far.index.tolist() == [10**10 - 1]
    with pytest.raises(ValueError, match=re.escape("indices have shape (3, 4); a grid of 2 dims needs [V, 3]")):
        Cells.of(indices, (3, 4))
    with pytest.raises(ValueError, match=re.escape("indices have shape (4,); a grid of 3 dims needs [V, 4]")):
        Cells.of(indices[0], GRID)


def test_the_draw_at_cells_is_the_dense_draw() -> None:
    step = torch.tensor(11)
    dense = uniform_from_words((1, 5, *GRID), WORDS, step).reshape(5, -1)
    index = torch.tensor([7, 0, 23, 7, 12])
    positions = CellPositions(Cells(index, 24))
    drawn = positions.uniform(torch.zeros(5, 5), WORDS, step, None, Ranks())
    assert torch.equal(drawn, dense.T[torch.tensor([0, 7, 12, 23])])
    assert torch.equal(uniform_at(index, WORDS, step), dense[0, index])


def test_wrong_rows() -> None:
    voxels = sparse()
    method = GradDrop(marginalize="coordinates")
    with pytest.raises(ValueError, match=re.escape("needs the place of each row: fork(shared, cells=Cells.of(...))")):
        fork_gradient(method, voxels.gradients, voxels.features)
    cells = Cells.of(voxels.indices, GRID)
    rows = len(voxels.indices)
    with pytest.raises(ValueError, match=re.escape(f"one cell a row, found ({rows}, 5) and {rows - 1} cells")):
        fork_gradient(method, voxels.gradients, voxels.features, Cells(cells.index[1:], cells.count))
    with pytest.raises(ValueError, match=re.escape(f"one cell a row, found (2, 5, 2, 3, 4) and {rows} cells")):
        fork_gradient(method, voxels.dense(voxels.gradients, 2), voxels.dense(voxels.features, 2), cells)
    with pytest.raises(ValueError, match=r'works on one rank, found 2, whose voxels differ; choose "batch\+space"'):
        CellPositions(cells).sum(voxels.gradients, voxels.features, Ranks(2))


def test_sparse_rows_may_be_compared_by_channel_instead() -> None:
    # What works on several ranks: all rows, of whichever sample and place, share a channel's sign.
    voxels = sparse(2, seed=6)
    found = fork_gradient(GradDrop(marginalize="batch+space"), voxels.gradients, voxels.features)
    dense = fork_gradient(
        GradDrop(marginalize="batch+space"), voxels.dense(voxels.gradients, 2), voxels.dense(voxels.features, 2)
    )
    torch.testing.assert_close(found, voxels.rows(dense), rtol=1e-14, atol=0)


@pytest.mark.parametrize(
    ("marginalize", "channel_dim", "shape"),
    [
        ("batch", 1, (1, 3, 4, 5)),
        ("batch", 3, (1, 3, 4, 5)),
        ("batch+space", 1, (1, 3, 1, 1)),
        ("batch+space", 3, (1, 1, 1, 5)),
        ("batch+space", -1, (1, 1, 1, 5)),
        ("none", 1, (2, 3, 4, 5)),
    ],
)
def test_dense_positions(marginalize, channel_dim: int, shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(5)
    activation = torch.randn(2, 3, 4, 5, generator=generator, dtype=torch.float64)
    gradients = torch.randn(3, 2, 3, 4, 5, generator=generator, dtype=torch.float64)
    positions = build_positions(marginalize, channel_dim, None)
    assert isinstance(positions, DensePositions)
    assert positions.shape(activation.shape) == shape
    summed = [dim + 1 for dim in range(4) if shape[dim] != activation.shape[dim]]
    wanted = (gradients * activation.sign()).sum(summed, keepdim=True) if summed else gradients
    torch.testing.assert_close(positions.sum(gradients, activation, Ranks()), wanted, rtol=1e-13, atol=1e-13)
    numbers = positions.uniform(activation, WORDS, torch.tensor(4), None, Ranks())
    assert numbers.shape == shape
    sample_index = torch.arange(2) if marginalize == "none" else None
    assert torch.equal(numbers, uniform(shape, 3, 4, "fork", "cpu", sample_index))


@pytest.mark.parametrize(("shape", "channel_dim"), [((2, 3), 2), ((2, 3), -3), ((), 0)])
def test_activations_without_the_dims(shape: tuple[int, ...], channel_dim: int) -> None:
    positions = DensePositions("batch+space", channel_dim)
    with pytest.raises(ValueError, match=f"an activation of {len(shape)} dims has no batch dim, or no channel dim"):
        positions.shape(shape)


def test_samples_drawn_apart_go_by_their_global_index() -> None:
    # Wherever a sample stands in whichever batch, its elements draw the same.
    generator = torch.Generator().manual_seed(8)
    weights, shared = (torch.randn(*shape, generator=generator) for shape in ((3, 4, 6), (4, 6)))
    samples = torch.tensor([12, 2**33, 5, 0])
    method = GradDrop(marginalize="none", preserve_norm=False)

    def result(rows: list[int]) -> Tensor:
        fork, leaf = TaskFork(TASKS, method), shared[rows].clone().requires_grad_()
        features = fork(leaf, samples[rows])
        sum((features[task] * weight[rows]).sum() for task, weight in zip(TASKS, weights, strict=True)).backward()
        assert leaf.grad is not None
        return leaf.grad

    together = result([0, 1, 2, 3])
    assert torch.equal(torch.cat([result([2, 0]), result([3, 1])]), together[[2, 0, 3, 1]])
    assert not torch.equal(fork_gradient(method, weights, shared), together)
    with pytest.raises(ValueError, match=re.escape("give the fork the samples' global indices (sample_index)")):
        Context(TASKS, WORDS, torch.tensor(0), DensePositions("none"), Ranks(2)).uniform(shared)
