"""Losses against scalars, in half precision, and each on its own head alone."""

import math

import pytest
import torch

from detection3d.config import Config
from detection3d.config_file import CHECKOUT, load_config
from detection3d.model.detector import Detector
from detection3d.model.heads import TASKS
from detection3d.model.losses import compute_losses, focal_loss
from detection3d.model.targets import build_targets
from detection3d.multitask import Sum, TaskFork
from detection3d.types.tensors import BoxLabels, HeadOutputs, Points

SHIPPED = sorted(path.stem for path in CHECKOUT.glob("*.yaml"))
SMALL = {
    "voxel": ("model.point_range=[-64,-64,-2,64,64,4]", "model.voxel_size=[0.5,0.5,0.25]"),
    "pillar": ("model.point_range=[-64,-64,-2,64,64,4]", "model.voxel_size=[4,4,6]"),
}
CHANGES = {
    "as shipped": (),
    "quality": ("model.heads.classification=[heatmap, quality]",),
    "overlap": ("loss.iou_weight=1", "model.heads.classification=[quality, heatmap]"),
    "moved": (
        "model.heads={classification: [heatmap, quality], box: [size, offset], orientation: [heading, height]}",
        "loss.iou_weight=1",
    ),
}
CHANGES["velocity"] = ("data.sweeps=2", "model.heads.box=[offset, height, size, velocity]")
WIDTHS = {"classification": 3, "box": 6, "orientation": 2}  # channels of the heads unless told


def one_car(config: Config) -> BoxLabels:
    boxes = torch.tensor([[[3.0, -2.0, 0.5, 4.5, 1.9, 1.6, 0.3], [0, 0, 0, 0, 0, 0, 0]]])
    return BoxLabels(boxes, torch.tensor([[1, 0]]), torch.tensor([[20, 0]]), torch.ones(1, 2, 2))


def test_focal_loss_equals_scalars() -> None:
    logits, targets = [0.3, -1.2, 2.0, -4.0], [1.0, 0.5, 0.0, 1.0]
    expected = 0.0
    for x, t in zip(logits, targets, strict=True):
        p = 1 / (1 + math.exp(-x))
        expected -= (1 - p) ** 2 * math.log(p) if t == 1 else (1 - t) ** 4 * p**2 * math.log(1 - p)
    ours = focal_loss(torch.tensor(logits), torch.tensor(targets))
    assert float(ours) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_focal_loss_is_finite_at_saturated_cells(dtype: torch.dtype) -> None:
    logits = torch.tensor([-60.0, -12, -9, 9, 12, 60] * 2, dtype=dtype, requires_grad=True)
    loss = focal_loss(logits, torch.tensor([1.0] * 6 + [0.0] * 6))
    loss.backward()
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss)
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


def test_values_by_hand(config: Config) -> None:
    targets = build_targets(one_car(config), config)
    height, width = targets.heatmap.shape[2:]
    outputs = HeadOutputs({task: torch.zeros(1, width_of, height, width) for task, width_of in WIDTHS.items()})
    losses = compute_losses(outputs, targets, config)
    box = sum(float(getattr(targets, name)[0, 0].abs().sum()) for name in ("offset", "height", "size"))
    assert float(losses.box) == pytest.approx(config.loss.box_weight * box, rel=1e-5)
    turned = abs(math.sin(0.3)) + abs(math.cos(0.3))
    assert float(losses.orientation) == pytest.approx(config.loss.orientation_weight * turned, rel=1e-5)


def test_losses_of_a_sample_twice_are_the_same(config: Config) -> None:
    labels = one_car(config)
    twice = BoxLabels(*(torch.cat([value, value]) for value in vars(labels).values()))
    generator = torch.Generator().manual_seed(0)
    once, doubled = build_targets(labels, config), build_targets(twice, config)
    shape = once.heatmap.shape[2:]
    maps = {task: torch.randn(1, width, *shape, generator=generator) for task, width in WIDTHS.items()}
    a = compute_losses(HeadOutputs(maps), once, config)
    b = compute_losses(HeadOutputs({task: torch.cat([m, m]) for task, m in maps.items()}), doubled, config)
    for x, y in zip(a.as_dict().values(), b.as_dict().values(), strict=True):
        torch.testing.assert_close(x, y)


@pytest.mark.parametrize("changes", [*CHANGES.values()], ids=list(CHANGES))
@pytest.mark.parametrize("name", SHIPPED)
def test_each_loss_reaches_its_own_alias_alone(name: str, changes: tuple[str, ...]) -> None:
    """The fork's premise, in the config's own heads; the range is made small, the layers stay."""
    config = load_config(name, [*SMALL[load_config(name).model.backbone.kind], *changes])
    detector = Detector(config, TaskFork(TASKS, Sum()), torch.device("cpu"))
    shared = torch.randn(1, config.model.shared_channels, 32, 32)
    aliases = {task: shared.clone().requires_grad_() for task in TASKS}
    maps = {task: detector.heads[task](aliases[task]) for task in TASKS}
    targets = build_targets(one_car(config), config)
    losses = compute_losses(HeadOutputs(maps), targets, config).as_dict()
    assert tuple(losses) == TASKS
    for task, loss in losses.items():
        gradients = torch.autograd.grad(loss, list(aliases.values()), retain_graph=True, allow_unused=True)
        for other, gradient in zip(aliases, gradients, strict=True):
            reached = gradient is not None and bool(gradient.any())
            assert reached == (other == task), (task, other)


def test_an_empty_batch_trains_every_parameter(config: Config) -> None:
    detector = Detector(config, TaskFork(TASKS, Sum()), torch.device("cpu")).train()
    nothing = Points(torch.zeros(0, 5), torch.zeros(0, dtype=torch.int64))
    labels = BoxLabels(
        torch.zeros(2, 0, 7), *torch.zeros(2, 2, 0, dtype=torch.int64), torch.zeros(2, 0, 2)
    )  # fmt: skip
    losses = compute_losses(detector.detect(nothing, 2), build_targets(labels, config), config)
    sum(losses.as_dict().values(), torch.zeros(())).backward()
    missing = [name for name, weight in detector.named_parameters() if weight.grad is None]
    assert not missing
    assert all(bool(weight.grad.isfinite().all()) for weight in detector.parameters() if weight.grad is not None)
