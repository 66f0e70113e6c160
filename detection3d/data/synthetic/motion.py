"""How things move: analytic functions of time, so that any moment of a segment can be looked at by itself.

Speeds and accelerations are central differences of the positions, so they fit the motion by construction.
"""

import math
from dataclasses import dataclass

import numpy as np

from detection3d.data.synthetic.street import Ground, Path
from detection3d.types.scene import Float64Array

_SPEED_STEP = 0.02  # seconds to either side
_ACCELERATION_STEP = 0.1


@dataclass(frozen=True)
class Cruise:
    """Travel at a speed that swings about its mean and never turns back.

    Attributes:
        speed: mean, m/s.
        swing: share of the mean by which the speed swings, below 1.
        period: seconds.
        phase: radians.
    """

    speed: float
    swing: float = 0.0
    period: float = 20.0
    phase: float = 0.0

    def distance(self, time: float) -> float:
        """Return metres travelled since time 0."""
        pulse = 2 * math.pi / self.period
        ripple = math.cos(self.phase) - math.cos(pulse * time + self.phase)
        return self.speed * (time + self.swing / pulse * ripple)


@dataclass(frozen=True)
class Arrive:
    """Come to rest at distance 0, from behind.

    Attributes:
        speed: m/s, long before the stop.
        stop: the time around which the brakes are on, seconds.
        ease: seconds that braking takes, roughly a quarter of it.
    """

    speed: float
    stop: float
    ease: float

    def distance(self, time: float) -> float:
        """Return metres beyond the place of rest: negative, rising to 0."""
        return -self.speed * self.ease * _softplus((self.stop - time) / self.ease)


@dataclass(frozen=True)
class Depart:
    """Leave from rest at distance 0.

    Attributes:
        speed: m/s, long after the start.
        start: the time around which it gathers speed, seconds.
        ease: seconds that gathering speed takes, roughly a quarter of it.
    """

    speed: float
    start: float
    ease: float

    def distance(self, time: float) -> float:
        """Return metres travelled."""
        return self.speed * self.ease * _softplus((time - self.start) / self.ease)


@dataclass(frozen=True)
class Parked:
    """Stand still at (x, y), metres, facing `heading`, scene frame."""

    x: float
    y: float
    heading: float

    def at(self, time: float) -> tuple[float, float, float]:
        """Return (x, y, heading) at `time`."""
        del time
        return self.x, self.y, self.heading


@dataclass(frozen=True)
class Mover:
    """Move along a path.

    Attributes:
        path: the line.
        start: arc length at progress 0, metres.
        offset: metres to the left of the line.
        direction: 1 along the line, -1 against it.
        progress: how far at what time.
        turn: radians that the thing faces to the left of where it goes.
    """

    path: Path
    start: float
    offset: float
    direction: int
    progress: Cruise | Arrive | Depart
    turn: float = 0.0

    def at(self, time: float) -> tuple[float, float, float]:
        """Return (x, y, heading) at `time`."""
        s = self.start + self.direction * self.progress.distance(time)
        x, y, heading = self.path.at(s, self.offset)
        if self.direction < 0:
            heading += math.pi
        return x, y, heading + self.turn


def velocity_and_acceleration(motion: Parked | Mover, ground: Ground, time: float) -> tuple[Float64Array, Float64Array]:
    """Return velocity (m/s) and acceleration (m/s^2) at `time`, each float64 [3], scene frame."""
    if isinstance(motion, Parked):
        return np.zeros(3), np.zeros(3)
    h, k = _SPEED_STEP, _ACCELERATION_STEP
    before, after = _position(motion, ground, time - h), _position(motion, ground, time + h)
    now, past, future = (_position(motion, ground, moment) for moment in (time, time - k, time + k))
    return (after - before) / (2 * h), (future - 2 * now + past) / (k * k)


def vehicle_poses(motion: Parked | Mover, ground: Ground, times: Float64Array) -> Float64Array:
    """Return roll, pitch, yaw, x, y, z of a vehicle that follows the ground, float64 [T, 6], scene frame."""
    poses = np.empty((len(times), 6))
    for row, time in zip(poses, times.tolist(), strict=True):
        x, y, yaw = motion.at(time)
        gx, gy = ground.gradient(x, y)
        cosine, sine = math.cos(yaw), math.sin(yaw)
        pitch = -math.atan(gx * cosine + gy * sine)
        roll = math.atan(gy * cosine - gx * sine)
        row[:] = roll, pitch, yaw, x, y, ground.height(x, y)
    return poses


def _position(motion: Mover, ground: Ground, time: float) -> Float64Array:
    x, y, _ = motion.at(time)
    return np.array([x, y, ground.height(x, y)])


def _softplus(value: float) -> float:
    return max(value, 0.0) + math.log1p(math.exp(-abs(value)))
