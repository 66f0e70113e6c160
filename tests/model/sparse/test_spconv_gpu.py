"""spconv on a GPU against the float64 torch backend, on a real scan: every layer kind, backbone and detector."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from detection3d.model.sparse import SparseTensor, spconv_runs
from detection3d.model.sparse.spconv_backend import SpconvBackend
from detection3d.model.sparse.torch_backend import TorchBackend

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not spconv_runs(), reason="needs a CUDA device and spconv"),
]

TOLERANCE = {"float32": 1e-5, "tf32": 2e-3, "float16": 5e-3}
# At its first weights the dense part hands errors of the bird's-eye view on larger, relative to the largest value: 3 to
# 4.5 times at the maps, whatever computed the view (spconv, or torch in float32), and up to 8 times in gradients.
AMPLIFICATION = 8
MARK_OF_ROUNDING = 2e-5  # TF32 and float16 keep 11 bits: errors below this mean that operands were not rounded
ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("precision", list(TOLERANCE))
def test_errors(precision: str, shared: Path) -> None:
    """A process of its own for each precision: spconv keeps the kernels that it tuned first."""
    command = [sys.executable, str(Path(__file__).with_name("spconv_errors.py")), precision, str(shared)]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"}
    process = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert process.returncode == 0, process.stderr
    report = json.loads(process.stdout.splitlines()[-1])
    assert report["voxels"] >= 50_000
    sys.stdout.write(f"{precision:8} backbone forward and backward {report['milliseconds']:.1f} ms\n")
    assert set(report["errors"]) == {"submanifold", "strided", "reduce", "inverse", "thin", "backbone", "network"}
    for kind, errors in report["errors"].items():
        name, worst = max(errors.items(), key=lambda item: item[1])
        sys.stdout.write(f"{precision:8} {kind:12} output {errors['output']:.1e}, worst {name} {worst:.1e}\n")
        rounded = precision == "float16" or (precision == "tf32" and kind != "thin")
        tolerance = TOLERANCE[precision if rounded else "float32"]
        if kind == "network":
            assert errors["output"] <= AMPLIFICATION / 2 * tolerance
        assert worst <= tolerance * (AMPLIFICATION if kind == "network" else 1), (kind, name)
        telling = errors["output"] if kind == "network" else worst
        assert (telling > MARK_OF_ROUNDING) == rounded, f"{kind}: {telling:.1e} is not an error of {precision}"
    if precision != "float16":
        wide = precision == "tf32"
        assert report["tensor_cores"] == {
            "thin": {"forward": False, "backward": False},
            "wide": {"forward": wide, "backward": wide},
        }


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_tensors_may_lie_on_another_device_than_the_current_one() -> None:
    generator = torch.Generator().manual_seed(0)
    cells = torch.randperm(16 * 16 * 16, generator=generator)[:1000]
    indices = torch.stack([cells * 0, cells // 256, cells // 16 % 16, cells % 16], 1).int()
    features, weight = torch.randn(1000, 16, generator=generator), torch.randn(16, 3, 3, 3, 16, generator=generator)
    results = []
    for backend, device in ((SpconvBackend("float16"), "cuda:1"), (TorchBackend(), "cpu")):
        given, kernel = (values.to(device, copy=True).requires_grad_() for values in (features, weight))
        voxels = SparseTensor(given, indices.to(device), (16, 16, 16), 1)
        output = backend.convolve(given, kernel, backend.submanifold(voxels, "stage", (3, 3, 3)))
        gradients = torch.autograd.grad((output * features.to(device)).sum(), (given, kernel))
        results.append([output.cpu(), *(gradient.cpu() for gradient in gradients)])
    assert torch.cuda.current_device() == 0
    for found, expected in zip(*results, strict=True):
        assert (found - expected).abs().max() < TOLERANCE["float16"] * expected.abs().max()
