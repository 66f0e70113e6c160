"""The ground and the lines that things stand on and move along.

The scene frame has z up and its origin at the start of the main street, which runs roughly along +x. A rotation about
z and a shift of some thousand metres take it to the global frame.
"""

import math
from dataclasses import dataclass

import numpy as np

from detection3d.types.scene import Float64Array

_STEP = 0.5  # metres between the knots of a path


@dataclass(frozen=True)
class Ground:
    """A smooth height field: a slope and three waves.

    Attributes:
        slope: (dz/dx, dz/dy).
        waves: float64 [3, 4], each (amplitude, wave number along x, along y, phase), in metres and radians.
    """

    slope: tuple[float, float]
    waves: Float64Array

    def height(self, x: float, y: float) -> float:
        """Return z at (x, y), metres."""
        z = self.slope[0] * x + self.slope[1] * y
        for amplitude, kx, ky, phase in self.waves:
            z += amplitude * math.sin(kx * x + ky * y + phase)
        return z

    def gradient(self, x: float, y: float) -> tuple[float, float]:
        """Return (dz/dx, dz/dy) at (x, y)."""
        gx, gy = self.slope
        for amplitude, kx, ky, phase in self.waves:
            cosine = amplitude * math.cos(kx * x + ky * y + phase)
            gx, gy = gx + kx * cosine, gy + ky * cosine
        return gx, gy

    def parameters(self) -> Float64Array:
        """Return float64 [14] for the ray caster: the slope, then the waves row by row."""
        return np.concatenate([self.slope, self.waves.ravel()])


def random_ground(generator: np.random.Generator) -> Ground:
    """Draw a ground whose steepness stays near one per cent, so that upright boxes fit what stands on it."""
    direction = generator.uniform(0, 2 * np.pi, 3)
    length = np.array([150.0, 45.0, 20.0]) * generator.uniform(0.8, 1.3, 3)
    amplitude = np.array([0.20, 0.04, 0.015]) * generator.uniform(0.5, 1.0, 3)
    number = 2 * np.pi / length
    waves = np.column_stack(
        [amplitude, number * np.cos(direction), number * np.sin(direction), generator.uniform(0, 2 * np.pi, 3)]
    )
    slope = generator.normal(0.0, 0.004, 2)
    return Ground((float(slope[0]), float(slope[1])), waves)


class Path:
    """A smooth line in the ground plane, by arc length s and offset d to its left.

    Between knots the position is a cubic Hermite curve, so speeds taken from positions are smooth.

    Args:
        start: (x, y) at s = 0, metres, scene frame.
        heading: direction at each knot, radians, float64 [K]; knots are half a metre apart from s = 0.
        first: s of the first knot, not above 0.
    """

    def __init__(self, start: tuple[float, float], heading: Float64Array, first: float = 0.0) -> None:
        middle = 0.5 * (heading[1:] + heading[:-1])
        steps = _STEP * np.column_stack([np.cos(middle), np.sin(middle)])
        line = np.vstack([np.zeros(2), np.cumsum(steps, axis=0)])
        origin = line[round(-first / _STEP)]
        self._line = line - origin + np.asarray(start)
        self._heading = heading
        self.first = first
        self.last = first + _STEP * (len(heading) - 1)

    def at(self, s: float, d: float) -> tuple[float, float, float]:
        """Return (x, y, heading) at arc length s and offset d.

        Beyond its ends the path goes on straight.
        """
        position = (s - self.first) / _STEP
        knot = min(max(int(position), 0), len(self._heading) - 2)
        u = position - knot
        a0, a1 = float(self._heading[knot]), float(self._heading[knot + 1])
        if 0.0 <= u <= 1.0:
            heading = a0 + u * (a1 - a0)
            (x0, y0), (x1, y1) = self._line[knot].tolist(), self._line[knot + 1].tolist()
            h1 = u * u * (3 - 2 * u)
            t0, t1 = _STEP * u * (1 - u) ** 2, -_STEP * u * u * (1 - u)
            x = x0 + h1 * (x1 - x0) + t0 * math.cos(a0) + t1 * math.cos(a1)
            y = y0 + h1 * (y1 - y0) + t0 * math.sin(a0) + t1 * math.sin(a1)
        else:
            end = knot if u < 0 else knot + 1
            heading = float(self._heading[end])
            excess = s - (self.first + _STEP * end)
            x, y = self._line[end].tolist()
            x, y = x + excess * math.cos(heading), y + excess * math.sin(heading)
        return x - d * math.sin(heading), y + d * math.cos(heading), heading


def winding_path(generator: np.random.Generator, first: float, last: float) -> Path:
    """Draw a street that swings gently to both sides of +x, from s = first (below 0) to last, metres."""
    first = _STEP * math.floor(first / _STEP)
    s = np.arange(first, last + _STEP, _STEP)
    swing = generator.uniform(0.05, 0.32)
    length = generator.uniform(240.0, 420.0)
    phase = generator.uniform(0, 2 * np.pi)
    return Path((0.0, 0.0), swing * np.sin(2 * np.pi * s / length + phase), first)


def straight_path(start: tuple[float, float], heading: float, half_length: float) -> Path:
    """Return a straight line through `start` that reaches `half_length` metres to both sides."""
    knots = 2 * math.ceil(half_length / _STEP) + 1
    return Path(start, np.full(knots, heading), -_STEP * (knots // 2))
