"""Streets that cross the main one, with traffic that waits, arrives and leaves."""

from dataclasses import dataclass

import numpy as np

from detection3d.data.synthetic.motion import Arrive, Cruise, Depart, Mover
from detection3d.data.synthetic.population import draw_vehicle
from detection3d.data.synthetic.roadside import Cast
from detection3d.data.synthetic.scene import SceneConfig
from detection3d.data.synthetic.street import Path, straight_path
from detection3d.types.scene import ObjectType

_LENGTH = 90.0  # metres to either side of the main street
_HALF_WIDTH = 4.2


@dataclass(frozen=True)
class SideStreet:
    """One crossing street.

    Attributes:
        s: arc length on the main street where the middles cross, metres.
        lean: how far the crossing moves along the main street for each metre to its left.
        path: its middle line; arc length 0 is the crossing.
        stop: metres from the crossing where waiting vehicles stand.
    """

    s: float
    lean: float
    path: Path
    stop: float

    def blocks(self, s: float, offset: float, half_length: float) -> bool:
        """Tell whether something `half_length` metres to both sides of s, at an offset to the left, is in the way."""
        return abs(s - self.s - self.lean * offset) < _HALF_WIDTH + half_length + 1.0

    def fill(self, cast: Cast, drive: Cruise, config: SceneConfig) -> None:
        """Put vehicles on both arms, timed so that the recording vehicle meets some of them in motion."""
        generator = cast.generator
        passing = max(self.s, 0.0) / drive.speed
        for arm in (-1, 1):
            start = self.stop * arm
            time = passing + float(generator.uniform(-8.0, 8.0))
            arriving = Arrive(float(generator.uniform(4.0, 9.0)), time, float(generator.uniform(1.0, 2.0)))
            leaving = Depart(float(generator.uniform(4.0, 9.0)), time, float(generator.uniform(1.0, 2.0)))
            # Drivers keep to the right: those who come in on the positive arm drive against the path.
            for progress, direction in ((arriving, -arm), (leaving, arm)):
                offset = -direction * 0.5 * _HALF_WIDTH
                gap = 0.0
                for _ in range(int(generator.integers(0, 5))):
                    shape = draw_vehicle(generator)
                    gap += 0.5 * shape.size[0]
                    mover = Mover(self.path, start + arm * gap, offset, direction, progress)
                    cast.add(shape, mover, ObjectType.VEHICLE)
                    gap += 0.5 * shape.size[0] + float(generator.uniform(1.0, 0.35 * config.lane_gap))


def draw_side_streets(
    generator: np.random.Generator, street: Path, span: tuple[float, float], walkway_end: float
) -> tuple[SideStreet, ...]:
    """Draw the streets that cross the main street between `span`, metres of arc length.

    Args:
        generator: the scene's.
        street: the main street.
        span: first and last arc length.
        walkway_end: metres from the main street's middle at which side traffic may wait.
    """
    crossings = []
    s = span[0] + float(generator.uniform(20.0, 100.0))
    while s < span[1] - 20.0:
        x, y, heading = street.at(s, 0.0)
        turn = float(np.radians(generator.uniform(68.0, 112.0)))
        path = straight_path((x, y), heading + turn, _LENGTH)
        crossings.append(SideStreet(s, 1.0 / np.tan(turn), path, walkway_end / np.sin(turn) + 3.0))
        s += float(generator.uniform(70.0, 150.0))
    return tuple(crossings)
