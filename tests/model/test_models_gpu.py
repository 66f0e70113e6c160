"""On a GPU: pillars as on the CPU and with the same bits in every run, losses that never wait for the device."""

from collections.abc import Iterator

import pytest
import torch

from detection3d.config_file import load_config
from detection3d.model.layout import head_layout
from detection3d.model.losses import compute_losses
from detection3d.model.pillars import PillarBackbone, PillarSorter
from detection3d.model.targets import build_targets
from detection3d.types.tensors import BoxLabels, HeadOutputs, Points

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def view_and_gradients(device: str) -> list[torch.Tensor]:
    config = load_config("waymo_pillar", ["model.point_range=[-10.24,-10.24,-2,10.24,10.24,4]"])
    generator = torch.Generator().manual_seed(0)
    values = torch.rand(30_000, 5, generator=generator) * torch.tensor([22.0, 22, 7, 2, 2]) - torch.tensor(
        [11.0, 11, 2, 0, 0]
    )
    points = Points(values.to(device), torch.arange(3).repeat_interleave(10_000).to(device))
    torch.manual_seed(0)
    sorter = PillarSorter(config.model).to(device)
    assert config.model.backbone.kind == "pillar"
    backbone = PillarBackbone(config.model.backbone, sorter.features).to(device)
    view = backbone(sorter(points, 3))
    weight = torch.randn(view.shape, generator=generator).to(device)
    return [view, *torch.autograd.grad((view * weight).sum(), list(backbone.parameters()))]


def test_pillars_on_a_gpu_are_those_of_the_cpu_and_repeat_their_bits() -> None:
    wanted, first, second = (view_and_gradients(device) for device in ("cpu", "cuda", "cuda"))
    assert torch.equal(first[0], second[0])
    torch.testing.assert_close(first[0].cpu(), wanted[0], rtol=1e-3, atol=1e-3)
    for ours, again, theirs in zip(first[1:], second[1:], wanted[1:], strict=True):
        torch.testing.assert_close(ours, again, rtol=1e-4, atol=1e-3)  # the norms' own sums use atomics
        assert (ours.cpu() - theirs).norm() <= 0.02 * theirs.norm()


@pytest.fixture
def without_waiting() -> Iterator[None]:
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.filterwarnings("ignore:Synchronization debug mode")  # torch says of it that it is a prototype
@pytest.mark.usefixtures("without_waiting")
def test_targets_and_losses_never_wait() -> None:
    small = ["model.point_range=[-64,-64,-2,64,64,4]", "model.voxel_size=[0.5,0.5,0.25]"]
    config = load_config("waymo_voxel_4sweeps", small)
    generator = torch.Generator().manual_seed(0)
    boxes = torch.rand(2, 40, 7, generator=generator) * 6 + 0.5
    types = torch.randint(0, 5, (2, 40), generator=generator)
    labels = BoxLabels(*(value.cuda() for value in (boxes, types, types + 1, torch.rand(2, 40, 2))))
    layout = head_layout(config)
    maps = {
        task: torch.randn(2, layout.width(task), 32, 32, device="cuda", requires_grad=True) for task in layout.outputs
    }
    build_targets(labels, config)  # the table of types is copied once
    torch.cuda.set_sync_debug_mode("error")
    losses = compute_losses(HeadOutputs(maps), build_targets(labels, config), config)
    torch.stack(list(losses.as_dict().values())).sum().backward()
    torch.cuda.set_sync_debug_mode("default")
    assert all(value.grad is not None and value.grad.isfinite().all() for value in maps.values())
