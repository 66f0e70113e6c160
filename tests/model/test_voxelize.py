"""Voxelisation against a dictionary of lists."""

from collections import defaultdict

import numpy as np
import pytest
import torch

from detection3d.config import Config
from detection3d.model.voxelize import MeanVoxelizer
from detection3d.types.tensors import Points


def random_points(count: int, batch_size: int = 2) -> Points:
    generator = torch.Generator().manual_seed(count)
    values = torch.rand(count, 5, generator=generator) * torch.tensor([40.0, 40, 8, 3, 2]) - torch.tensor(
        [20.0, 20, 3, 0, 0]
    )
    return Points(values, torch.randint(0, batch_size, (count,), generator=generator).sort().values)


def test_means_equal_a_slow_loop(config: Config) -> None:
    points = random_points(3000)
    voxelizer = MeanVoxelizer(config.model)
    result = voxelizer(points, 2)
    low, size = np.float32(config.model.point_range[:3]), np.float32(config.model.voxel_size)
    depth, height, width = config.model.grid_size
    cells: dict[tuple[int, ...], list[np.ndarray]] = defaultdict(list)
    for value, batch in zip(points.values.numpy(), points.batch_index.tolist(), strict=True):
        x, y, z = np.floor((value[:3] - low) / size).astype(int)
        if 0 <= x < width and 0 <= y < height and 0 <= z < depth:
            cells[(batch, z, y, x)].append(np.concatenate([value[:3], np.tanh(value[3:])]))
    assert sorted(cells) == [tuple(row) for row in result.indices.tolist()]  # ascending, nothing lost, nothing twice
    expected = np.stack([np.mean(cells[key], axis=0) for key in sorted(cells)])
    scale = voxelizer.feature_scale.numpy()
    np.testing.assert_allclose(result.features.numpy(), expected * scale, rtol=1e-5, atol=1e-6)


def test_the_order_of_the_points_does_not_matter(config: Config) -> None:
    points = random_points(2000)
    order = torch.cat([torch.nonzero(points.batch_index == b).squeeze(1).flip(0) for b in range(2)])
    a = MeanVoxelizer(config.model)(points, 2)
    b = MeanVoxelizer(config.model)(Points(points.values[order], points.batch_index[order]), 2)
    assert torch.equal(a.indices, b.indices)
    torch.testing.assert_close(a.features, b.features, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_no_point_in_range_gives_no_voxel(config: Config, offset: float) -> None:
    count = 0 if offset == 0 else 5
    points = Points(torch.full((count, 5), offset), torch.zeros(count, dtype=torch.int64))
    result = MeanVoxelizer(config.model)(points, 3)
    assert result.indices.shape == (0, 4)
    assert result.features.shape == (0, 5)
    assert result.batch_size == 3


def test_points_on_the_upper_border_are_outside(config: Config) -> None:
    points = Points(torch.tensor([[-16.0, -16, -2, 0, 0], [16.0, 0, 0, 0, 0]]), torch.zeros(2, dtype=torch.int64))
    assert MeanVoxelizer(config.model)(points, 1).indices.tolist() == [[0, 0, 0, 0]]
