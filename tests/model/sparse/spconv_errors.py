"""Errors of spconv against the float64 torch backend on a real scan, its kernels and its time, as one line of JSON.

python tests/model/sparse/spconv_errors.py float32|tf32|float16 FOLDER_OF_SHARED_DATA [RUN|CHECKPOINT]

The whole network has its first weights, or those of a run or checkpoint of waymo_voxel.yaml's network.
"""

import copy
import json
import statistics
import sys
import time
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from torch import nn

from detection3d.config import Config, VoxelBackboneConfig
from detection3d.config_file import load_config
from detection3d.model.backbone import SparseBackbone
from detection3d.model.sparse import (
    Backend,
    InverseConv3d,
    Precision,
    SparseConv3d,
    SparseTensor,
    SpconvBackend,
    SubmanifoldConv3d,
    TorchBackend,
)
from detection3d.model.voxelize import MeanVoxelizer
from detection3d.training.state import build_detector
from detection3d.training.weights import find_weights, read_weights
from detection3d.types.tensors import Points

DEVICE = torch.device("cuda")
KINDS = {  # C_in and C_out; TF32 leaves thin layers in float32
    "submanifold": (64, 128),
    "strided": (64, 128),
    "reduce": (64, 128),
    "inverse": (64, 128),
    "thin": (32, 32),
}
WARM_UPS, RUNS = 5, 20


def read_voxels(shared: Path, config: Config) -> SparseTensor:
    """One real scan encoded in Waymo's format: all lidars and returns of its first frame."""
    archive = np.load(shared / "waymo" / "encoded" / "official_points.npz")
    xyz = np.concatenate([archive[name] for name in sorted(archive.files) if name.startswith("frame0_")])
    points = torch.zeros(len(xyz), 5, device=DEVICE)
    points[:, :3] = torch.from_numpy(xyz)
    points[:, 3:] = torch.rand(len(xyz), 2, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    return MeanVoxelizer(config.model).to(DEVICE)(
        Points(points, torch.zeros(len(points), dtype=torch.int64, device=DEVICE)), 1
    )


def relative_error(ours: torch.Tensor, reference: torch.Tensor) -> float:
    return float((ours.detach().double() - reference.detach()).abs().max() / reference.detach().abs().max())


def align(result: SparseTensor, reference: SparseTensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return features of both in the reference's order; the backends number their output voxels differently."""

    def order(tensor: SparseTensor) -> torch.Tensor:
        b, z, y, x = tensor.indices.long().unbind(1)
        return (((b * 2048 + z) * 4096 + y) * 4096 + x).argsort()

    a, b = order(result), order(reference)
    assert torch.equal(result.indices[a], reference.indices[b])
    return result.features[a], reference.features[b]


def layer_errors(kind: str, precision: Precision, voxels: SparseTensor) -> dict[str, float]:
    torch.manual_seed(0)
    c_in, c_out = KINDS[kind]
    start = torch.randn(len(voxels.features), c_in, device=DEVICE)

    def run(backend: Backend, dtype: torch.dtype) -> tuple[SparseTensor, torch.Tensor, list[torch.Tensor]]:
        torch.manual_seed(1)
        down = {"kernel_size": (3, 3, 3), "stride": (2, 2, 2), "padding": (1, 1, 1)}
        if kind == "reduce":
            down = {"kernel_size": (3, 1, 1), "stride": (2, 1, 1), "padding": (0, 0, 0)}
        layers: list[nn.Module] = []
        if kind in ("submanifold", "thin"):
            layers = [SubmanifoldConv3d(c_in, c_out, (3, 3, 3), "a", backend)]
        else:
            layers = [SparseConv3d(c_in, c_out, stage="a", backend=backend, **down)]
        if kind == "inverse":
            layers.append(InverseConv3d(c_out, c_in, (3, 3, 3), "a", backend, stride=(2, 2, 2)))
        net = nn.Sequential(*layers).to(DEVICE, torch.float64 if dtype == torch.float64 else torch.float32)
        features = start.to(dtype).requires_grad_()
        result = net(SparseTensor(features, voxels.indices, voxels.spatial_shape, 1))
        return result, features, [layer.weight for layer in net]

    reference, reference_input, reference_weights = run(TorchBackend(), torch.float64)
    ours, our_input, our_weights = run(SpconvBackend(precision), torch.float32)
    a, b = align(ours, reference)
    cotangent = torch.randn(b.shape, device=DEVICE)
    expected = torch.autograd.grad((b * cotangent.double()).sum(), [reference_input, *reference_weights])
    found = torch.autograd.grad((a.float() * cotangent).sum(), [our_input, *our_weights])
    errors = {"output": relative_error(a, b)}
    errors |= {f"gradient {i}": relative_error(f, e) for i, (f, e) in enumerate(zip(found, expected, strict=True))}
    return errors


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


def on_tensor_cores(c_in: int, c_out: int) -> dict[str, bool]:
    """Say of the forward and the backward kernel that spconv tuned for a float32 layer whether it uses tensor cores."""
    from cumm import tensorview
    from spconv.core import ConvOpType
    from spconv.pytorch import ops

    float32 = [tensorview.float32] * 3
    passes = {"forward": ConvOpType.kForward, "backward": ConvOpType.kBackwardInput}
    found = {}
    for name, operation in passes.items():
        tuned, exists = ops.CONV_CPP.get_tuned_algo(
            operation.value, *float32, c_out, c_in, torch.cuda.get_device_capability()
        )
        assert exists, f"spconv has not run a float32 layer of {c_in} to {c_out} channels"
        found[name] = tuned.algo_desp.tensorop[0] > 0
    return found


def milliseconds(precision: Precision, voxels: SparseTensor, config: Config) -> float:
    """Median time of the backbone forward and backward, with the planning of its layers."""
    settings = config.model.backbone.model_dump() | {"backend": "spconv", "precision": precision}
    backbone = SparseBackbone(VoxelBackboneConfig(**settings), config.model.grid_size, DEVICE).to(DEVICE)
    times = []
    for _ in range(WARM_UPS + RUNS):
        torch.cuda.synchronize()
        start = time.perf_counter()
        backbone(SparseTensor(voxels.features, voxels.indices, voxels.spatial_shape, 1)).sum().backward()
        torch.cuda.synchronize()
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times[WARM_UPS:])


def backbone_errors(precision: Precision, voxels: SparseTensor, config: Config) -> dict[str, float]:
    settings = config.model.backbone.model_dump() | {"backend": "torch", "precision": "float32"}
    torch.manual_seed(0)
    reference = SparseBackbone(VoxelBackboneConfig(**settings), config.model.grid_size, DEVICE).to(DEVICE).double()
    settings |= {"backend": "spconv", "precision": precision}
    ours = SparseBackbone(VoxelBackboneConfig(**settings), config.model.grid_size, DEVICE).to(DEVICE)
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
    return errors


def network_errors(precision: Precision, voxels: SparseTensor, checkpoint: Path | None) -> dict[str, float]:
    """Maps of the whole detector, dense part in float64, and the gradients of all its weights.

    In float32 the dense part's own errors hide what is measured: 2e-4 of its gradients, with torch's convolutions.
    """
    made = []
    for backend, wanted in (("spconv", precision), ("torch", "float32")):
        settings = [f"model.backbone.backend={backend}", f"model.backbone.precision={wanted}", "multitask.method=sum"]
        made.append(build_detector(load_config("waymo_voxel", settings), DEVICE).train())
    ours, reference = made
    if checkpoint is not None:
        lacking, _ = ours.load_state_dict(read_weights(find_weights(checkpoint)).tensors, strict=False)
        assert not [name for name in lacking if not name.startswith("fork.")], lacking
    reference.load_state_dict(ours.state_dict())
    reference.double()
    for part in (ours.neck, ours.shared, ours.shared_norm, ours.heads):
        part.double()
    ours.neck.register_forward_pre_hook(lambda _module, inputs: (inputs[0].double(),))
    orders: list[torch.Tensor] = []
    masks: list[torch.Tensor] = []
    _instrument(ours, masks, replay=False)
    _note_indices(ours.backbone, orders)
    found = torch.cat(list(ours(voxels).maps.values()), dim=1)
    _instrument(reference, masks, replay=True)
    _replay_indices(reference.backbone, orders)
    fresh = SparseTensor(voxels.features.double(), voxels.indices, voxels.spatial_shape, 1)
    expected = torch.cat(list(reference(fresh).maps.values()), dim=1)
    assert not masks
    cotangent = torch.randn(expected.shape, device=DEVICE)
    errors = {"output": relative_error(found, expected)}
    (expected * cotangent.double()).sum().backward()
    (found * cotangent.double()).sum().backward()
    for (name, weight), other in zip(ours.named_parameters(), reference.parameters(), strict=True):
        assert weight.grad is not None
        assert other.grad is not None
        errors[name] = relative_error(weight.grad, other.grad)
    return errors


def _instrument(backbone: nn.Module, masks: list[torch.Tensor], replay: bool) -> None:
    for module in backbone.modules():
        if isinstance(getattr(module, "activation", None), nn.ReLU):
            module.activation = RecordedReLU(masks, replay)


def _strided_layers(backbone: nn.Module) -> list[SparseConv3d]:
    return [module for module in backbone.modules() if isinstance(module, SparseConv3d)]


def _note_indices(backbone: nn.Module, orders: list[torch.Tensor]) -> None:
    for layer in _strided_layers(backbone):
        layer.register_forward_hook(lambda _m, _i, result: orders.append(result.indices))


def _replay_indices(backbone: nn.Module, orders: list[torch.Tensor]) -> None:
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


def main() -> None:
    """Measure all layer kinds, the backbone and the network."""
    precision, shared, *more = sys.argv[1], *map(Path, sys.argv[2:])
    assert precision in get_args(Precision)
    config = load_config("waymo_voxel")
    voxels = read_voxels(shared, config)
    errors = {kind: layer_errors(kind, precision, voxels) for kind in KINDS}
    errors["backbone"] = backbone_errors(precision, voxels, config)
    errors["network"] = network_errors(precision, voxels, more[0] if more else None)
    report = {"voxels": len(voxels.features), "errors": errors, "milliseconds": milliseconds(precision, voxels, config)}
    if precision != "float16":  # which has tensor cores alone
        (thin_in, thin_out), (wide_in, wide_out) = KINDS["thin"], KINDS["submanifold"]
        wide_in *= 2 if precision == "tf32" else 1  # whose weights are two numbers each
        report["tensor_cores"] = {
            "thin": on_tensor_cores(thin_in, thin_out),
            "wide": on_tensor_cores(wide_in, wide_out),
        }
    sys.stdout.write(json.dumps(report) + "\n")


if __name__ == "__main__":
    main()
