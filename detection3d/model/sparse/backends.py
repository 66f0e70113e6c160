"""Which implementation runs the sparse convolutions."""

from importlib.util import find_spec
from typing import Literal

import torch

from detection3d.errors import UserError
from detection3d.model.sparse.spconv_backend import Precision, SpconvBackend
from detection3d.model.sparse.torch_backend import TorchBackend

Backend = TorchBackend | SpconvBackend


def spconv_runs() -> bool:
    """Say whether spconv can run here: on a CUDA device, where it is installed."""
    return torch.cuda.is_available() and find_spec("spconv") is not None


def build_backend(wanted: Literal["auto", "torch", "spconv"], precision: Precision, device: torch.device) -> Backend:
    """Return the backend that a config asks for.

    Args:
        wanted: "auto" takes spconv on CUDA where it is installed, else torch.
        precision: of spconv's products; the torch backend computes in the features' own precision.
        device: where the layers will run.

    Raises:
        UserError: spconv is asked for where it can't run.
    """
    if wanted == "torch" or (wanted == "auto" and not (device.type == "cuda" and spconv_runs())):
        return TorchBackend()
    if device.type != "cuda":
        raise UserError(f"model.backbone.backend=spconv needs a CUDA device, found {device}; use auto or torch")
    if find_spec("spconv") is None:
        raise UserError("model.backbone.backend=spconv: spconv is not installed; pip install 'detection3d[gpu]'")
    return SpconvBackend(precision)
