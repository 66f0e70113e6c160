"""Lay out a street: lanes, parking, walkways, roadside, side streets, and who is on them.

Across the main street, from its middle outwards on each side: traffic lanes, a bicycle lane, parking, a kerb strip with
poles and trees, three walking strips, and behind them houses, gardens and car parks. Vehicles of one lane and people of
one strip share their speed, so nobody runs into anybody. Side streets cross at angles near a right one; their traffic
comes to rest before the crossing or sets off from it.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from detection3d.data.synthetic.motion import Cruise, Mover, Parked
from detection3d.data.synthetic.population import (
    draw_clutter,
    draw_cyclist,
    draw_pedestrian,
    draw_pole,
    draw_sign_plate,
    draw_tree,
    draw_vehicle,
    sign_post,
)
from detection3d.data.synthetic.roadside import Cast, fill_parking, fill_roadside, keep_clear
from detection3d.data.synthetic.scene import Scene, SceneConfig, gather_parts
from detection3d.data.synthetic.shapes import Shape
from detection3d.data.synthetic.side_streets import SideStreet, draw_side_streets
from detection3d.data.synthetic.street import Path, random_ground, winding_path
from detection3d.types.scene import Float64Array, ObjectType

LANE_WIDTH = 3.5
_BICYCLE_WIDTH = 1.6
_EDGE = 110.0  # metres of street beyond both ends of the drive


@dataclass(frozen=True)
class _Side:
    """One side of the main street: `sign` is 1 left of it, -1 right; offsets from its middle are positive, metres."""

    sign: int
    lanes: int
    parking_width: float

    @property
    def parking(self) -> float:
        return self.lanes * LANE_WIDTH + _BICYCLE_WIDTH

    @property
    def kerb(self) -> float:
        return self.parking + self.parking_width + 0.7

    @property
    def walkway(self) -> float:
        return self.kerb + 0.9

    @property
    def back(self) -> float:
        return self.walkway + 3.6


def build_scene(seed: int, seconds: float, config: SceneConfig) -> Scene:
    """Draw a scene in which the vehicle can drive for some time.

    Args:
        seed: everything follows from it.
        seconds: length of the drive.
        config: how busy the street is.

    Returns:
        The scene, with the drive beginning at time 0.
    """
    generator = np.random.default_rng(seed)
    drive = Cruise(
        speed=float(generator.choice([generator.uniform(0.5, 3.0), generator.uniform(5.0, 12.0)], p=[0.15, 0.85])),
        swing=float(generator.uniform(0.1, 0.6)),
        period=float(generator.uniform(12.0, 30.0)),
        phase=float(generator.uniform(0, 2 * np.pi)),
    )
    last = drive.distance(seconds) + _EDGE
    street = winding_path(generator, -_EDGE, last)
    lanes = int(generator.integers(1, 3))
    sides = tuple(_Side(sign, lanes, float(generator.choice([2.5, 5.4], p=[0.65, 0.35]))) for sign in (-1, 1))
    span = (-_EDGE, last)
    crossings = draw_side_streets(generator, street, span, max(side.back for side in sides))
    cast = Cast(generator)
    ego = _fill_lanes(cast, street, sides, drive, seconds, config)
    zones: list[Float64Array] = []
    for side in sides:
        _fill_kerb(cast, street, side, span, crossings)
        _fill_walkway(cast, street, side, span, config)
        fill_parking(cast, street, side.sign, side.parking, side.parking_width, span, crossings, config)
        zones += fill_roadside(cast, street, side.sign, side.back, span, crossings, config)
    for crossing in crossings:
        crossing.fill(cast, drive, config)
    things = tuple(cast.things)
    bearing, away = generator.uniform(-np.pi, np.pi), generator.uniform(2500.0, 9000.0)
    return Scene(
        ground=random_ground(generator),
        street=street,
        road_half=sides[0].parking,
        things=things,
        parts=gather_parts(things),
        ego=ego,
        yaw=float(generator.uniform(-np.pi, np.pi)),
        offset=np.array([away * math.cos(bearing), away * math.sin(bearing), generator.uniform(-60.0, 120.0)]),
        no_label_zones=tuple(zones) if generator.random() < config.zone_share else (),
        time_of_day=str(generator.choice(["Day", "Day", "Dawn/Dusk", "Night"])),
        location=str(generator.choice(["location_sf", "location_phx", "location_other"])),
        weather=str(generator.choice(["sunny", "sunny", "sunny", "rain"])),
    )


def _fill_lanes(
    cast: Cast, street: Path, sides: tuple[_Side, ...], drive: Cruise, seconds: float, config: SceneConfig
) -> Mover:
    """Put traffic and cyclists on both carriageways; return the recording vehicle's own motion."""
    generator = cast.generator
    own = int(generator.integers(0, sides[0].lanes))
    for side in sides:
        for lane in range(side.lanes):
            offset = side.sign * (lane + 0.5) * LANE_WIDTH
            mine = side.sign < 0 and lane == own
            pace = drive if mine else _pace(generator, 3.0, 12.0)
            for start, shape in _queue(cast, pace, -side.sign, drive, seconds, config.lane_gap, draw_vehicle):
                if mine and -14.0 < start < 16.0:
                    continue  # the recording vehicle's own place
                drift = float(generator.uniform(-0.3, 0.3))
                cast.add(shape, Mover(street, start, offset + drift, -side.sign, pace), ObjectType.VEHICLE)
        pace = _pace(generator, 2.5, 6.0)
        offset = side.sign * (side.parking - 0.5 * _BICYCLE_WIDTH)
        for start, shape in _queue(cast, pace, -side.sign, drive, seconds, config.cyclist_gap, draw_cyclist):
            cast.add(shape, Mover(street, start, offset, -side.sign, pace), ObjectType.CYCLIST)
    return Mover(street, 0.0, -(own + 0.5) * LANE_WIDTH, 1, drive)


def _queue(
    cast: Cast,
    pace: Cruise,
    direction: int,
    drive: Cruise,
    seconds: float,
    gap: float,
    draw: Callable[[np.random.Generator], Shape],
) -> Iterator[tuple[float, Shape]]:
    """Yield (start, shape) of things that share a pace, enough of them to surround the drive from its first moment."""
    generator = cast.generator
    ahead = max(drive.distance(time) - direction * pace.distance(time) for time in np.linspace(0.0, seconds, 50))
    behind = min(drive.distance(time) - direction * pace.distance(time) for time in np.linspace(0.0, seconds, 50))
    position, reach = behind - _EDGE, 0.0
    while position < ahead + _EDGE:
        shape = draw(generator)
        half = 0.5 * shape.size[0]
        free = gap * float(generator.gamma(1.6, 0.5))
        position += max(free, reach + half + 1.2)
        yield position, shape
        reach = half


def _fill_kerb(
    cast: Cast, street: Path, side: _Side, span: tuple[float, float], crossings: tuple[SideStreet, ...]
) -> None:
    """Set up poles, signs, trees, and clutter between the parking places and the walkway."""
    generator = cast.generator
    s = span[0]
    while s < span[1]:
        kind = generator.random()
        # Only narrow things fit between parked cars and walkers; containers take a parking place.
        shape = draw_pole(generator) if kind < 0.5 else draw_tree(generator)
        s += float(generator.uniform(4.0, 11.0))
        if keep_clear(crossings, s, side.kerb, 1.0):
            continue
        x, y, heading = street.at(s, side.sign * side.kerb)
        if kind < 0.2:
            facing = heading + (math.pi if side.sign < 0 else 0.0) + float(generator.normal(0.0, 0.15))
            bottom = float(generator.uniform(1.9, 2.4))
            plate = draw_sign_plate(generator, bottom)
            cast.add(sign_post(bottom + plate.size[2]), Parked(x, y, facing))
            # In front of its post by a little more than the post's radius.
            ahead = 0.08
            place = Parked(x + ahead * math.cos(facing), y + ahead * math.sin(facing), facing)
            cast.add(plate, place, ObjectType.SIGN)
        else:
            cast.add(shape, Parked(x, y, heading))
        if generator.random() < 0.12 and side.parking_width < 3.0:
            cast.reserve(s, side.sign)
            clutter = draw_clutter(generator)
            if clutter.size[1] < side.parking_width:
                x, y, heading = street.at(s, side.sign * (side.parking + 0.5 * side.parking_width))
                cast.add(clutter, Parked(x, y, heading + float(generator.choice([0.0, math.pi]))))


def _fill_walkway(cast: Cast, street: Path, side: _Side, span: tuple[float, float], config: SceneConfig) -> None:
    """Put people on the three strips, the middle one going against the other two."""
    generator = cast.generator
    busy = float(generator.uniform(0.6, 1.6))
    for strip in range(3):
        offset = side.sign * (side.walkway + 0.5 + 1.05 * strip)
        direction = -side.sign if strip != 1 else side.sign
        pace = _pace(generator, 0.8, 1.8)
        s = span[0]
        while s < span[1]:
            s += max(1.5, config.walker_gap / busy * float(generator.gamma(1.2, 1 / 1.2)))
            shape = draw_pedestrian(generator)
            turn = float(generator.normal(0.0, 0.15))
            cast.add(shape, Mover(street, s, offset, direction, pace, turn), ObjectType.PEDESTRIAN)


def _pace(generator: np.random.Generator, slow: float, fast: float) -> Cruise:
    return Cruise(
        speed=float(generator.uniform(slow, fast)),
        swing=float(generator.uniform(0.0, 0.4)),
        period=float(generator.uniform(10.0, 30.0)),
        phase=float(generator.uniform(0, 2 * np.pi)),
    )
