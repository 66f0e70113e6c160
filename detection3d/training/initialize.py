"""A new run begins with the weights of another one, as far as they fit."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn

from detection3d.errors import UserError
from detection3d.files import replace_file
from detection3d.training.state import TrainState
from detection3d.training.weights import find_weights, read_weights

_TOLD = 12  # tensors that are named on the terminal
OF_THE_RUN = "fork."  # the prefix of what belongs to a run's course: the step, and what the method learnt


@dataclass(frozen=True)
class Initialization:
    """What was taken over.

    Attributes:
        source: the file.
        step: of the other run.
        averaged: whether its averaged weights were taken.
        loaded: names of weights and statistics that were taken.
        skipped: why each of the others was not, by name.
    """

    source: str
    step: int
    averaged: bool
    loaded: tuple[str, ...]
    skipped: dict[str, str]

    def describe(self) -> str:
        """Say it in lines for a person."""
        kind = "averaged weights" if self.averaged else "weights"
        head = f"initialised from {self.source} (step {self.step}, {kind}): {len(self.loaded)} tensors taken"
        lines = [f"  not taken: {name}: {reason}" for name, reason in self.skipped.items()]
        if len(lines) > _TOLD:  # another backbone's would bury the line above
            lines[_TOLD:] = [
                f"  and {len(lines) - _TOLD} more not taken; initialized.json in the run's folder has them all"
            ]
        return "\n".join([head, *lines])


def initialize(state: TrainState, place: Path) -> Initialization:
    """Take the weights that fit by name and shape, into the model and its average.

    Args:
        state: of a new run, changed in place.
        place: a checkpoint, a run folder or an exported folder.

    Raises:
        UserError: no weight fits, or the file can't be read.
    """
    path = find_weights(place)
    weights = read_weights(path)
    own = state.model.state_dict()
    fitting, skipped = {}, {}
    for name, value in weights.tensors.items():
        if name.startswith(OF_THE_RUN):
            continue
        if name not in own:
            skipped[name] = "this network has none of that name"
        elif own[name].shape != value.shape:
            skipped[name] = f"shape {tuple(value.shape)} there, {tuple(own[name].shape)} here"
        else:
            fitting[name] = value
    missing = [name for name in own if name not in weights.tensors and not name.startswith(OF_THE_RUN)]
    skipped |= dict.fromkeys(missing, "not in the file; it keeps its first value")
    if not any(name in fitting for name, _ in state.model.named_parameters()):
        reasons = "; ".join(f"{name}: {reason}" for name, reason in list(skipped.items())[:3])
        count = len(weights.tensors)
        raise UserError(f"{path}: none of its {count} tensors fits the weights of this network ({reasons})")
    _load(state.model, fitting)
    if state.average is not None:
        _load(state.average.module, fitting)
    return Initialization(str(path), weights.step, weights.averaged, tuple(fitting), skipped)


def write_initialization(path: Path, initialization: Initialization) -> None:
    """Write `initialized.json`."""
    replace_file(path, (json.dumps(asdict(initialization), indent=1) + "\n").encode())


def refuse_forgotten(path: Path) -> None:
    """Stop where a run that began with other weights has no checkpoint yet and is started without them.

    Args:
        path: of the run's `initialized.json`.

    Raises:
        UserError: it is there.
    """
    if path.is_file():
        source = json.loads(path.read_text())["source"]
        raise UserError(
            f"{path.parent}: the run began with the weights of {source} and has no checkpoint yet; give"
            f" --initialize-from again, or delete {path} to begin with random ones"
        )


def _load(module: nn.Module, tensors: dict[str, torch.Tensor]) -> None:
    module.load_state_dict(tensors, strict=False)
