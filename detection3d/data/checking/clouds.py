"""What a frame's points are like as a whole: their spread, the ground, and their intensities."""

from dataclasses import dataclass

import numpy as np

from detection3d.data.checking.fitting import cell_floors
from detection3d.data.packing import STEP
from detection3d.types.scene import Float32Array, Float64Array

REACH = 32767 * STEP
"""Metres that the store can keep, on every axis."""

FEWEST = 100
"""Points of a frame that say something of it as a whole."""

_NEAR = 15.0  # metres around the origin where the ground is looked for
_CELL_POINTS = 20  # cells with fewer see a wall, or a roof, and no ground


@dataclass(frozen=True)
class Cloud:
    """A frame's points in figures.

    Attributes:
        points: number of those that are finite.
        beyond: of these, those that the store can't keep.
        spread: metres between the 5th and the 95th percentile along x, y, z.
        above: metres from the most frequent x, y, z up to the 99th percentile.
        below: likewise, down to the 1st.
        ground: median z of the ground around the origin, metres; NaN where there is none.
        lit: share of points with an intensity other than 0.
        intensity: the median of those.
        bright: their 99th percentile.
    """

    points: int
    beyond: int
    spread: tuple[float, float, float]
    above: tuple[float, float, float]
    below: tuple[float, float, float]
    ground: float
    lit: float
    intensity: float
    bright: float


def describe(points: Float32Array) -> Cloud | None:
    """Describe points, float32 [N, 5]; None where there are too few."""
    points = points[np.isfinite(points).all(axis=1)]
    if len(points) < FEWEST:
        return None
    low, fifth, high, most = np.percentile(points[:, :3].astype(np.float64), (1, 5, 95, 99), axis=0)
    mode = np.array([_mode(points[:, axis]) for axis in range(3)])
    lit = points[points[:, 3] != 0, 3]
    return Cloud(
        len(points),
        int((np.abs(points[:, :3]) > REACH).any(axis=1).sum()),
        _three(high - fifth),
        _three(most - mode),
        _three(mode - low),
        _ground(points),
        len(lit) / len(points),
        float(np.median(lit)) if len(lit) else 0.0,
        float(np.percentile(lit, 99)) if len(lit) else 0.0,
    )


def _ground(points: Float32Array) -> float:
    near = points[np.hypot(points[:, 0], points[:, 1]) < _NEAR]
    cell, floors = cell_floors(near)
    enough = np.bincount(cell, minlength=len(floors)) >= _CELL_POINTS
    return float(np.median(floors[enough])) if enough.any() else float("nan")


def _mode(values: Float32Array) -> float:
    """Return the middle of the most frequent tenth of the range between the 1st and 99th percentile."""
    low, high = np.percentile(values, (1, 99))
    if high <= low:
        return float(low)
    counts, edges = np.histogram(values, 25, (float(low), float(high)))
    fullest = int(counts.argmax())
    return float(edges[fullest] + edges[fullest + 1]) / 2


def _three(values: Float64Array) -> tuple[float, float, float]:
    x, y, z = values.tolist()
    return x, y, z
