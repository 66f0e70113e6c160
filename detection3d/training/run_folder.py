"""The folder of a run: resolved config, provenance, logs and checkpoints, and whether it may go on."""

import json
from collections.abc import Iterator, Mapping, Sequence
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
from detection3d.training.checkpoint import EXPORTED, last_checkpoint

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
    "logging.",
)
# What may not differ even where changes are allowed: the weights and the optimiser's moments belong to it.
FIXED = ("model.", "classes", "training.freeze")
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
    def initialized(self) -> Path:
        """Which weights the run began with; only there if they were those of another run."""
        return self.root / "initialized.json"

    @property
    def non_finite(self) -> Path:
        """Steps that were left out as not finite, with their frames; only there if some were."""
        return self.root / "non_finite.json"

    @property
    def tensorboard(self) -> Path:
        """TensorBoard's event files."""
        return self.root / "tensorboard"

    @property
    def profile(self) -> Path:
        """Traces of steps that --profile asked for."""
        return self.root / "profile"

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
def open_run(root: Path, config: Config, *, allow_changes: bool = False) -> Iterator[RunFolder]:
    """Make the folder of a new run, or check that the run in it is the one that `config` describes; and hold it.

    Args:
        root: the folder.
        config: the run.
        allow_changes: let settings differ that may; `write_config` is left to the caller, who can use them or not.

    Raises:
        UserError: a run with other settings is there, and they are listed; or another process is training in it.
    """
    folder = RunFolder(root)
    if (root / EXPORTED).is_file():
        raise UserError(
            f"{root}: an exported model; choose another folder with --output, and begin with its weights by"
            f" --initialize-from {root}"
        )
    changes = changed_settings(folder, config)
    if folder.config.is_file():
        refused = [change for change in changes if not allow_changes or change.startswith(FIXED)]
        _refuse_changes(folder, refused, changes)
    elif root.exists() and not root.is_dir():
        raise UserError(f"{root}: a file stands where the run's folder should be; choose another with --output")
    elif root.is_dir() and any(not entry.name.startswith(".") for entry in root.iterdir()):
        raise UserError(f"{root}: not empty, and not a run of detection3d; choose another folder with --output")
    root.mkdir(parents=True, exist_ok=True)
    refusal = f"{root}: another process is training in it; wait for it or choose another --output"
    with locked(root / LOCK, refusal, LOCK_PATIENCE):
        remove_unfinished(root)
        folder.stopped.unlink(missing_ok=True)
        if not changes:
            write_config(folder, config)
        yield folder


def write_config(folder: RunFolder, config: Config) -> None:
    """Write the resolved config."""
    replace_file(folder.config, dump_config(config).encode())


def mark_stopped(folder: RunFolder, step: int) -> None:
    """Leave word that the run was told to stop, and is to be started again."""
    replace_file(folder.stopped, f"stopped at step {step}; run the same command to go on\n".encode())


def add_provenance(
    folder: RunFolder, config: Config, device: torch.device, step: int, ranks: int = 1, changes: Sequence[str] = ()
) -> None:
    """Note what this start of the run runs on, and what it changed of the run's settings."""
    try:
        starts = json.loads(folder.provenance.read_text()) if folder.provenance.is_file() else []
    except ValueError as error:
        raise DataError(
            folder.provenance, f"not JSON ({error}); delete it to go on without the earlier starts"
        ) from error
    start = {"step": step, "seed": config.seed, "ranks": ranks, **describe_environment(device)}
    starts.append({**start, "changes": list(changes)} if changes else start)
    replace_file(folder.provenance, json.dumps(starts, indent=2).encode())


def describe_environment(device: torch.device) -> dict[str, Any]:
    """Return commit, versions and hardware, as plain values."""
    program = describe_program(PACKAGES)
    if device.type == "cuda":
        program["device"] = torch.cuda.get_device_name(device)
    return {**program, "threads": torch.get_num_threads()}


def changed_settings(folder: RunFolder, config: Config) -> list[str]:
    """Return what differs from the run in the folder, as `key: before -> now`; nothing where there is none.

    Args:
        folder: of the run.
        config: as it is to go on.
    """
    if not folder.config.is_file():
        return []
    before = _flatten(load_config(folder.config).model_dump(mode="json"))
    now = _flatten(config.model_dump(mode="json"))
    return [
        f"{key}: {before.get(key)} -> {now.get(key)}"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key) and not key.startswith(FREE)
    ]


def _refuse_changes(folder: RunFolder, refused: Sequence[str], changes: Sequence[str]) -> None:
    if not refused:
        return
    advice = "or use the same settings"
    if last_checkpoint(folder.checkpoints) is None:
        advice += f"; it has no checkpoint yet, so deleting {folder.root} costs no training"
    if not any(change.startswith(FIXED) for change in changes):
        advice += "; --allow-changes goes on with the new ones all the same, and notes them in provenance.json"
    raise UserError(
        f"{folder.root} holds a run with other settings, so it can't go on:\n"
        + "\n".join(f"  {change}" for change in refused)
        + f"\nstart a new run in another folder (--output), {advice}"
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
