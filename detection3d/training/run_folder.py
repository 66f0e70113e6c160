"""The folder of a run: resolved config, provenance, logs and checkpoints, and whether it may go on."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from detection3d.config import Config
from detection3d.config_file import dump_config, load_config
from detection3d.errors import DataError, UserError
from detection3d.evaluation.provenance import describe_program
from detection3d.files import locked, remove_unfinished, replace_file

# What may differ when a run goes on: none of it changes the steps still to come.
FREE = (
    "data.validation",
    "data.workers",
    "training.log_every",
    "training.map_every",
    "training.checkpoint_every",
    "training.keep_checkpoints",
    "training.max_skipped_in_a_row",
    "training.evaluate_",
    "training.best_metric",
    "decode.",
)
LOCK = ".lock"
LOCK_PATIENCE = 90.0  # seconds: so long a file server keeps the lock of a node that has died (NFS's usual lease)
PACKAGES = ("detection3d", "torch", "numpy", "numba", "pyarrow", "spconv-cu126")


@dataclass(frozen=True)
class RunFolder:
    """Where the parts of a run lie.

    Attributes:
        root: the folder given with --output.
    """

    root: Path

    @property
    def config(self) -> Path:
        """The resolved config, complete."""
        return self.root / "config.yaml"

    @property
    def provenance(self) -> Path:
        """Commit, versions, hardware and seed, a list with one entry for each start."""
        return self.root / "provenance.json"

    @property
    def metrics(self) -> Path:
        """One JSON object a line, one line for each logged step."""
        return self.root / "metrics.jsonl"

    @property
    def non_finite(self) -> Path:
        """Steps that were left out as not finite, with their frames; only there if some were."""
        return self.root / "non_finite.json"

    @property
    def tensorboard(self) -> Path:
        """TensorBoard's event files."""
        return self.root / "tensorboard"

    @property
    def conflict(self) -> Path:
        """Maps of the tasks' conflict, one file each."""
        return self.root / "conflict"

    @property
    def errors(self) -> Path:
        """What each rank ended with, one file for each that did not end well."""
        return self.root / "errors"

    @property
    def stopped(self) -> Path:
        """Says at which step the run was told to stop; only there until it goes on. Batch scripts look for it."""
        return self.root / "stopped"

    @property
    def evaluation(self) -> Path:
        """Evaluations, a folder for each step."""
        return self.root / "evaluation"

    @property
    def checkpoints(self) -> Path:
        """Checkpoints and the pointer to the last one."""
        return self.root / "checkpoints"


@contextmanager
def open_run(root: Path, config: Config) -> Iterator[RunFolder]:
    """Make the folder of a new run, or check that the run in it is the one that `config` describes; and hold it.

    Raises:
        UserError: a run with other settings is there, and they are listed; or another process is training in it.
    """
    folder = RunFolder(root)
    if folder.config.is_file():
        _refuse_changes(folder, config)
    elif root.exists() and not root.is_dir():
        raise UserError(f"{root}: a file stands where the run's folder should be; choose another with --output")
    elif root.is_dir() and any(not entry.name.startswith(".") for entry in root.iterdir()):
        raise UserError(f"{root}: not empty, and not a run of detection3d; choose another folder with --output")
    root.mkdir(parents=True, exist_ok=True)
    refusal = f"{root}: another process is training in it; wait for it or choose another --output"
    with locked(root / LOCK, refusal, LOCK_PATIENCE):
        remove_unfinished(root)
        folder.stopped.unlink(missing_ok=True)
        replace_file(folder.config, dump_config(config).encode())
        yield folder


def mark_stopped(folder: RunFolder, step: int) -> None:
    """Leave word that the run was told to stop, and is to be started again."""
    replace_file(folder.stopped, f"stopped at step {step}; run the same command to go on\n".encode())


def add_provenance(folder: RunFolder, config: Config, device: torch.device, step: int, ranks: int = 1) -> None:
    """Note what this start of the run runs on."""
    try:
        starts = json.loads(folder.provenance.read_text()) if folder.provenance.is_file() else []
    except ValueError as error:
        raise DataError(
            folder.provenance, f"not JSON ({error}); delete it to go on without the earlier starts"
        ) from error
    starts.append({"step": step, "seed": config.seed, "ranks": ranks, **describe_environment(device)})
    replace_file(folder.provenance, json.dumps(starts, indent=2).encode())


def describe_environment(device: torch.device) -> dict[str, Any]:
    """Return commit, versions and hardware, as plain values."""
    program = describe_program(PACKAGES)
    if device.type == "cuda":
        program["device"] = torch.cuda.get_device_name(device)
    return {**program, "threads": torch.get_num_threads()}


def _refuse_changes(folder: RunFolder, config: Config) -> None:
    before = _flatten(load_config(folder.config).model_dump(mode="json"))
    now = _flatten(config.model_dump(mode="json"))
    changed = [
        f"  {key}: {before.get(key)} -> {now.get(key)}"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key) and not key.startswith(FREE)
    ]
    if changed:
        raise UserError(
            f"{folder.root} holds a run with other settings, so it can't go on:\n"
            + "\n".join(changed)
            + "\nstart a new run in another folder (--output), or use the same settings"
        )


def _flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, Mapping):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    else:
        return {prefix: value}
    flat: dict[str, Any] = {}
    for key, item in items:
        flat |= _flatten(item, f"{prefix}.{key}" if prefix else str(key))
    return flat
