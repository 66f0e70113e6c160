"""What lines a street: parked vehicles, and the plots behind the walkways."""

import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from detection3d.data.synthetic.motion import Mover, Parked
from detection3d.data.synthetic.population import (
    draw_building,
    draw_bush,
    draw_car,
    draw_clutter,
    draw_cyclist,
    draw_pedestrian,
    draw_pole,
    draw_tree,
    draw_vehicle,
    draw_wall,
)
from detection3d.data.synthetic.scene import SceneConfig, Thing
from detection3d.data.synthetic.shapes import Shape
from detection3d.data.synthetic.street import Path
from detection3d.types.scene import Float64Array, ObjectType

_PLOT_DEPTH = 22.0


class Crossing(Protocol):
    """A street that interrupts the roadside."""

    def blocks(self, s: float, offset: float, half_length: float) -> bool:
        """Tell whether a stretch of roadside is in the way."""
        ...


class Cast:
    """Things as they are added to a scene.

    Args:
        generator: the scene's; every draw takes its turn on it.
    """

    def __init__(self, generator: np.random.Generator) -> None:
        self.generator = generator
        self.things: list[Thing] = []
        self._reserved: list[tuple[float, int]] = []

    def add(self, shape: Shape, motion: Parked | Mover, kind: ObjectType | None = None) -> None:
        """Add a thing, with an id of its own if it has a type."""
        identity = "" if kind is None else self.generator.bytes(11).hex()
        self.things.append(Thing(shape, motion, kind, identity))

    def reserve(self, s: float, side: int) -> None:
        """Keep the parking place at arc length s on one side free of vehicles."""
        self._reserved.append((s, side))

    def reserved(self, s: float, side: int, half_length: float) -> bool:
        """Tell whether a vehicle at arc length s would stand on a reserved place."""
        return any(side == other and abs(s - place) < half_length + 3.6 for place, other in self._reserved)


def keep_clear(crossings: Sequence[Crossing], s: float, offset: float, half_length: float) -> bool:
    """Tell whether something at arc length s and an offset to the left would stand on a side street."""
    return any(crossing.blocks(s, offset, half_length) for crossing in crossings)


def fill_parking(
    cast: Cast,
    street: Path,
    side: int,
    start: float,
    width: float,
    span: tuple[float, float],
    crossings: Sequence[Crossing],
    config: SceneConfig,
) -> None:
    """Park vehicles between the bicycle lane and the kerb, lengthwise where it is narrow, else at an angle.

    Args:
        cast: takes the vehicles.
        street: the main street.
        side: 1 left of it, -1 right.
        start: metres from its middle to the near edge of the parking places.
        width: of the parking places, metres.
        span: first and last arc length, metres.
        crossings: side streets.
        config: how many places are taken.
    """
    generator = cast.generator
    angle = 0.0 if width < 3.0 else float(generator.uniform(0.9, math.pi / 2))
    share = float(np.clip(config.parked_share * generator.uniform(0.6, 1.5), 0.1, 0.95))
    s, offset = span[0], side * (start + 0.5 * width)
    while s < span[1]:
        shape = draw_car(generator)
        length, breadth, _ = shape.size
        if angle == 0.0:
            pitch, nudge = length + float(generator.uniform(0.6, 1.6)), 0.5 * (width - breadth)
        else:
            # Side by side, vehicles at an angle take their breadth over its sine.
            pitch, nudge = (breadth + float(generator.uniform(0.5, 1.0))) / math.sin(angle), 0.15
        s += 0.5 * pitch
        taken = generator.random() < share
        deviation = float(generator.normal(0.0, 0.03))
        flip = math.pi if generator.random() < 0.25 else 0.0
        if taken and not keep_clear(crossings, s, offset, 0.5 * pitch + 4) and not cast.reserved(s, side, 0.5 * pitch):
            x, y, heading = street.at(s, offset + float(generator.uniform(-1, 1)) * max(nudge, 0.0))
            facing = heading + (math.pi if side > 0 else 0.0) + side * angle * -1.0 + flip + deviation
            cast.add(shape, Parked(x, y, facing), ObjectType.VEHICLE)
        s += 0.5 * pitch


def fill_roadside(
    cast: Cast,
    street: Path,
    side: int,
    start: float,
    span: tuple[float, float],
    crossings: Sequence[Crossing],
    config: SceneConfig,
) -> list[Float64Array]:
    """Fill the plots behind a walkway with houses, car parks, gardens and yards.

    Args:
        cast: takes the things.
        street: the main street.
        side: 1 left of it, -1 right.
        start: metres from its middle to the plots.
        span: first and last arc length, metres.
        crossings: side streets.
        config: the share of car parks.

    Returns:
        Outlines of some car parks and gardens, where no-label zones may lie, float64 [Q, 2], scene frame.
    """
    generator = cast.generator
    zones = []
    s = span[0]
    while s < span[1]:
        length = float(generator.uniform(12.0, 30.0))
        middle = s + 0.5 * length
        s += length + float(generator.uniform(0.5, 3.0))
        centre = side * (start + 0.5 * _PLOT_DEPTH)
        lean_room = 0.5 * length + 4.5  # side streets lean by up to this over half a plot's depth
        if keep_clear(crossings, middle, centre, lean_room):
            continue
        x, y, heading = street.at(middle, centre)
        plot = _Plot(cast, x, y, heading, length, side)
        kind = generator.random()
        if kind < config.lot_share:
            plot.car_park(config)
        elif kind < config.lot_share + 0.4:
            plot.house()
        elif kind < config.lot_share + 0.6:
            plot.garden()
        else:
            plot.yard()
        if kind < config.lot_share + 0.6 and generator.random() < 0.15:
            zones.append(plot.corner_shape())
    return zones


class _Plot:
    """One plot; its own axes run along the street and to the left of it."""

    def __init__(self, cast: Cast, x: float, y: float, heading: float, length: float, side: int) -> None:
        self.cast, self.generator = cast, cast.generator
        self.x, self.y, self.heading, self.length, self.side = x, y, heading, length, side

    def place(self, along: float, left: float, turn: float = 0.0) -> Parked:
        cosine, sine = math.cos(self.heading), math.sin(self.heading)
        x, y = self.x + cosine * along - sine * left, self.y + sine * along + cosine * left
        return Parked(x, y, self.heading + turn)

    def grid(self, pitch_along: float, pitch_left: float) -> list[tuple[float, float]]:
        """Return the middles of cells that cover the plot."""
        columns, rows = int(self.length // pitch_along), int(_PLOT_DEPTH // pitch_left)
        return [
            ((i + 0.5 - columns / 2) * pitch_along, (j + 0.5 - rows / 2) * pitch_left)
            for i in range(columns)
            for j in range(rows)
        ]

    def car_park(self, config: SceneConfig) -> None:
        """Rows of vehicles at any angle, with people about and now and then a skip."""
        turn = float(self.generator.uniform(-math.pi, math.pi))
        share = config.parked_share * float(self.generator.uniform(0.5, 1.3))
        reach = 2.9
        for along, left in self.grid(2 * reach, 2 * reach):
            draw = self.generator.random()
            place = self.place(along, left, turn + math.pi * int(self.generator.integers(0, 2)))
            if draw < share:
                shape = draw_car(self.generator)
                # Any angle must fit the cell, so vehicles as long as its diagonal stay out.
                if shape.size[0] < 2 * reach:
                    self.cast.add(shape, place, ObjectType.VEHICLE)
            elif draw < share + 0.08:
                self.cast.add(draw_clutter(self.generator), place)
            elif draw < share + 0.2:
                self._people(along, left, 1)

    def house(self) -> None:
        """One house, perhaps with bushes in front."""
        depth = float(self.generator.uniform(9.0, 16.0))
        front = float(self.generator.uniform(0.5, 5.0))
        left = -self.side * (0.5 * _PLOT_DEPTH - front - 0.5 * depth)
        self.cast.add(draw_building(self.generator, self.length - 0.5, depth), self.place(0.0, left))
        if front > 3.0:
            for along in np.arange(-0.4, 0.5, 0.2) * self.length:
                if self.generator.random() < 0.5:
                    self.cast.add(
                        draw_bush(self.generator), self.place(float(along), left - self.side * (0.5 * depth + 1.2))
                    )

    def garden(self) -> None:
        """Trees, bushes, people and bicycles, perhaps behind a wall or hedge."""
        if self.generator.random() < 0.4:
            self.cast.add(
                draw_wall(self.generator, 0.9 * self.length), self.place(0.0, -self.side * 0.47 * _PLOT_DEPTH)
            )
        for along, left in self.grid(5.0, 5.0):
            draw = self.generator.random()
            shift = self.generator.uniform(-0.8, 0.8, 2)
            along, left = along + float(shift[0]), left + float(shift[1])
            if draw < 0.3:
                self.cast.add(draw_tree(self.generator), self.place(along, left))
            elif draw < 0.5:
                self.cast.add(draw_bush(self.generator), self.place(along, left, float(self.generator.uniform(0, 6.3))))
            elif draw < 0.65:
                self._people(along, left, int(self.generator.integers(1, 4)))
            elif draw < 0.70:
                turn = float(self.generator.uniform(-math.pi, math.pi))
                self.cast.add(draw_cyclist(self.generator), self.place(along, left, turn), ObjectType.CYCLIST)

    def yard(self) -> None:
        """Containers, stacks, poles, and a few vehicles of all kinds that stand as they were left."""
        for along, left in self.grid(8.0, 7.0):
            draw = self.generator.random()
            place = self.place(along, left, float(self.generator.uniform(-math.pi, math.pi)))
            if draw < 0.35:
                self.cast.add(draw_clutter(self.generator), place)
            elif draw < 0.45:
                self.cast.add(draw_pole(self.generator), place)
            elif draw < 0.7:
                shape = draw_vehicle(self.generator)
                if shape.size[0] < 6.6:
                    self.cast.add(shape, place, ObjectType.VEHICLE)

    def corner_shape(self) -> Float64Array:
        """Return an L-shaped outline that covers most of the plot, float64 [6, 2], scene frame."""
        a, b = 0.45 * self.length, 0.45 * _PLOT_DEPTH
        corners = [(-a, -b), (a, -b), (a, 0.1 * b), (0.2 * a, 0.1 * b), (0.2 * a, b), (-a, b)]
        places = [self.place(along, left) for along, left in corners]
        return np.array([[place.x, place.y] for place in places])

    def _people(self, along: float, left: float, count: int) -> None:
        """Add people who stand about, each turned somewhere else."""
        for person in range(count):
            angle = 2 * math.pi * person / count + float(self.generator.uniform(0.0, 1.0))
            spread = 0.0 if count == 1 else 0.8
            place = self.place(
                along + spread * math.cos(angle),
                left + spread * math.sin(angle),
                float(self.generator.uniform(-math.pi, math.pi)),
            )
            self.cast.add(draw_pedestrian(self.generator), place, ObjectType.PEDESTRIAN)
