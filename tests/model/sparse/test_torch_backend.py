"""The torch backend against torch's dense convolutions, in float64."""

import math

import pytest
import torch
from torch.nn import functional as F

from detection3d.model.sparse import InverseConv3d, SparseConv3d, SparseTensor, SubmanifoldConv3d, TorchBackend
from detection3d.model.sparse.backends import Backend
from detection3d.model.sparse.kernel_map import convolved_shape, strided_map, submanifold_map
from detection3d.model.sparse.spconv_backend import SpconvBackend

SHAPE = (9, 12, 10)


def cloud(voxels: int, channels: int, batch_size: int = 3, only: tuple[int, ...] = (0, 1, 2)) -> SparseTensor:
    generator = torch.Generator().manual_seed(voxels)
    cells = math.prod(SHAPE)
    keys = torch.randperm(len(only) * cells, generator=generator)[:voxels]
    batch = torch.tensor(only)[keys // cells]
    z, y, x = torch.unravel_index(keys % cells, SHAPE)
    features = torch.randn(voxels, channels, dtype=torch.float64, generator=generator)
    return SparseTensor(features, torch.stack([batch, z, y, x], 1).int(), SHAPE, batch_size)


def at_voxels(dense: torch.Tensor, tensor: SparseTensor) -> torch.Tensor:
    batch, z, y, x = tensor.indices.long().unbind(1)
    return dense[batch, :, z, y, x]


def gradients(output: torch.Tensor, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    cotangent = torch.randn(output.shape, dtype=output.dtype, generator=generator)
    return torch.autograd.grad((output * cotangent).sum(), inputs, retain_graph=True)


@pytest.mark.parametrize("kernel", [(3, 3, 3), (5, 5, 5), (1, 3, 3), (3, 1, 1)])
@pytest.mark.parametrize("voxels", [1, 40, 900])
def test_submanifold_equals_dense(kernel: tuple[int, int, int], voxels: int) -> None:
    tensor = cloud(voxels, 4)
    layer = SubmanifoldConv3d(4, 6, kernel, "s", TorchBackend()).double()
    features = tensor.features.requires_grad_()
    sparse = layer(tensor.with_features(features)).features
    dense = F.conv3d(
        tensor.with_features(features).dense(), layer.weight.permute(0, 4, 1, 2, 3), padding=[k // 2 for k in kernel]
    )
    expected = at_voxels(dense, tensor)
    torch.testing.assert_close(sparse, expected, rtol=1e-12, atol=1e-12)
    for ours, theirs in zip(
        gradients(sparse, features, layer.weight), gradients(expected, features, layer.weight), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(
    ("kernel", "stride", "padding"),
    [((3, 3, 3), (2, 2, 2), (1, 1, 1)), ((3, 3, 3), (2, 2, 2), (0, 1, 1)), ((3, 1, 1), (2, 1, 1), (0, 0, 0)),
     ((2, 2, 2), (2, 2, 2), (0, 0, 0))],
)  # fmt: skip
@pytest.mark.parametrize("only", [(0, 1, 2), (2,)])
def test_strided_and_inverse_equal_dense(
    kernel: tuple[int, int, int], stride: tuple[int, int, int], padding: tuple[int, int, int], only: tuple[int, ...]
) -> None:
    tensor = cloud(200, 4, only=only)
    down = SparseConv3d(4, 6, kernel, "s", TorchBackend(), stride=stride, padding=padding).double()
    up = InverseConv3d(6, 3, kernel, "s", TorchBackend(), stride=stride).double()
    features = tensor.features.requires_grad_()
    coarse = down(tensor.with_features(features))
    dense = F.conv3d(
        tensor.with_features(features).dense(), down.weight.permute(0, 4, 1, 2, 3), stride=stride, padding=padding
    )
    torch.testing.assert_close(coarse.dense(), dense, rtol=1e-12, atol=1e-12)

    # the output voxels are exactly those whose receptive field holds a voxel
    occupied = tensor.with_features(torch.ones_like(tensor.features[:, :1])).dense()
    reached = F.conv3d(occupied, torch.ones(1, 1, *kernel, dtype=torch.float64), stride=stride, padding=padding) > 0
    ours = coarse.with_features(torch.ones_like(coarse.features[:, :1])).dense() > 0
    assert torch.equal(ours, reached)
    assert len(coarse.indices) == int(reached.sum())

    fine = up(coarse)
    assert torch.equal(fine.indices, tensor.indices)
    expected = at_voxels(
        F.conv_transpose3d(
            coarse.dense(), up.weight.permute(4, 0, 1, 2, 3), stride=stride, padding=padding,
            output_padding=[
                size - ((out - 1) * s - 2 * p + k)
                for size, out, s, p, k in zip(SHAPE, coarse.spatial_shape, stride, padding, kernel, strict=True)
            ],
        ),
        tensor,
    )  # fmt: skip
    torch.testing.assert_close(fine.features, expected, rtol=1e-12, atol=1e-12)
    parameters = (features, down.weight, up.weight)
    for a, b in zip(gradients(fine.features, *parameters), gradients(expected, *parameters), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


def test_the_order_of_the_voxels_does_not_matter() -> None:
    tensor = cloud(300, 4)
    order = torch.randperm(300, generator=torch.Generator().manual_seed(0))
    shuffled = SparseTensor(tensor.features[order], tensor.indices[order], SHAPE, tensor.batch_size)
    layer = SubmanifoldConv3d(4, 6, (3, 3, 3), "s", TorchBackend()).double()
    torch.testing.assert_close(layer(shuffled).dense(), layer(tensor).dense(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("backend", [TorchBackend(), SpconvBackend()], ids=["torch", "spconv"])
def test_no_voxel_at_all(backend: Backend) -> None:
    """A rank may have none; spconv refuses them, so they never reach it, and its absence here doesn't matter."""
    features = torch.zeros(0, 4).requires_grad_()
    tensor = SparseTensor(features, torch.zeros(0, 4, dtype=torch.int32), SHAPE, 2)
    layer = SubmanifoldConv3d(4, 6, (3, 3, 3), "s", backend)
    down = SparseConv3d(6, 5, (3, 3, 3), "t", backend, stride=(2, 2, 2), padding=(1, 1, 1))
    up = InverseConv3d(5, 3, (3, 3, 3), "t", backend, stride=(2, 2, 2))
    coarse = down(layer(tensor))
    result = up(coarse)
    assert coarse.features.shape == (0, 5)
    assert coarse.spatial_shape == convolved_shape(SHAPE, (3, 3, 3), (2, 2, 2), (1, 1, 1))
    assert result.features.shape == (0, 3)
    assert result.spatial_shape == SHAPE
    assert result.dense().shape == (2, 3, *SHAPE)
    result.dense().sum().backward()
    for convolution in (layer, down, up):
        assert convolution.weight.grad is not None
        assert not convolution.weight.grad.any()


def test_a_stage_builds_one_map() -> None:
    tensor = cloud(50, 4)
    first = SubmanifoldConv3d(4, 4, (3, 3, 3), "s", TorchBackend()).double()
    second = SubmanifoldConv3d(4, 4, (3, 3, 3), "s", TorchBackend()).double()
    second(first(tensor))
    assert len(tensor.maps) == 1


def test_a_stage_of_other_voxels_has_a_map_of_its_own() -> None:
    tensor = cloud(50, 4)
    order = torch.randperm(50, generator=torch.Generator().manual_seed(0))
    shuffled = SparseTensor(tensor.features[order], tensor.indices[order], SHAPE, tensor.batch_size, tensor.maps)
    layer = SubmanifoldConv3d(4, 4, (3, 3, 3), "s", TorchBackend()).double()
    torch.testing.assert_close(layer(tensor).dense(), layer(shuffled).dense(), rtol=1e-12, atol=1e-12)


def test_every_pair_is_found_once() -> None:
    tensor = cloud(250, 1, batch_size=3)
    plan = submanifold_map(tensor.indices, SHAPE, (3, 3, 3))
    pairs = sum(len(rows) for rows in plan.inputs)
    distance = (tensor.indices[:, None, :] - tensor.indices[None, :, :]).abs()
    neighbours = (distance[..., 0] == 0) & (distance[..., 1:].amax(-1) <= 1)
    assert pairs == int(neighbours.sum())
    coarse = strided_map(tensor.indices, SHAPE, (3, 3, 3), (2, 2, 2), (1, 1, 1))
    assert len(torch.unique(coarse.output_indices, dim=0)) == len(coarse.output_indices)


def test_gradcheck() -> None:
    tensor = cloud(30, 2)
    layer = SubmanifoldConv3d(2, 2, (3, 3, 3), "s", TorchBackend()).double()
    assert torch.autograd.gradcheck(
        lambda f: layer(tensor.with_features(f)).features, (tensor.features.requires_grad_(),)
    )
