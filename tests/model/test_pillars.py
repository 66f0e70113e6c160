"""Pillars against dictionaries of lists: what each point is told, and what a pillar keeps of its points."""

from collections import defaultdict

import numpy as np
import pytest
import torch
from torch import nn

from detection3d.config import Config
from detection3d.config_file import load_config
from detection3d.model.detector import Detector
from detection3d.model.heads import TASKS
from detection3d.model.losses import compute_losses
from detection3d.model.pillars import PillarBackbone, PillarSorter
from detection3d.model.targets import BevGrid, build_targets
from detection3d.multitask import Sum, TaskFork
from detection3d.types.tensors import BoxLabels, Points

CPU = torch.device("cpu")
CHANGES = (
    "model.point_range=[-8,-12,-2,8,12,4]",
    "model.voxel_size=[0.5,0.5,6]",
    "model.backbone={kind: pillar, channels: [6, 5]}",
    "model.neck={layers: [1, 1, 1], strides: [1, 2, 2], channels: [4, 4, 4], upsampled_channels: [4, 4, 4]}",
)


def pillar_config(*changes: str) -> Config:
    return load_config("tiny", [*CHANGES, *changes])


def random_points(count: int, columns: int = 5, seed: int = 0) -> Points:
    """Some of them outside the range; many in a few pillars."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.rand(count, columns, generator=generator) - 0.5
    values = values * torch.tensor([18.0, 26, 8, 6, 4, 0.4][:columns])
    values[: count // 3, :2] *= 0.05
    return Points(values, torch.randint(0, 3, (count,), generator=generator).sort().values)


def slow_features(points: Points, config: Config) -> dict[int, list[np.ndarray]]:
    """Features of the points by pillar, in the order of the points."""
    model = config.model
    _, height, width = model.grid_size
    members = defaultdict(list)
    for value, sample in zip(points.values.double().numpy(), points.batch_index.tolist(), strict=True):
        x, y = ((value[:2] - model.point_range[:2]) / model.voxel_size[0]).tolist()
        if 0 <= x < width and 0 <= y < height and model.point_range[2] <= value[2] < model.point_range[5]:
            members[(sample * height + int(y)) * width + int(x)].append((value, x % 1 - 0.5, y % 1 - 0.5))
    result = {}
    for key, found in members.items():
        about = np.array([[x, y, value[2]] for value, x, y in found])
        rows = []
        for (value, x, y), offset in zip(found, about - about.mean(axis=0), strict=True):
            own = [value[0] / 12, value[1] / 12, value[2] / 4, *np.tanh(value[3:5]), *value[5:]]
            rows.append(np.array([*own, *offset, x, y]))
        result[key] = rows
    return result


@pytest.mark.parametrize("columns", [5, 6])
def test_points_are_sorted_and_described(columns: int) -> None:
    config, points = pillar_config(), random_points(3000, columns)
    sorted_points = PillarSorter(config.model, columns)(points, 4)
    expected = slow_features(points, config)
    keys = [key for key in sorted(expected) for _ in expected[key]]
    assert sorted_points.cells.tolist() == sorted(expected)
    assert sorted_points.cells[sorted_points.pillar].tolist() == keys
    assert 1000 < len(keys) < 3000
    assert max(len(rows) for rows in expected.values()) > 50
    wanted = np.stack([row for key in sorted(expected) for row in expected[key]])
    np.testing.assert_allclose(sorted_points.features.numpy(), wanted, rtol=1e-4, atol=2e-5)
    assert sorted_points.counts.tolist() == [len(expected[key]) for key in sorted(expected)]
    assert sorted_points.shape == (4, 48, 32)


def plain_view(backbone: PillarBackbone, features: torch.Tensor, pillar: torch.Tensor, cells: int) -> torch.Tensor:
    """The backbone with one pillar after the other, in float64."""
    view = features.new_zeros(cells, 0)
    for number, layer in enumerate(backbone.layers):
        if number:
            features = torch.cat([features, view[pillar]], dim=1)
        assert isinstance(layer.linear, nn.Linear)
        features = features @ layer.linear.weight.T
        mean, variance = features.mean(0), features.var(0, correction=0)
        features = ((features - mean) / (variance + layer.norm.eps).sqrt() * layer.norm.weight + layer.norm.bias).relu()
        view = torch.stack(
            [features[pillar == cell].amax(0) if (pillar == cell).any() else torch.zeros_like(features[0])
             for cell in range(cells)]
        )  # fmt: skip
    return view


@pytest.mark.parametrize("channels", ["[5]", "[6, 5]", "[4, 6, 5]"])
def test_a_pillar_keeps_the_maximum_of_its_points(channels: str) -> None:
    config = pillar_config(f"model.backbone.channels={channels}", "model.voxel_size=[2,2,6]")
    sorter = PillarSorter(config.model)
    backbone = PillarBackbone(config.model.backbone, sorter.features).double()  # pyright: ignore
    generator = torch.Generator().manual_seed(0)
    for number, layer in enumerate(backbone.layers, 1):
        # Inner layers stay clear of the ReLU: points that it makes alike would tie later, or not, as rounding has it.
        apart = 0.0 if number == len(backbone.layers) else 9.0
        nn.init.normal_(layer.linear.weight, generator=generator)
        nn.init.normal_(layer.norm.weight, generator=generator)
        nn.init.normal_(layer.norm.bias, mean=apart, generator=generator)
    points = sorter(random_points(400), 3)
    points = points.with_features(points.features.double())
    view = backbone(points)
    _, height, width = config.model.grid_size
    expected = plain_view(backbone, points.features, points.cells[points.pillar], 3 * height * width)
    expected = expected.view(3, height, width, -1).permute(0, 3, 1, 2)
    torch.testing.assert_close(view, expected)
    weight = torch.randn(view.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    parameters = list(backbone.parameters())
    ours = torch.autograd.grad((view * weight).sum(), parameters)
    torch.testing.assert_close(ours, torch.autograd.grad((expected * weight).sum(), parameters))


def test_the_order_of_the_points_does_not_matter_and_a_run_repeats_its_bits() -> None:
    config, points = pillar_config(), random_points(2000)
    order = torch.cat([torch.nonzero(points.batch_index == sample).squeeze(1).flip(0) for sample in range(3)])
    turned = Points(points.values[order], points.batch_index[order])
    sorter = PillarSorter(config.model)
    torch.manual_seed(0)
    backbone = PillarBackbone(config.model.backbone, sorter.features)  # pyright: ignore
    views = [backbone(sorter(given, 3)) for given in (points, turned, points)]
    torch.testing.assert_close(views[1], views[0], rtol=1e-4, atol=1e-4)
    assert torch.equal(views[2], views[0])


def test_a_point_comes_out_where_its_box_would(config: Config) -> None:
    config = pillar_config()
    grid = BevGrid(config)
    assert (grid.height, grid.width, grid.cell) == (48, 32, 0.5)
    points = Points(torch.tensor([[3.3, -7.1, 0.5, 0, 0]]), torch.tensor([1]))
    sorter = PillarSorter(config.model)
    backbone = PillarBackbone(config.model.backbone, sorter.features).eval()  # pyright: ignore
    for layer in backbone.layers:
        nn.init.ones_(layer.norm.bias)
        nn.init.zeros_(layer.norm.weight)
    column, row = torch.floor(grid.to_cells(points.values[:, :2])).long()[0].tolist()
    assert backbone(sorter(points, 2)).nonzero().tolist() == [[1, channel, row, column] for channel in range(5)]


@pytest.mark.parametrize("points", [0, 1, 2])
def test_without_points_every_parameter_gets_a_gradient(points: int) -> None:
    config = pillar_config()
    detector = Detector(config, TaskFork(TASKS, Sum()), CPU).train()
    few = Points(torch.full((points, 5), 0.1), torch.zeros(points, dtype=torch.int64))
    labels = BoxLabels(torch.zeros(2, 0, 7), *torch.zeros(2, 2, 0, dtype=torch.int64), torch.zeros(2, 0, 2))
    outputs = detector.detect(few, 2)
    assert outputs.maps["box"].shape == (2, 6, 48, 32)
    losses = compute_losses(outputs, build_targets(labels, config), config)
    sum(losses.as_dict().values(), torch.zeros(())).backward()
    gradients = {name: weight.grad for name, weight in detector.named_parameters()}
    assert [name for name, gradient in gradients.items() if gradient is None] == []
    assert all(bool(gradient.isfinite().all()) for gradient in gradients.values() if gradient is not None)
