"""Checkpoints: everything that the rest of the run depends on, written so that a crash never costs the last one."""

import errno
import io
import os
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from detection3d.errors import DataError, UserError
from detection3d.files import remove_unfinished, replace_file
from detection3d.training.best import POINTER as BEST_POINTER
from detection3d.training.best import find_best, read_best

EXPORTED = "model.safetensors"  # in the folder of an exported model
POINTER = "last"  # a text file that names the newest complete checkpoint
NAME = re.compile(r"step_(\d{8})\.pt")
SCHEMA = 1


def checkpoint_path(folder: Path, step: int) -> Path:
    """Return the place of a step's checkpoint."""
    return folder / f"step_{step:08d}.pt"


def save_checkpoint(folder: Path, step: int, state: dict[str, Any], keep: int) -> Path:
    """Write `step_XXXXXXXX.pt`, point `last` at it and remove the oldest ones but the best.

    The file is written beside its place, flushed to the disk and renamed, so that a checkpoint that is visible is
    whole. Whatever goes wrong, earlier checkpoints stay.

    Args:
        folder: the run's folder of checkpoints.
        step: optimiser steps done.
        state: tensors and plain values.
        keep: checkpoints to keep, the new one included.

    Raises:
        OSError: the disk is full or not writable.
    """
    path = checkpoint_path(folder, step)
    buffer = io.BytesIO()  # torch reports a full disk as a RuntimeError without a reason; plain file writing tells
    torch.save({"schema": SCHEMA, "step": step, **state}, buffer)
    folder.mkdir(parents=True, exist_ok=True)
    remove_unfinished(folder)
    replace_file(path, buffer.getbuffer())
    replace_file(folder / POINTER, path.name.encode())
    best = None if (found := read_best(folder)) is None else found.checkpoint
    for old in list_checkpoints(folder)[:-keep]:
        if old != path and old.name != best:  # newer ones may stand here where the run was taken up from an earlier one
            old.unlink()
    return path


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint, tensors on the CPU.

    Raises:
        DataError: the file is damaged, or of another version.
    """
    _check_content(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:
        reason = str(error).strip().partition(".")[0]
        raise DataError(path, f"not a checkpoint of detection3d ({reason}); {_advice(path)}") from error
    if not isinstance(state, dict) or state.get("schema") != SCHEMA:
        raise DataError(path, f"not a checkpoint of this version of detection3d; {_advice(path)}")
    return state


def last_checkpoint(folder: Path) -> Path | None:
    """Return the checkpoint that `last` names, or the newest where the pointer is missing; None without any."""
    found = list_checkpoints(folder)
    pointer = folder / POINTER
    if pointer.is_file():
        named = folder / pointer.read_text(errors="replace").strip()
        if named in found:
            return named
    return found[-1] if found else None


def find_checkpoint(run: Path, wanted: str = POINTER) -> Path:
    """Return a checkpoint of a run.

    Args:
        run: its folder.
        wanted: "last", "best", or a file; an exported model has one alone.

    Raises:
        UserError: the folder is not a run, or has no checkpoint yet.
    """
    if not run.is_dir():
        raise UserError(f"{run}: no such run folder; it is what tools/train.py writes with --output")
    if (run / EXPORTED).is_file() and wanted in (POINTER, "best"):
        return run / EXPORTED  # the one there is
    if wanted == "best":
        return find_best(run)
    if wanted != POINTER:
        return _file(Path(wanted), run)
    found = last_checkpoint(run / "checkpoints")
    if found is None:
        raise UserError(f"{run}: no checkpoint in {run / 'checkpoints'}; train first, or wait for the first one")
    return found


def follow_pointer(path: Path) -> Path:
    """Return the checkpoint that `checkpoints/last` or `best` names, and any other file as it is.

    Raises:
        UserError: the checkpoint that it names is not there.
    """
    if path.name not in (POINTER, BEST_POINTER):
        return path
    return find_checkpoint(path.absolute().parent.parent, path.name)


def _file(path: Path, run: Path) -> Path:
    """Return the file that is meant: where it says, or by that name among the run's checkpoints."""
    for candidate in (path, run / "checkpoints" / path):
        if candidate.is_file():
            return follow_pointer(candidate)
    raise UserError(f"{path}: no such checkpoint; give last, best, or one of the files in {run / 'checkpoints'}")


def list_checkpoints(folder: Path) -> list[Path]:
    """Return the complete checkpoints in ascending order of steps."""
    if not folder.is_dir():
        return []
    return sorted(Path(entry.path) for entry in os.scandir(folder) if NAME.fullmatch(entry.name))


def _advice(path: Path) -> str:
    """Return what to do about a file that is no checkpoint: nobody else's file shall be deleted."""
    return "delete it to use the one before" if NAME.fullmatch(path.name) else "give one that tools/train.py wrote"


def _check_content(path: Path) -> None:
    """Compare every part of the file with its checksum, which torch writes but does not look at."""
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    # Damage in the archive's own tables ends in errors of many types; an offset before the file's start is an OSError.
    except Exception as error:
        if isinstance(error, OSError) and error.errno != errno.EINVAL:
            raise
        raise DataError(path, f"not a checkpoint, or cut off ({error}); {_advice(path)}") from error
    if damaged is not None:
        raise DataError(path, f"damaged: its part {damaged} does not match its checksum; {_advice(path)}")


@contextmanager
def fitting(checkpoint: Path, refusal: str) -> Iterator[None]:
    """Turn what torch says of states that do not fit into one line about the checkpoint.

    Args:
        checkpoint: where the states come from.
        refusal: what is wrong and what to do, with `{reason}` in the place of torch's own words.

    Raises:
        DataError: the states do not fit.
        torch.OutOfMemoryError: the device is full, which is not the checkpoint's fault.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (KeyError, RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[-1].strip()  # torch has one line for each weight
        raise DataError(checkpoint, refusal.format(reason=reason)) from error
