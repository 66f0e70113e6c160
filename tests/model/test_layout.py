"""Outputs may lie in any order, in any head: what is read, learnt and decoded stays the same."""

import torch

from detection3d.config import Config
from detection3d.config_file import load_config
from detection3d.model.detector import Detector
from detection3d.model.heads import START, TASKS
from detection3d.model.layout import head_layout
from detection3d.model.losses import compute_losses
from detection3d.model.targets import build_targets
from detection3d.multitask import Sum, TaskFork
from detection3d.types.tensors import BoxLabels, HeadOutputs
from tests.model.reading import box_at

MOVED = "model.heads={classification: [heatmap, size], box: [height, offset], orientation: [heading]}"
SMALL = ("model.point_range=[-16,-16,-2,16,16,4]", "model.voxel_size=[0.25,0.25,0.25]")


def maps_of(values: dict[str, torch.Tensor], config: Config) -> HeadOutputs:
    layout = head_layout(config)
    return HeadOutputs(
        {task: torch.cat([values[name] for name in names], dim=1) for task, names in layout.outputs.items()}
    )


def test_the_same_outputs_in_other_heads() -> None:
    plain, moved = load_config("tiny", SMALL), load_config("tiny", [*SMALL, MOVED])
    generator = torch.Generator().manual_seed(0)
    widths = {"heatmap": 3, "offset": 2, "height": 1, "size": 3, "heading": 2}
    values = {name: torch.randn(2, width, 16, 16, generator=generator) for name, width in widths.items()}
    first, second = maps_of(values, plain), maps_of(values, moved)
    for name, value in values.items():
        assert torch.equal(head_layout(moved).map_of(second, name), value)
    cells = torch.randint(0, 256, (2, 9), generator=generator)
    assert torch.equal(box_at(first, cells, plain), box_at(second, cells, moved))

    boxes = torch.tensor([[[3.0, -2, 0.5, 4.5, 1.9, 1.6, 0.3]], [[-9.0, 5, 0.5, 0.8, 0.7, 1.8, -2]]])
    labels = BoxLabels(boxes, torch.tensor([[1], [2]]), torch.tensor([[20], [5]]), torch.zeros(2, 1, 2))
    targets = build_targets(labels, plain)
    before = compute_losses(first, targets, plain).as_dict()
    after = compute_losses(second, targets, moved).as_dict()
    size = sum(
        (value[:, y, x] - wanted[0]).abs().sum()
        for value, cell, wanted in zip(values["size"], targets.cell, targets.size, strict=True)
        for y, x in [divmod(int(cell), 16)]
    )
    torch.testing.assert_close(after["classification"], before["classification"] + size / 2)
    torch.testing.assert_close(after["box"], before["box"] - 2 * size / 2)
    assert torch.equal(after["orientation"], before["orientation"])


def test_each_output_starts_at_its_own_bias() -> None:
    config = load_config("tiny", [*SMALL, MOVED])
    detector = Detector(config, TaskFork(TASKS, Sum()), torch.device("cpu"))
    for task, names in head_layout(config).outputs.items():
        wanted = [value for name in names for value in START[name] * (3 if name == "heatmap" else 1)]
        assert detector.heads[task].output.bias.tolist() == torch.tensor(wanted).tolist()
