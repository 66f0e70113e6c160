"""The maps of conflict of a run, one file each: `conflict/00001400.npz` was measured in step 1400."""

import io
import re
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from detection3d.errors import DataError
from detection3d.evaluation.reporting.conflict_figures import ConflictView
from detection3d.files import remove_unfinished, replace_file
from detection3d.multitask import ConflictMap

NAME = re.compile(r"(\d{8})\.npz")


def conflict_view(step: int, conflict: ConflictMap, point_range: Sequence[float]) -> ConflictView:
    """Return a map that was measured at the fork, with its place in the vehicle frame.

    Args:
        step: when it was measured.
        conflict: the map, H along y and W along x.
        point_range: x, y, z from; x, y, z to, metres; what the map covers.
    """
    x_from, y_from, _, x_to, y_to, _ = point_range
    return ConflictView(
        step, conflict.mass.float().numpy(), conflict.cancelled.float().numpy(), (x_from, y_from, x_to, y_to)
    )


def save_conflict(folder: Path, view: ConflictView) -> Path:
    """Write a map: mass and cancelled, float32 [H, W], and extent, float64 [4], x and y from, x and y to, in metres.

    Raises:
        OSError: the disk is full or the folder not writable.
    """
    content = io.BytesIO()
    np.savez_compressed(content, mass=view.mass, cancelled=view.cancelled, extent=np.asarray(view.extent, np.float64))
    folder.mkdir(exist_ok=True)
    path = folder / f"{view.step:08d}.npz"
    replace_file(path, content.getbuffer())
    return path


def load_conflict(path: Path) -> ConflictView:
    """Read a map.

    Raises:
        DataError: the file is damaged or no map.
    """
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as arrays:
            x_from, y_from, x_to, y_to = (float(value) for value in arrays["extent"])
            return ConflictView(int(path.stem), arrays["mass"], arrays["cancelled"], (x_from, y_from, x_to, y_to))
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(path, f"not a map of conflict ({error}); delete it to go on without it") from error


def list_conflicts(folder: Path) -> list[Path]:
    """Return the maps' files in the order of their steps."""
    return sorted(path for path in folder.glob("*.npz") if NAME.fullmatch(path.name))


def last_conflict(folder: Path, step: int) -> ConflictView | None:
    """Return the newest map of step `step` or before that holds finite numbers, None if there is none.

    In float16 a gradient may overflow; the step is left out then, but its map is there.

    Raises:
        DataError: a file is damaged.
    """
    for path in reversed(list_conflicts(folder)):
        if int(path.stem) <= step:
            view = load_conflict(path)
            if np.isfinite(view.mass).all():
                return view
    return None


def forget_conflicts(folder: Path, step: int) -> None:
    """Remove the maps of the steps after `step`, which an interrupted run takes back, and those half written."""
    remove_unfinished(folder)
    for path in list_conflicts(folder):
        if int(path.stem) > step:
            path.unlink()
