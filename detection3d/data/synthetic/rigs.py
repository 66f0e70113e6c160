"""The lidars on the recording vehicle: Waymo's five, in full and in a size for one CPU.

Mounts follow the calibrations in Waymo's public frames: TOP on the roof, the others at the bumpers and front wings,
each looking outwards. The vehicle frame's origin is under the rear axle.
"""

from dataclasses import dataclass

import numpy as np

from detection3d.geometry.host.poses import pose_from_angles
from detection3d.types.scene import Float64Array, Lidar

SWEEP_SECONDS = 0.1  # one turn of a lidar, whatever the time between frames


@dataclass(frozen=True)
class LidarConfig:
    """One lidar.

    Attributes:
        name: which of Waymo's lidars.
        mount: (x, y, z) in the vehicle frame, metres.
        angles: (roll, pitch, yaw) of the mount, radians.
        inclinations: H beam inclinations, ascending, radians.
        columns: width W of the range image, which covers the full turn.
        max_range: metres; nothing farther returns.
        bright_range: metres at which a white wall, met squarely, returns as surely as anything up close.
        half_view: radians to either side of the lidar's x axis that its housing leaves free.
        fill: share of the pixels that carry a shot; short-range lidars don't scan on the grid of their image.
        uniform: whether the calibration gives the inclinations by minimum and maximum alone.
        per_column_pose: whether the vehicle's motion during the sweep is in the image (TOP).
    """

    name: Lidar
    mount: tuple[float, float, float]
    angles: tuple[float, float, float]
    inclinations: tuple[float, ...]
    columns: int
    max_range: float
    bright_range: float
    half_view: float = float(np.pi)
    fill: float = 1.0
    uniform: bool = False
    per_column_pose: bool = False

    @property
    def rows(self) -> int:
        """Height H of the range image."""
        return len(self.inclinations)

    @property
    def extrinsic(self) -> Float64Array:
        """Lidar to vehicle, float64 [4, 4]."""
        return pose_from_angles(self.angles, self.mount)

    @property
    def inclination_limits(self) -> tuple[float, float]:
        """Smallest and largest inclination as the calibration states them; the edges of the image where uniform."""
        low, high = self.inclinations[0], self.inclinations[-1]
        margin = 0.5 * (high - low) / (self.rows - 1) if self.uniform else 0.0
        return low - margin, high + margin

    def azimuths(self) -> Float64Array:
        """Return each column's azimuth in the lidar frame, float64 [W], as Waymo's `range_image_utils` has it.

        A column stands for a direction in the vehicle frame, pi at the left edge and falling, so the mount's yaw is
        taken off.
        """
        column = np.arange(self.columns, dtype=np.float64)
        direction = ((self.columns - column - 0.5) / self.columns * 2.0 - 1.0) * np.pi
        extrinsic = self.extrinsic
        return direction - np.arctan2(extrinsic[1, 0], extrinsic[0, 0])


@dataclass(frozen=True)
class RigConfig:
    """The lidars of one vehicle, in ascending order of their number."""

    name: str
    lidars: tuple[LidarConfig, ...]

    @property
    def max_range(self) -> float:
        """Largest range of any lidar, metres."""
        return max(lidar.max_range for lidar in self.lidars)


def full_rig() -> RigConfig:
    """Return Waymo's arrangement: TOP 64 x 2650 out to 75 m, four 200 x 600 out to 20 m."""
    top = _top(_dense_near_horizon(64, -17.6, 2.4), columns=2650, max_range=75.0)
    return RigConfig("full", (top, *_short_range(rows=200, columns=600, max_range=20.0, fill=0.25)))


def tiny_rig() -> RigConfig:
    """Return the same five lidars with about 7,000 points a frame out to 20 m, for training on a CPU."""
    top = _top(_dense_near_horizon(22, -20.0, 2.6), columns=480, max_range=20.0)
    return RigConfig("tiny", (top, *_short_range(rows=10, columns=32, max_range=10.0, fill=1.0)))


def _top(inclinations: tuple[float, ...], columns: int, max_range: float) -> LidarConfig:
    return LidarConfig(
        name=Lidar.TOP,
        mount=(1.43, 0.0, 2.18),
        angles=(0.003, -0.002, 2.59),
        inclinations=inclinations,
        columns=columns,
        max_range=max_range,
        bright_range=75.0,
        per_column_pose=True,
    )


def _short_range(rows: int, columns: int, max_range: float, fill: float) -> tuple[LidarConfig, ...]:
    edges = np.linspace(-np.pi / 2, np.pi / 6, rows + 1)
    centres = tuple((0.5 * (edges[1:] + edges[:-1])).tolist())
    mounts = (
        (Lidar.FRONT, (4.07, 0.0, 0.69), (0.004, 0.018, -0.01)),
        (Lidar.SIDE_LEFT, (3.245, 1.025, 0.98), (-0.004, 0.02, np.pi / 2 - 0.03)),
        (Lidar.SIDE_RIGHT, (3.245, -1.025, 0.98), (0.006, 0.019, -np.pi / 2 + 0.02)),
        (Lidar.REAR, (-1.155, 0.0, 0.466), (0.008, 0.015, np.pi - 0.02)),
    )
    return tuple(
        LidarConfig(
            name=name,
            mount=mount,
            angles=angles,
            inclinations=centres,
            columns=columns,
            max_range=max_range,
            bright_range=25.0,
            half_view=float(np.radians(95.0)),
            fill=fill,
            uniform=True,
        )
        for name, mount, angles in mounts
    )


def _dense_near_horizon(rows: int, low: float, high: float) -> tuple[float, ...]:
    """Return ascending inclinations whose spacing falls to about a quarter from the lowest beam to the highest."""
    spacing = 0.17 + 0.45 * np.exp(-np.linspace(0.0, 3.5, rows - 1))
    position = np.concatenate([[0.0], np.cumsum(spacing)])
    return tuple(np.radians(low + (high - low) * position / position[-1]).tolist())
