"""The weights that a detector is used with, from a checkpoint of a run or from an exported model."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from detection3d.errors import DataError, UserError
from detection3d.training.checkpoint import find_checkpoint, follow_pointer, load_checkpoint

AVERAGE_PREFIX = "module."  # AveragedModel's name for the model in it


@dataclass(frozen=True)
class Weights:
    """A detector's state dict, and where it comes from.

    Attributes:
        tensors: by name, on the CPU; the averaged ones where the run keeps them.
        step: optimiser steps done.
        averaged: whether they are averaged.
    """

    tensors: dict[str, Tensor]
    step: int
    averaged: bool


def read_weights(path: Path) -> Weights:
    """Read the weights of a checkpoint, or of a `model.safetensors` that tools/export.py wrote.

    Raises:
        DataError: the file is damaged, or something else.
    """
    if path.suffix == ".safetensors":
        return _read_exported(path)
    return used_weights(load_checkpoint(path))


def used_weights(saved: dict[str, Any]) -> Weights:
    """Return the weights that a loaded checkpoint is used with."""
    if saved["average"] is None:
        return Weights(saved["model"], saved["step"], averaged=False)
    averaged = saved["average"].items()
    tensors = {name.removeprefix(AVERAGE_PREFIX): value for name, value in averaged if name.startswith(AVERAGE_PREFIX)}
    return Weights(tensors, saved["step"], averaged=True)


def find_weights(place: Path) -> Path:
    """Return the file that is meant by a checkpoint or a pointer, a run folder (its last) or an exported folder.

    Raises:
        UserError: nothing like that is there.
    """
    if place.is_file():
        return follow_pointer(place)
    if not place.exists():
        raise UserError(f"{place}: no such checkpoint or folder")
    return find_checkpoint(place)


def _read_exported(path: Path) -> Weights:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            facts = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 not a dict
        return Weights(tensors, int(facts["step"]), facts["averaged"] == "true")
    except (SafetensorError, KeyError, ValueError) as error:
        raise DataError(path, f"not a model that tools/export.py wrote ({error}); export it again") from error
