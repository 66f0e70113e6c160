"""spconv on a GPU against the float64 torch backend, on a real scan: every layer kind and the whole backbone."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from detection3d.config import BackboneConfig, Config
from detection3d.config_file import load_config
from detection3d.model.backbone import SparseBackbone
from detection3d.model.sparse import InverseConv3d, SparseConv3d, SparseTensor, SubmanifoldConv3d, available_backends
from detection3d.model.sparse.spconv_backend import allow_tf32, tf32_allowed
from detection3d.model.voxelize import MeanVoxelizer
from detection3d.types.tensors import Points

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif("spconv" not in available_backends(), reason="needs a CUDA device and spconv"),
]

TOLERANCE = {"float32": 1e-5, "tf32": 2e-3, "float16": 5e-3}
DEVICE = torch.device("cuda")


@pytest.fixture(scope="module")
def config() -> Config:
    return load_config("waymo_voxel")


@pytest.fixture(scope="module")
def voxels(shared: Path, config: Config) -> SparseTensor:
    """One real scan encoded in Waymo's format: all lidars and returns of its first frame."""
    archive = np.load(shared / "waymo" / "encoded" / "official_points.npz")
    xyz = np.concatenate([archive[name] for name in sorted(archive.files) if name.startswith("frame0_")])
    points = torch.zeros(len(xyz), 5, device=DEVICE)
    points[:, :3] = torch.from_numpy(xyz)
    points[:, 3:] = torch.rand(len(xyz), 2, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    tensor = MeanVoxelizer(config.model).to(DEVICE)(
        Points(points, torch.zeros(len(points), dtype=torch.int64, device=DEVICE)), 1
    )
    assert len(tensor.features) >= 50_000, f"{len(tensor.features)} voxels are too few to prove much"
    return tensor


def relative_error(ours: torch.Tensor, reference: torch.Tensor) -> float:
    return float((ours.double() - reference).abs().max() / reference.abs().max())


def align(result: SparseTensor, reference: SparseTensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return features of both in the reference's order; the backends number their output voxels differently."""

    def order(tensor: SparseTensor) -> torch.Tensor:
        b, z, y, x = tensor.indices.long().unbind(1)
        return (((b * 2048 + z) * 4096 + y) * 4096 + x).argsort()

    a, b = order(result), order(reference)
    assert torch.equal(result.indices[a], reference.indices[b])
    return result.features[a], reference.features[b]


def prepare(precision: str) -> torch.dtype:
    allow_tf32(precision == "tf32")
    assert tf32_allowed() == (precision == "tf32")
    return torch.float16 if precision == "float16" else torch.float32


@pytest.mark.parametrize("precision", list(TOLERANCE))
@pytest.mark.parametrize("kind", ["submanifold", "strided", "reduce", "inverse"])
def test_layers(kind: str, precision: str, voxels: SparseTensor) -> None:
    torch.manual_seed(0)
    dtype = prepare(precision)
    start = torch.randn(len(voxels.features), 32, device=DEVICE)
    cotangents: dict[str, torch.Tensor] = {}

    def run(backend: str, dtype: torch.dtype) -> tuple[SparseTensor, torch.Tensor, list[torch.Tensor]]:
        torch.manual_seed(1)
        down = {"kernel_size": (3, 3, 3), "stride": (2, 2, 2), "padding": (1, 1, 1)}
        if kind == "reduce":
            down = {"kernel_size": (3, 1, 1), "stride": (2, 1, 1), "padding": (0, 0, 0)}
        layers: list[nn.Module] = []
        if kind == "submanifold":
            layers = [SubmanifoldConv3d(32, 64, (3, 3, 3), "a", backend)]  # type: ignore[arg-type]
        else:
            layers = [SparseConv3d(32, 64, stage="a", backend=backend, **down)]  # type: ignore[arg-type]
        if kind == "inverse":
            layers.append(InverseConv3d(64, 32, (3, 3, 3), "a", backend, stride=(2, 2, 2)))  # type: ignore[arg-type]
        net = nn.Sequential(*layers).to(DEVICE, torch.float64 if dtype == torch.float64 else torch.float32)
        features = start.to(dtype).requires_grad_()
        result = net(SparseTensor(features, voxels.indices, voxels.spatial_shape, 1))
        return result, features, [layer.weight for layer in net]

    reference, reference_input, reference_weights = run("torch", torch.float64)
    ours, our_input, our_weights = run("spconv", dtype)
    assert ours.features.dtype == dtype
    a, b = align(ours, reference)
    cotangents["all"] = torch.randn(b.shape, device=DEVICE)
    expected = torch.autograd.grad((b * cotangents["all"].double()).sum(), [reference_input, *reference_weights])
    found = torch.autograd.grad((a.float() * cotangents["all"]).sum(), [our_input, *our_weights])
    errors = {"output": relative_error(a, b)}
    errors |= {f"gradient {i}": relative_error(f, e) for i, (f, e) in enumerate(zip(found, expected, strict=True))}
    print(kind, precision, {name: f"{error:.2e}" for name, error in errors.items()})
    assert max(errors.values()) <= TOLERANCE[precision], errors
    if precision != "float32":
        assert max(errors.values()) > TOLERANCE["float32"] / 10, "the fast mode was not on"


class RecordedReLU(nn.Module):
    """ReLU that notes which elements pass, or replays the note of another run.

    Rounding moves a few of millions of activations across zero, where the gradient jumps; with the same elements
    passing, both backends differentiate the same function.
    """

    def __init__(self, masks: list[torch.Tensor], replay: bool) -> None:
        super().__init__()
        self.masks, self.replay = masks, replay

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        if not self.replay:
            self.masks.append(values > 0)
            return torch.relu(values)
        return values * self.masks.pop(0)


@pytest.mark.parametrize("precision", list(TOLERANCE))
def test_whole_backbone(precision: str, voxels: SparseTensor, config: Config) -> None:
    prepare(precision)
    settings = config.model.backbone.model_dump() | {"backend": "torch", "precision": "float32"}
    torch.manual_seed(0)
    # the reference runs in the order of voxels that spconv gives, so that recorded masks fit: see _Reordered
    reference = SparseBackbone(BackboneConfig(**settings), config.model.grid_size, DEVICE).to(DEVICE).double()
    settings |= {"backend": "spconv", "precision": precision}
    ours = SparseBackbone(BackboneConfig(**settings), config.model.grid_size, DEVICE).to(DEVICE)
    ours.load_state_dict(copy.deepcopy(reference.state_dict()))
    ours.float()
    orders: list[torch.Tensor] = []
    masks: list[torch.Tensor] = []
    _instrument(ours, masks, replay=False)
    _note_indices(ours, orders)
    our_input = voxels.features.clone().requires_grad_()
    our_output = ours(voxels.with_features(our_input))
    _instrument(reference, masks, replay=True)
    _replay_indices(reference, orders)
    reference_input = voxels.features.double().requires_grad_()
    fresh = SparseTensor(reference_input, voxels.indices, voxels.spatial_shape, 1)
    reference_output = reference(fresh)
    assert not masks

    cotangent = torch.randn(reference_output.shape, device=DEVICE)
    expected = torch.autograd.grad(
        (reference_output * cotangent.double()).sum(), [reference_input, *reference.parameters()]
    )
    found = torch.autograd.grad((our_output * cotangent).sum(), [our_input, *ours.parameters()])
    errors = {"output": relative_error(our_output, reference_output), "input": relative_error(found[0], expected[0])}
    names = [name for name, _ in reference.named_parameters()]
    errors |= {name: relative_error(f, e) for name, f, e in zip(names, found[1:], expected[1:], strict=True)}
    worst = sorted(errors.items(), key=lambda item: -item[1])[:4]
    print("backbone", precision, f"{len(voxels.features)} voxels", [(name, f"{error:.2e}") for name, error in worst])
    assert worst[0][1] <= TOLERANCE[precision], worst


def _instrument(backbone: SparseBackbone, masks: list[torch.Tensor], replay: bool) -> None:
    for module in backbone.modules():
        if isinstance(getattr(module, "activation", None), nn.ReLU):
            module.activation = RecordedReLU(masks, replay)


def _strided_layers(backbone: SparseBackbone) -> list[SparseConv3d]:
    return [module for module in backbone.modules() if isinstance(module, SparseConv3d)]


def _note_indices(backbone: SparseBackbone, orders: list[torch.Tensor]) -> None:
    for layer in _strided_layers(backbone):
        layer.register_forward_hook(lambda _m, _i, result: orders.append(result.indices))


def _replay_indices(backbone: SparseBackbone, orders: list[torch.Tensor]) -> None:
    def reorder(_module: nn.Module, _inputs: object, result: SparseTensor) -> SparseTensor:
        wanted = orders.pop(0)

        def key(indices: torch.Tensor) -> torch.Tensor:
            b, z, y, x = indices.long().unbind(1)
            return ((b * 2048 + z) * 4096 + y) * 4096 + x

        ours, theirs = key(result.indices), key(wanted)
        order = ours.argsort()[theirs.argsort().argsort()]
        assert torch.equal(ours[order], theirs)
        return SparseTensor(result.features[order], wanted, result.spatial_shape, 1, result.maps)

    for layer in _strided_layers(backbone):
        layer.register_forward_hook(reorder)
