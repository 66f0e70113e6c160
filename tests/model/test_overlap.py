"""The quality, the IoU loss and what they make of scores, against single boxes."""

import math

import pytest
import torch

from detection3d.config import Config
from detection3d.config_file import load_config
from detection3d.errors import UserError
from detection3d.geometry.device.iou import centre_penalty
from detection3d.model.decode import decode
from detection3d.model.layout import head_layout
from detection3d.model.losses import compute_losses
from detection3d.model.overlap import PARTS
from detection3d.model.targets import build_targets
from detection3d.types.tensors import BoxLabels, HeadOutputs
from tests.model.reading import box_at
from tests.oracles import polygon_iou as oracle

SMALL = ("model.point_range=[-16,-16,-2,16,16,4]", "model.voxel_size=[0.25,0.25,0.25]")
QUALITY = "model.heads.classification=[heatmap, quality]"
CELL = 2.0  # metres


def small(*changes: str) -> Config:
    return load_config("tiny", [*SMALL, *changes])


def labels(device: str = "cpu") -> BoxLabels:
    """Two samples; one of the four places is padding, one an object that is nowhere."""
    box = [[3.0, -2.3, 0.5, 4.5, 1.9, 1.6, 0.3], [-5.2, 7, 0.6, 0.9, 0.7, 1.8, 2.0]]
    boxes = torch.tensor([box, [[9.9, 9.9, 1, 1.8, 0.8, 1.7, -3], [math.nan] * 7]])
    types, points = torch.tensor([[1, 2], [4, 0]]), torch.tensor([[20, 5], [3, 0]])
    return BoxLabels(*(value.to(device) for value in (boxes, types, points, torch.zeros(2, 2, 2))))


def near_outputs(config: Config, seed: int = 0) -> HeadOutputs:
    """Maps that say nearly the truth at the objects' cells, as a trained network does."""
    targets, layout = build_targets(labels(), config), head_layout(config)
    generator = torch.Generator().manual_seed(seed)
    maps = {task: torch.randn(2, layout.width(task), 256, generator=generator) for task in layout.outputs}
    for task, names in layout.outputs.items():
        for name in (name for name in names if name in PARTS):
            for sample in range(2):
                for place in range(2):
                    if targets.valid[sample, place]:
                        noise = torch.randn(getattr(targets, name).shape[-1], generator=generator)
                        value = getattr(targets, name)[sample, place] + 0.1 * noise
                        maps[task][sample, layout.channels[name], targets.cell[sample, place]] = value
    return HeadOutputs({task: value.view(2, -1, 16, 16).requires_grad_() for task, value in maps.items()})


def with_outputs_of(source: HeadOutputs, config: Config) -> HeadOutputs:
    layout = head_layout(config)
    return HeadOutputs({task: source.maps[task].detach()[:, : layout.width(task)] for task in layout.outputs})


def test_losses_equal_single_boxes() -> None:
    config = small(QUALITY, "loss={iou_weight: 0.7, quality_weight: 0.3, classification_weight: 1.5, box_weight: 2.5}")
    outputs, plain = (
        with_outputs_of(near_outputs(config), config),
        small("loss={classification_weight: 1.5, box_weight: 2.5}"),
    )
    targets = build_targets(labels(), config)
    found = compute_losses(outputs, targets, config)
    before = compute_losses(with_outputs_of(outputs, plain), targets, plain)
    quality = distance = 0.0
    for sample, place in ((0, 0), (0, 1), (1, 0)):
        cell = targets.cell[sample, place]
        ours = box_at(outputs, cell.expand(2, 1), config)[sample]
        theirs = labels().boxes[sample, place : place + 1]
        overlap = oracle.iou_3d(ours[0].tolist(), theirs[0].tolist())
        assert 0.2 < overlap < 0.99
        said = float(outputs.maps["classification"][sample, 3].flatten()[cell])
        quality += abs(said - (2 * overlap - 1))
        distance += 1 - overlap + float(centre_penalty(ours, theirs))
    added = float(found.classification - before.classification)
    assert added == pytest.approx(1.5 * 0.3 * quality / 3, rel=1e-3)
    assert float(found.box - before.box) == pytest.approx(2.5 * 0.7 * distance / 3, rel=1e-3)
    assert torch.equal(found.orientation, before.orientation)


def test_only_the_shape_learns_from_the_overlap() -> None:
    config = small(QUALITY, "loss={iou_weight: 1, box_weight: 1}")
    plain = small(QUALITY, "loss={iou_weight: 0, box_weight: 1}")
    outputs, targets = near_outputs(config), build_targets(labels(), config)
    gradients = []
    for one in (config, plain):
        losses = compute_losses(outputs, targets, one)
        gradients.append(torch.autograd.grad(losses.box, list(outputs.maps.values()), allow_unused=True))
        (to_class,) = torch.autograd.grad(losses.classification, outputs.maps["classification"], retain_graph=True)
        to_quality = to_class[:, 3].flatten(1)
        assert (to_quality != 0).sum() == 3
        assert (to_quality.gather(1, targets.cell)[targets.valid] != 0).all()
    (_, with_overlap, to_heading), (_, without, _) = gradients
    assert to_heading is None
    extra = (with_overlap - without).flatten(2)
    assert extra.isfinite().all()
    for sample, place in ((0, 0), (0, 1), (1, 0)):
        cell = targets.cell[sample, place]
        assert (extra[sample, :, cell] != 0).all()
        extra[sample, :, cell] = 0
    assert not extra.any()


def test_an_object_that_is_nowhere_costs_nothing() -> None:
    config = small(QUALITY, "loss.iou_weight=1")
    outputs = HeadOutputs({task: torch.full_like(v, 50.0) for task, v in near_outputs(config).maps.items()})
    for value in outputs.maps.values():
        value.requires_grad_()
    nowhere = BoxLabels(*(value[1:, 1:].expand(2, *value[1:, 1:].shape[1:]) for value in vars(labels()).values()))
    losses = compute_losses(outputs, build_targets(nowhere, config), config)
    assert float(losses.box.detach()) == 0
    (gradient,) = torch.autograd.grad(losses.box, outputs.maps["box"])
    assert torch.equal(gradient, torch.zeros_like(gradient))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_wild_outputs_give_finite_gradients(dtype: torch.dtype) -> None:
    config = small(QUALITY, "loss.iou_weight=1")
    targets = build_targets(labels(), config)
    for size in (1e-3, 1.0, 30.0, 1e4):
        maps = {task: (size * value).detach().to(dtype) for task, value in near_outputs(config).maps.items()}
        outputs = HeadOutputs({task: value.requires_grad_() for task, value in maps.items()})
        losses = compute_losses(outputs, targets, config)
        torch.stack(list(losses.as_dict().values())).sum().backward()
        assert all(value.grad is not None and value.grad.isfinite().all() for value in outputs.maps.values())


def test_targets_and_losses_never_wait_for_the_device() -> None:
    """The meta device has no values at all: whatever needs one, such as `nonzero` or `item`, raises."""
    config = small(QUALITY, "loss.iou_weight=1")
    targets = build_targets(labels("meta"), config)
    layout = head_layout(config)
    maps = {
        task: torch.zeros(2, layout.width(task), 16, 16, device="meta", requires_grad=True) for task in layout.outputs
    }
    losses = compute_losses(HeadOutputs(maps), targets, config)
    torch.stack(list(losses.as_dict().values())).sum().backward()
    assert all(value.grad is not None for value in maps.values())
    with pytest.raises((RuntimeError, NotImplementedError)):
        targets.valid.nonzero()


def test_a_score_is_class_and_quality_together() -> None:
    config = small(QUALITY, "decode.score_threshold=0.3", "classes.0.quality_exponent=0.68", "classes.1.nms_iou=1")
    heatmap, quality = torch.full((1, 3, 16, 16), -9.0), torch.zeros(1, 1, 16, 16)
    for column, (name, logit, said) in enumerate([(0, 1.0, 0.9), (0, 2.0, -0.5), (0, 0.0, 1.7), (1, 0.5, -1.0)]):
        heatmap[0, name, 2, 3 * column], quality[0, 0, 2, 3 * column] = logit, said
    heatmap[0, 0, 9, 9], quality[0, 0, 9, 9] = -1.0, 1.0  # class score 0.27: no quality lifts it over the threshold
    outputs = HeadOutputs(
        {
            "classification": torch.cat([heatmap, quality], dim=1),
            "box": torch.zeros(1, 6, 16, 16),
            "orientation": torch.ones(1, 2, 16, 16),
        }
    )
    decoded = decode(outputs, config)
    wanted = []
    for logit, said in ((1.0, 0.95), (2.0, 0.25), (0.0, 1.0)):
        score = 1 / (1 + math.exp(-logit))
        wanted.append((score**0.32 * said**0.68, 0))
    wanted.append((1 / (1 + math.exp(-0.5)), 1))  # a class without an exponent keeps its score
    wanted.sort(reverse=True)
    assert decoded.scores.tolist() == pytest.approx([score for score, _ in wanted], rel=1e-5)
    assert decoded.classes.tolist() == [name for _, name in wanted]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (("classes.1.quality_exponent=0.5",), "quality_exponent of pedestrian needs a quality that is learnt; add"),
        (("classes.1.quality_exponent=0.5", QUALITY, "loss.quality_weight=0"), "needs a quality that is learnt"),
        (
            (
                "loss.iou_weight=1",
                "model.heads={classification: [heatmap, offset, height], box: [heading], orientation: [size]}",
            ),
            "loss.iou_weight is a loss of the box head, which predicts none of offset, height and size; set it to 0",
        ),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        small(*changes)
