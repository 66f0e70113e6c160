"""Who and what is about: vehicles, people, cyclists and street furniture, with sizes drawn at random.

Standard deviations are at least 8 % of the mean in every dimension, so that a detector has to measure.
"""

import numpy as np

from detection3d.data.synthetic.materials import Material
from detection3d.data.synthetic.shapes import Shape, Solid, block, bus, car, cyclist, pedestrian, shape_of, truck

_BOX, _CYLINDER, _ELLIPSOID = Solid.BOX, Solid.CYLINDER, Solid.ELLIPSOID


def draw_car(generator: np.random.Generator) -> Shape:
    """Draw a passenger vehicle: saloon, estate or SUV, van, or pick-up."""
    shade = float(generator.uniform(0.25, 1.8))
    kind = generator.random()
    if kind < 0.45:
        return car(_size(generator, (4.65, 1.85, 1.47)), (0.14, 0.72), shade)
    if kind < 0.75:
        return car(_size(generator, (4.75, 1.98, 1.75)), (0.01, 0.70), shade)
    if kind < 0.88:
        return car(_size(generator, (5.3, 2.05, 2.15)), (0.01, 0.84), shade)
    return car(_size(generator, (5.6, 2.05, 1.85)), (0.38, 0.72), shade)


def draw_vehicle(generator: np.random.Generator) -> Shape:
    """Draw any vehicle of moving traffic: mostly cars, some lorries and buses."""
    kind = generator.random()
    shade = float(generator.uniform(0.4, 1.8))
    if kind < 0.88:
        return draw_car(generator)
    if kind < 0.96:
        return truck(_size(generator, (7.6, 2.45, 3.1)), shade)
    return bus(_size(generator, (11.3, 2.6, 3.15)), shade)


def draw_pedestrian(generator: np.random.Generator) -> Shape:
    """Draw a person, now and then a child."""
    stature = 1.2 if generator.random() < 0.1 else 1.72
    length, width, height = _size(generator, (0.82, 0.72, stature), spread=0.1)
    return pedestrian((max(length, 0.45), max(width, 0.52), height), float(generator.uniform(0.4, 2.0)))


def draw_cyclist(generator: np.random.Generator) -> Shape:
    """Draw a bicycle with its rider."""
    length, width, height = _size(generator, (1.76, 0.66, 1.74), spread=0.1)
    return cyclist((max(length, 1.45), max(width, 0.5), max(height, 1.5)), float(generator.uniform(0.4, 2.0)))


def draw_tree(generator: np.random.Generator) -> Shape:
    """Draw a trunk with a crown of one to three lumps."""
    trunk, stem = generator.uniform(0.2, 0.5), generator.uniform(1.9, 3.2)
    parts = [block(_CYLINDER, Material.BARK, (trunk, trunk, stem + 0.8), bottom=-0.3)]
    for lump in range(generator.integers(1, 4)):
        spread, tall = generator.uniform(2.2, 4.5), generator.uniform(2.0, 4.0)
        centre = (0.0, 0.0) if lump == 0 else generator.uniform(-1.0, 1.0, 2)
        parts.append(block(_ELLIPSOID, Material.LEAVES, (spread, spread, tall), centre, stem + 0.8 * lump))
    return shape_of(parts)


def draw_bush(generator: np.random.Generator) -> Shape:
    """Draw a bush, round or clipped, about as large as a person or a small car."""
    length, width, height = generator.uniform((0.6, 0.6, 0.5), (3.0, 1.4, 1.8))
    solid = _ELLIPSOID if generator.random() < 0.6 else _BOX
    return shape_of([block(solid, Material.LEAVES, (length, width, height), bottom=-0.05)])


def draw_pole(generator: np.random.Generator) -> Shape:
    """Draw a lamp post, thin pole or bollard."""
    kind = generator.random()
    if kind < 0.25:
        return shape_of([block(_CYLINDER, Material.METAL, (0.22, 0.22, 0.95), shade=generator.uniform(0.5, 2.0))])
    radius, height = generator.uniform(0.06, 0.18), generator.uniform(4.0, 9.0)
    return shape_of([block(_CYLINDER, Material.METAL, (2 * radius, 2 * radius, height), bottom=-0.2)])


def draw_clutter(generator: np.random.Generator) -> Shape:
    """Draw something that could be taken for a vehicle: skip, container, shelter, kiosk, cabinet or trailer frame."""
    kind = int(generator.integers(0, 5))
    shade = float(generator.uniform(0.4, 2.0))
    if kind == 0:
        return shape_of([block(_BOX, Material.METAL, generator.uniform((1.5, 1.1, 1.1), (2.4, 1.5, 1.6)), shade=shade)])
    if kind == 1:
        length = float(generator.choice([3.0, 6.06]))
        return shape_of([block(_BOX, Material.METAL, (length, 2.44, 2.5), shade=shade)])
    if kind == 2:
        return _shelter(generator)
    if kind == 3:
        size = generator.uniform((0.6, 0.4, 1.0), (1.4, 0.8, 1.7))
        return shape_of([block(_BOX, Material.METAL, size, shade=shade)])
    stack = generator.uniform((1.0, 1.0, 0.5), (2.2, 1.4, 1.0))
    top = 0.7 * stack
    return shape_of(
        [
            block(_BOX, Material.FACADE, stack, shade=shade),
            block(_BOX, Material.FACADE, top, (0.1, 0.05), float(stack[2]), shade),
        ]
    )


def draw_building(generator: np.random.Generator, length: float, depth: float) -> Shape:
    """Draw a house `length` metres along the street and `depth` across, with a bay or an entrance."""
    height = generator.uniform(4.0, 16.0)
    shade = float(generator.uniform(0.5, 1.6))
    bay = generator.uniform(0.2, 0.5) * length
    shift = generator.uniform(-0.5, 0.5) * (length - bay)
    parts = [
        block(_BOX, Material.FACADE, (length, depth - 1.6, height), bottom=-0.6, shade=shade),
        # The bay stands out towards the street on either face, so the house may be turned round.
        block(_BOX, Material.FACADE, (bay, depth, 0.7 * height), (shift, 0.0), -0.6, shade),
    ]
    return shape_of(parts)


def draw_wall(generator: np.random.Generator, length: float) -> Shape:
    """Draw a wall or a hedge, `length` metres long."""
    if generator.random() < 0.5:
        return shape_of([block(_BOX, Material.FACADE, (length, 0.25, generator.uniform(0.8, 2.2)), bottom=-0.3)])
    return shape_of([block(_BOX, Material.LEAVES, (length, 0.9, generator.uniform(0.8, 2.0)), bottom=-0.3)])


def sign_post(height: float) -> Shape:
    """Return the post that carries a sign plate `height` metres up."""
    return shape_of([block(_CYLINDER, Material.METAL, (0.08, 0.08, height), bottom=-0.1)])


def draw_sign_plate(generator: np.random.Generator, bottom: float) -> Shape:
    """Draw a plate that faces +x, its lower edge `bottom` metres up; its size is the plate's alone."""
    width, height = generator.uniform(0.45, 0.9, 2)
    plate = block(_BOX, Material.REFLECTOR, (0.06, width, height), bottom=bottom, shade=generator.uniform(0.4, 2.5))
    return Shape((plate,), (0.06, float(width), float(height)))


def _shelter(generator: np.random.Generator) -> Shape:
    length = generator.uniform(3.0, 4.5)
    edge = 0.5 * length - 0.05
    posts = [block(_CYLINDER, Material.METAL, (0.1, 0.1, 2.3), (x, 0.65)) for x in (-edge, edge)]
    return shape_of(
        [
            block(_BOX, Material.GLASS, (length, 0.08, 2.3), (0.0, -0.65)),
            block(_BOX, Material.METAL, (length, 1.5, 0.15), bottom=2.3),
            block(_BOX, Material.METAL, (0.6 * length, 0.4, 0.5), (0.0, -0.4)),
            *posts,
        ]
    )


def _size(
    generator: np.random.Generator, mean: tuple[float, float, float], spread: float = 0.085
) -> tuple[float, float, float]:
    """Draw (length, width, height) about `mean` with a relative deviation of `spread`, within 2.5 deviations."""
    factor = 1.0 + spread * np.clip(generator.normal(size=3), -2.5, 2.5)
    length, width, height = (np.asarray(mean) * factor).tolist()
    return length, width, height
