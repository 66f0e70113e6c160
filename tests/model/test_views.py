"""Mirrored views: of a detector that is its own mirror image they change nothing, of any other they are its mean."""

import itertools

import numpy as np
import pytest
import torch

from detection3d.config import Config
from detection3d.config.decode import View
from detection3d.config_file import load_config
from detection3d.model.decode import decode
from detection3d.model.layout import head_layout
from detection3d.model.targets import build_targets
from detection3d.model.views import detect_in_views, mirror_maps, mirror_points
from detection3d.types.tensors import BoxLabels, HeadOutputs, Points

VIEWS: tuple[View, ...] = ("identity", "flip_x", "flip_y", "flip_both")
CHANGES = (
    "model.point_range=[-16,-8,-2,16,8,4]",
    "model.voxel_size=[0.25,0.25,0.25]",
    "data.sweeps=2",
    "model.heads={classification: [quality, heatmap], box: [velocity, offset, height, size], orientation: [heading]}",
)


def some_config(*changes: str) -> Config:
    return load_config("tiny", [*CHANGES, *changes])


class SeesArrows:
    """Takes pairs of points for the rear and the front of a car, which drives from one to the other in a second."""

    def __init__(self, config: Config) -> None:
        self.config = config

    def detect(self, points: Points, batch_size: int) -> HeadOutputs:
        rear, front = points.values[0::2, :2], points.values[1::2, :2]
        centre, arrow = (rear + front) / 2, front - rear
        heading = torch.atan2(arrow[:, 1:], arrow[:, :1])
        size = torch.tensor([[4.0, 2.0, 1.5]]).expand(len(centre), -1)
        boxes = torch.cat([centre, torch.ones_like(heading), size, heading], dim=1)
        one = torch.ones(1, len(boxes), dtype=torch.int64)
        targets = build_targets(BoxLabels(boxes[None], one, one, arrow[None]), self.config)
        layout = head_layout(self.config)
        height, width = targets.heatmap.shape[2:]
        maps = {task: torch.zeros(1, layout.width(task), height * width) for task in layout.outputs}
        maps["classification"][0, layout.channels["heatmap"]] = 8 * targets.heatmap[0].flatten(1) - 6
        for name in ("offset", "height", "size", "velocity", "heading"):
            task = next(task for task, names in layout.outputs.items() if name in names)
            maps[task][0, layout.channels[name]] = 0.0
            for place, cell in enumerate(targets.cell[0]):
                maps[task][0, layout.channels[name], cell] = getattr(targets, name)[0, place]
        return HeadOutputs({task: value.view(1, -1, height, width) for task, value in maps.items()})


def arrows() -> Points:
    pairs = [
        ([-11.3, 4.4], [-7.9, 5.7]),
        ([3.1, -6.2], [2.2, -2.9]),
        ([9.4, 3.3], [12.9, 2.1]),
        ([0.9, 1.2], [0.2, 5.1]),
    ]
    rows = [[*xy, 0.5, 0.1, 0.2, 0.0] for pair in pairs for xy in pair]
    return Points(torch.tensor(rows), torch.zeros(len(rows), dtype=torch.int64))


@pytest.mark.parametrize("views", [views for n in (1, 2, 4) for views in itertools.combinations(VIEWS, n)])
def test_an_equivariant_detector_finds_the_same(views: tuple[View, ...]) -> None:
    plain = some_config()
    config = some_config(f"decode.views=[{', '.join(views)}]")
    wanted = decode(SeesArrows(plain).detect(arrows(), 1), plain)
    found = decode(detect_in_views(SeesArrows(config), arrows(), 1, config), config)
    assert len(wanted.boxes) == 4
    assert wanted.velocity is not None
    assert found.velocity is not None
    order = [int(((found.boxes - box)[:, :2].norm(dim=1)).argmin()) for box in wanted.boxes]
    torch.testing.assert_close(found.boxes[order], wanted.boxes, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.velocity[order], wanted.velocity, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.scores[order], wanted.scores)


class Blurs:
    """Says something else of every scene, and remembers what it saw."""

    def __init__(self, config: Config) -> None:
        self.layout, self.seen = head_layout(config), []

    def detect(self, points: Points, batch_size: int) -> HeadOutputs:
        self.seen.append(points.values)
        generator = torch.Generator().manual_seed(len(self.seen))
        shape = (8, 16)
        maps = {
            task: torch.randn(batch_size, self.layout.width(task), *shape, generator=generator).bfloat16()
            for task in self.layout.outputs
        }
        return HeadOutputs(maps)


def test_maps_are_averaged_where_they_belong() -> None:
    config = some_config("decode.views=[flip_x, flip_y]")
    detector = Blurs(config)
    outputs = detect_in_views(detector, arrows(), 2, config)
    values = arrows().values
    for seen, axis in zip(detector.seen, (1, 0), strict=True):
        changed = values.clone()
        changed[:, axis] *= -1
        assert torch.equal(seen, changed)
    again = Blurs(config)
    first, second = (again.detect(arrows(), 2) for _ in range(2))
    layout = head_layout(config)
    for row, column in np.ndindex(8, 16):

        def read(given: HeadOutputs, name: str, y: int = row, x: int = column) -> torch.Tensor:
            return layout.map_of(given, name)[:, :, y, x].float()

        in_x, in_y = (first, 7 - row, column), (second, row, 15 - column)
        for name in ("heatmap", "quality", "height", "size"):
            mean = (read(in_x[0], name, *in_x[1:]) + read(in_y[0], name, *in_y[1:])) / 2
            torch.testing.assert_close(read(outputs, name), mean)
        for name, signs in (
            ("offset", ([1, -1], [-1, 1])),
            ("velocity", ([1, -1], [-1, 1])),
            ("heading", ([-1, 1], [1, -1])),
        ):
            values = [read(given, name, y, x) * torch.tensor(sign) for (given, y, x), sign in
                      zip((in_x, in_y), signs, strict=True)]  # fmt: skip
            torch.testing.assert_close(read(outputs, name), sum(values) / 2)


@pytest.mark.parametrize("view", VIEWS)
def test_mirroring_twice_changes_nothing(view: View) -> None:
    config = some_config()
    layout = head_layout(config)
    outputs = Blurs(config).detect(arrows(), 2)
    twice = mirror_maps(mirror_maps(outputs, view, layout), view, layout)
    assert all(torch.equal(twice.maps[task], outputs.maps[task].float()) for task in layout.outputs)
    assert torch.equal(mirror_points(mirror_points(arrows(), view), view).values, arrows().values)


def test_the_scene_alone_is_the_detector_itself() -> None:
    config = some_config()
    assert config.decode.views == ("identity",)
    outputs = detect_in_views(Blurs(config), arrows(), 2, config)
    wanted = Blurs(config).detect(arrows(), 2)
    assert all(torch.equal(outputs.maps[task], value) for task, value in wanted.maps.items())
    assert outputs.maps["box"].dtype == torch.bfloat16
