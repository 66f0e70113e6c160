"""What surfaces are made of: how brightly and how reliably they answer a laser."""

from enum import IntEnum

import numpy as np

from detection3d.types.scene import Float64Array


class Material(IntEnum):
    """Surface classes; the value is the row of `material_table`."""

    GROUND = 0
    FACADE = 1
    PAINT = 2
    GLASS = 3
    RUBBER = 4
    LEAVES = 5
    BARK = 6
    METAL = 7
    REFLECTOR = 8
    CLOTH = 9
    SKIN = 10


# reflectivity at normal incidence, elongation, chance that a shot is lost whatever the range, mean free path in metres
# (0: opaque). A reflector outshines everything, as Waymo's raw intensities (up to 27 and more) show.
_TABLE: dict[Material, tuple[float, float, float, float]] = {
    Material.GROUND: (0.12, 0.04, 0.01, 0.0),
    Material.FACADE: (0.30, 0.03, 0.01, 0.0),
    Material.PAINT: (0.35, 0.05, 0.03, 0.0),
    Material.GLASS: (0.08, 0.15, 0.45, 0.0),
    Material.RUBBER: (0.06, 0.06, 0.08, 0.0),
    Material.LEAVES: (0.25, 0.45, 0.03, 0.8),
    Material.BARK: (0.18, 0.08, 0.01, 0.0),
    Material.METAL: (0.30, 0.06, 0.03, 0.0),
    Material.REFLECTOR: (8.0, 0.02, 0.0, 0.0),
    Material.CLOTH: (0.22, 0.08, 0.01, 0.0),
    Material.SKIN: (0.28, 0.05, 0.01, 0.0),
}


def material_table() -> Float64Array:
    """Return float64 [materials, 4]: reflectivity, elongation, loss, mean free path in metres (0: opaque)."""
    return np.array([_TABLE[material] for material in Material])
