"""Velocities: learnt at the objects' cells, read where their boxes are, kept through suppression."""

import pytest
import torch

from detection3d.config import Config
from detection3d.config_file import load_config
from detection3d.errors import UserError
from detection3d.model.decode import decode, to_detections
from detection3d.model.layout import head_layout
from detection3d.model.losses import compute_losses
from detection3d.model.targets import build_targets
from detection3d.types.tensors import BoxLabels, HeadOutputs

SMALL = ("model.point_range=[-16,-16,-2,16,16,4]", "model.voxel_size=[0.25,0.25,0.25]")
VELOCITY = "model.heads.box=[offset, velocity, height, size]"


def moving(*changes: str) -> Config:
    return load_config("tiny", [*SMALL, VELOCITY, "data.sweeps=2", *changes])


def labels() -> BoxLabels:
    box = [[3.0, -2.3, 0.5, 4.5, 1.9, 1.6, 0.3], [-5.2, 7, 0.6, 0.9, 0.7, 1.8, 2.0], [99.0, 0, 0, 1, 1, 1, 0]]
    velocity = torch.tensor([[[12.0, -3.0], [0.4, 1.1], [50.0, 50.0]]])
    return BoxLabels(torch.tensor([box]), torch.tensor([[1, 2, 1]]), torch.tensor([[9, 9, 9]]), velocity)


def maps_of(config: Config) -> HeadOutputs:
    """The truth at the objects' cells, and another velocity."""
    layout, targets = head_layout(config), build_targets(labels(), config)
    maps = {task: torch.full((1, layout.width(task), 256), -5.0) for task in layout.outputs}
    for place in (0, 1):
        cell = targets.cell[0, place]
        maps["classification"][0, place, cell] = 3.0 + place
        maps["box"][0, layout.channels["velocity"], cell] = torch.tensor([10.0 + place, -1.0])
        for name in ("offset", "height", "size"):
            maps["box"][0, layout.channels[name], cell] = getattr(targets, name)[0, place]
        maps["orientation"][0, :, cell] = targets.heading[0, place]
    return HeadOutputs({task: value.view(1, -1, 16, 16) for task, value in maps.items()})


@pytest.mark.parametrize(("setting", "weight"), [((), 0.2), (("loss.velocity_weight=0.5",), 0.5)])
def test_the_loss_is_that_of_both_axes(setting: tuple[str, ...], weight: float) -> None:
    config = moving(*setting)
    losses = compute_losses(maps_of(config), build_targets(labels(), config), config)
    difference = (abs(10 - 12) + abs(-1 + 3)) + (abs(11 - 0.4) + abs(-1 - 1.1))
    assert float(losses.box) == pytest.approx(config.loss.box_weight * weight * difference / 2, rel=1e-5)
    assert float(losses.orientation) == pytest.approx(0, abs=1e-6)


def test_detections_carry_their_velocity() -> None:
    config = moving("decode.score_threshold=0.3")
    decoded = decode(maps_of(config), config)
    assert decoded.classes.tolist() == [1, 0]
    (found,) = to_detections(decoded, (("a", 1),), config)
    assert found.velocity is not None
    assert found.velocity.dtype == "float32"
    assert found.velocity.tolist() == [[11, -1], [10, -1]]
    plain = load_config("tiny", SMALL)
    empty = HeadOutputs({task: torch.zeros(1, width, 16, 16) for task, width in
                         (("classification", 3), ("box", 6), ("orientation", 2))})  # fmt: skip
    assert decode(empty, plain).velocity is None
    assert to_detections(decode(empty, plain), (("a", 1),), plain)[0].velocity is None


def test_one_sweep_tells_no_velocity() -> None:
    with pytest.raises(UserError, match=r"velocity can't be told from a single sweep; set data.sweeps above 1"):
        moving("data.sweeps=1")
