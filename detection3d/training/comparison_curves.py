"""What the runs of a method logged on the way, as one curve for each quantity."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from detection3d.training.recorder import read_metrics

POINTS = 60
"""Points of a curve at most; neighbouring steps are averaged."""

QUANTITIES = {
    "Positions in conflict": "fork/conflict_share",
    "Cosine of the tasks' gradients, mean over pairs": "fork/cosine/",
    "Gradient kept at the fork, mean over tasks": "fork/kept_mass/",
    "Classification loss": "loss/classification",
    "Box loss": "loss/box",
    "Orientation loss": "loss/orientation",
}
"""Title to the name in metrics.jsonl; one that ends in a slash is the mean over all names that begin with it."""


def read_curves(files: Sequence[Path]) -> dict[str, tuple[list[float], list[float]]]:
    """Return the mean over runs of each quantity that they logged.

    Args:
        files: metrics.jsonl of each run.

    Returns:
        By title: steps and values, at most `POINTS` of each; values that were not finite are left out.
    """
    logs = [read_metrics(path) for path in files]
    curves = {}
    for title, name in QUANTITIES.items():
        by_step: dict[int, list[float]] = {}
        for row in (row for log in logs for row in log):
            value = _value(row, name)
            if value is not None:
                by_step.setdefault(row["step"], []).append(value)
        if by_step:
            steps = sorted(by_step)
            bins = np.array_split(np.arange(len(steps)), min(POINTS, len(steps)))
            means = np.array([np.mean(by_step[step]) for step in steps])
            places = np.array(steps, np.float64)
            curves[title] = [float(places[part].mean()) for part in bins], [float(means[part].mean()) for part in bins]
    return curves


def _value(row: dict[str, Any], name: str) -> float | None:
    names = [key for key in row if key.startswith(name)] if name.endswith("/") else [name]
    values = [row[key] for key in names if row.get(key) is not None]
    return float(np.mean(values)) if values else None
