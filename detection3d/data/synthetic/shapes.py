"""Solids that things are built from, and the parts that make a vehicle, a person or a cyclist.

A shape stands on the ground at its origin, facing +x, and its parts together span exactly its size. Every part is an
upright box, or the vertical elliptic cylinder or the ellipsoid that fits in one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from detection3d.data.synthetic.materials import Material
from detection3d.types.scene import Float64Array

WHEEL_RADIUS = 0.33


class Solid(IntEnum):
    """Kinds of parts, as the ray caster numbers them."""

    BOX = 0
    CYLINDER = 1
    ELLIPSOID = 2


@dataclass(frozen=True)
class Part:
    """One solid.

    Attributes:
        solid: its kind.
        material: its surface.
        low: smallest (x, y, z), metres.
        high: largest (x, y, z), metres.
        shade: factor on the material's reflectivity.
    """

    solid: Solid
    material: Material
    low: tuple[float, float, float]
    high: tuple[float, float, float]
    shade: float = 1.0


@dataclass(frozen=True)
class Shape:
    """Parts and what they span.

    Attributes:
        parts: at least one.
        size: (length, width, height) in metres; the parts lie within +-length / 2, +-width / 2 and 0..height.
    """

    parts: tuple[Part, ...]
    size: tuple[float, float, float]

    def geometry(self) -> Float64Array:
        """Return float64 [parts, 6]: centre and half size of each part."""
        low = np.array([part.low for part in self.parts])
        high = np.array([part.high for part in self.parts])
        return np.hstack([0.5 * (low + high), 0.5 * (high - low)])


def shape_of(parts: Sequence[Part]) -> Shape:
    """Make a shape of parts that are centred on the origin in x and y."""
    extent = np.max([np.maximum(np.abs(part.low), np.abs(part.high)) for part in parts], axis=0)
    return Shape(tuple(parts), (float(2 * extent[0]), float(2 * extent[1]), float(extent[2])))


def block(
    solid: Solid,
    material: Material,
    size: Sequence[float] | Float64Array,
    centre: Sequence[float] | Float64Array = (0.0, 0.0),
    bottom: float = 0.0,
    shade: float = 1.0,
) -> Part:
    """Return a part of a given size whose lowest point is `bottom` above the ground."""
    (length, width, height), (x, y) = size, centre
    low = (x - length / 2, y - width / 2, bottom)
    high = (x + length / 2, y + width / 2, bottom + height)
    return Part(solid, material, low, high, shade)


def car(size: Sequence[float], cabin: tuple[float, float], shade: float) -> Shape:
    """Return a passenger vehicle: body, cabin with glass, four wheels, licence plates.

    Args:
        size: (length, width, height), metres.
        cabin: where the cabin begins and ends, as shares of the length from the rear; the bonnet is what is left.
        shade: brightness of the paint.
    """
    length, width, height = size
    belt = 0.56 * height
    rear, front = ((share - 0.5) * length for share in cabin)
    middle, depth = 0.5 * (rear + front), front - rear
    roof_shift = -0.04 * length
    parts = [
        block(Solid.BOX, Material.PAINT, (length, width, belt - 0.24), bottom=0.24, shade=shade),
        block(Solid.BOX, Material.GLASS, (depth, 0.90 * width, 0.6 * (height - belt)), (middle, 0.0), belt),
        block(
            Solid.BOX,
            Material.PAINT,
            (0.78 * depth, 0.84 * width, 0.4 * (height - belt)),
            (middle + roof_shift * depth / length, 0.0),
            belt + 0.6 * (height - belt),
            shade,
        ),
        # A hair proud of the bodywork would widen the box, so the plates stand in the plane of the bumpers.
        Part(Solid.BOX, Material.REFLECTOR, (-length / 2, -0.26, 0.55), (-length / 2 + 0.02, 0.26, 0.67), 1.0),
        Part(Solid.BOX, Material.REFLECTOR, (length / 2 - 0.02, -0.26, 0.45), (length / 2, 0.26, 0.57), 0.6),
    ]
    return Shape((*parts, *_wheels(length, width, WHEEL_RADIUS)), (length, width, height))


def truck(size: Sequence[float], shade: float) -> Shape:
    """Return a lorry: cab in front, a gap, and a cargo box that gives the height."""
    length, width, height = size
    cab = min(2.2, 0.3 * length)
    cargo = length - cab - 0.35
    parts = [
        block(
            Solid.BOX, Material.PAINT, (cab, 0.96 * width, 0.72 * height - 0.4), (0.5 * (length - cab), 0.0), 0.4, shade
        ),
        block(
            Solid.BOX, Material.METAL, (cargo, width, height - 0.9), (-0.5 * (length - cargo), 0.0), 0.9, 1.3 * shade
        ),
        block(Solid.BOX, Material.METAL, (0.97 * length, 0.4 * width, 0.3), bottom=0.6, shade=0.5),
        Part(
            Solid.BOX,
            Material.REFLECTOR,
            (-length / 2, -0.4 * width, 0.95),
            (-length / 2 + 0.02, 0.4 * width, 1.0),
            0.8,
        ),
    ]
    return Shape((*parts, *_wheels(length, width, 0.48)), (length, width, height))


def bus(size: Sequence[float], shade: float) -> Shape:
    """Return a bus or coach: one long body with a band of windows."""
    length, width, height = size
    parts = [
        block(Solid.BOX, Material.PAINT, (length, width, 1.0), bottom=0.35, shade=shade),
        block(Solid.BOX, Material.GLASS, (0.99 * length, 0.98 * width, 0.45 * height), bottom=1.35),
        Part(
            Solid.BOX,
            Material.PAINT,
            (-length / 2, -width / 2, 1.35 + 0.45 * height),
            (0.48 * length, width / 2, height),
            shade,
        ),
    ]
    return Shape((*parts, *_wheels(length, width, 0.46)), (length, width, height))


def pedestrian(size: Sequence[float], shade: float) -> Shape:
    """Return a person in stride: two legs apart along x, two arms across, trunk and head.

    Args:
        size: (length, width, height), metres: stride, breadth over the arms, and stature.
        shade: brightness of the clothes.
    """
    length, width, height = size
    leg, arm, head = 0.16, 0.12, 0.13 * height
    reach = 0.5 * (length - leg)
    shoulder = 0.5 * (width - arm)
    parts = [
        block(Solid.CYLINDER, Material.CLOTH, (leg, leg, 0.48 * height), (reach, 0.09), 0.0, 0.6 * shade),
        block(Solid.CYLINDER, Material.CLOTH, (leg, leg, 0.48 * height), (-reach, -0.09), 0.0, 0.6 * shade),
        block(Solid.ELLIPSOID, Material.CLOTH, (0.62 * length, 0.40, 0.2 * height), (0.0, 0.0), 0.38 * height, shade),
        block(Solid.ELLIPSOID, Material.CLOTH, (0.30, 0.76 * width, 0.42 * height), (0.02, 0.0), 0.43 * height, shade),
        block(Solid.CYLINDER, Material.CLOTH, (arm, arm, 0.33 * height), (0.08, -shoulder), 0.46 * height, shade),
        block(Solid.CYLINDER, Material.CLOTH, (arm, arm, 0.33 * height), (-0.05, shoulder), 0.46 * height, shade),
        block(Solid.ELLIPSOID, Material.SKIN, (0.21, 0.18, head), (0.05, 0.0), height - head),
    ]
    return Shape(tuple(parts), (length, width, height))


def cyclist(size: Sequence[float], shade: float) -> Shape:
    """Return a bicycle with its rider, who leans forward.

    Args:
        size: (length, width, height), metres: over the wheels, over the handlebars, and to the top of the head.
        shade: brightness of the clothes.
    """
    length, width, height = size
    wheel, head = 0.68, 0.24
    axle = 0.5 * (length - wheel)
    parts = [
        block(Solid.BOX, Material.RUBBER, (wheel, 0.05, wheel), (axle, 0.0)),
        block(Solid.BOX, Material.RUBBER, (wheel, 0.05, wheel), (-axle, 0.0)),
        block(Solid.BOX, Material.METAL, (2 * axle, 0.05, 0.25), (0.0, 0.0), 0.45),
        block(Solid.BOX, Material.METAL, (0.08, width, 0.06), (0.30 * length, 0.0), 0.98),
        block(Solid.CYLINDER, Material.CLOTH, (0.17, 0.15, 0.65), (0.05, 0.11), 0.22, 0.6 * shade),
        block(Solid.CYLINDER, Material.CLOTH, (0.17, 0.15, 0.65), (-0.05, -0.11), 0.38, 0.6 * shade),
        block(Solid.ELLIPSOID, Material.CLOTH, (0.46, 0.42, height - head - 0.78), (-0.06, 0.0), 0.82, shade),
        block(Solid.BOX, Material.CLOTH, (0.42, 0.46, 0.10), (0.18, 0.0), 1.02, shade),
        block(Solid.ELLIPSOID, Material.SKIN, (0.26, 0.19, head), (0.10, 0.0), height - head),
        Part(Solid.BOX, Material.REFLECTOR, (-length / 2, -0.04, 0.5), (-length / 2 + 0.03, 0.04, 0.58), 0.5),
    ]
    return Shape(tuple(parts), (length, width, height))


def _wheels(length: float, width: float, radius: float) -> list[Part]:
    across = 0.5 * (width - 0.24)
    return [
        block(Solid.BOX, Material.RUBBER, (1.8 * radius, 0.24, 2 * radius), (x, y))
        for x in (-0.31 * length, 0.31 * length)
        for y in (-across, across)
    ]
