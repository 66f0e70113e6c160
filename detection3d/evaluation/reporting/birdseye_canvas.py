"""What every picture from above shows: points, range rings, the vehicle, and boxes; forward up and left to the left."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.figure import Figure

from detection3d.evaluation.reporting.figures import MUTED, chart_style
from detection3d.geometry.host.boxes import corners_bev
from detection3d.types.scene import BoolArray, Float32Array, Float64Array, UInt8Array

LARGEST_REACH = 75.0  # metres; further out, a pedestrian is a dot

_POINT_PIXELS = 840  # side of the image of the points; the pictures are shown about 540 wide
_HEIGHT_STEPS = (0.3, 0.9, 1.6, 2.6)  # metres above the ground, where the shade of the points changes
# Nothing, then from the ground to the tops.
_GREYS = np.array(
    [
        (0, 0, 0, 0),
        (203, 210, 218, 255),
        (168, 179, 192, 255),
        (132, 146, 163, 255),
        (99, 113, 132, 255),
        (75, 88, 107, 255),
    ],
    np.uint8,
)
_TINTS = np.array(
    [
        (0, 0, 0, 0),
        (237, 221, 226, 255),
        (226, 197, 205, 255),
        (211, 169, 181, 255),
        (192, 138, 154, 255),
        (168, 108, 127, 255),
    ],
    np.uint8,
)


@contextmanager
def birdseye_axes(reach: float, inches: float = 7.2) -> Iterator[tuple[Figure, Axes]]:
    """Prepare a picture with its rings, in the style of the charts, for the duration of a `with` block.

    Args:
        reach: half the side of the picture, metres.
        inches: the side on paper.
    """
    with chart_style():
        figure = Figure(figsize=(inches, inches))
        axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
        axes.set_axis_off()
        axes.set(xlim=(reach, -reach), ylim=(-reach, reach), aspect="equal")
        _draw_rings(axes, reach)
        yield figure, axes


def fitting_reach(centres: Float32Array, points: Float32Array) -> float:
    """Return half the side of a picture, metres: all boxes if they can still be told apart, no empty margin.

    Args:
        centres: [M, 2], x and y of the boxes.
        points: [N, 2 or more], of which the first two are x and y.
    """
    boxes = float(np.abs(centres).max(initial=0.0)) + 4.0
    farthest = np.abs(points[:, :2]).max(axis=1, initial=0.0)
    crowd = float(np.quantile(farthest, 0.97)) if len(points) else 0.0
    return float(np.clip(max(boxes, crowd), 15.0, LARGEST_REACH))


def draw_points(
    axes: Axes, points: Float32Array, reach: float, ground: float = 0.0, tinted: BoolArray | None = None
) -> None:
    """Draw the points as an image of a few shades: markers would make a report ten times as large.

    Args:
        axes: of `birdseye_axes`.
        points: [N, 3 or more], vehicle frame.
        reach: half the side of the picture, metres.
        ground: metres, z of the ground; the shades tell the height above it.
        tinted: bool [N], points to draw in another colour; None: none.
    """
    if tinted is not None and tinted.any():
        _draw_shades(axes, _shades(points[tinted], reach, ground), _TINTS, reach)
        points = points[~tinted]
    _draw_shades(axes, _shades(points, reach, ground), _GREYS, reach)


def draw_vehicle(axes: Axes, reach: float) -> None:
    """Draw an arrow head at the vehicle's origin."""
    size = reach / 42
    shape = np.array([[0, 1.6], [1, -1.2], [0, -0.6], [-1, -1.2]]) * size
    axes.add_collection(PolyCollection([shape], facecolors="#111827", edgecolors="white", linewidths=0.8, zorder=5))


def draw_boxes(
    axes: Axes, boxes: Float32Array, colour: str, width: float, fill: float = 0.0, dashed: bool = False
) -> None:
    """Draw outlines, and a tick from the centre to a little beyond the front that shows the heading.

    Args:
        axes: of `birdseye_axes`.
        boxes: [M, 7].
        colour: of lines and filling.
        width: of the lines, points.
        fill: opacity of the filling.
        dashed: whether the outlines are.
    """
    if len(boxes) == 0:
        return
    outlines = corners_bev(boxes)[..., ::-1]  # (y, x): y runs along the picture's width
    style = {"linewidths": width, "zorder": 4}
    axes.add_collection(
        PolyCollection(
            list(outlines), facecolors=(colour, fill), edgecolors=colour, linestyles="--" if dashed else "-", **style
        )
    )
    axes.add_collection(LineCollection(list(_heading_ticks(boxes)), colors=colour, **style))


def write_beside(axes: Axes, box: Float32Array, text: str, colour: str, reach: float, size: float = 8) -> None:
    """Write a short text to the right of a box, [7]; nothing where that is outside the picture."""
    x, y, _, length, width, _, heading = (float(value) for value in box)
    side = 0.5 * (abs(length * np.sin(heading)) + abs(width * np.cos(heading)))
    axes.annotate(
        text,
        (y - side - reach / 90, x),
        color=colour,
        fontsize=size,
        ha="left",
        va="center",
        zorder=7,
        clip_on=True,
    )


def _draw_rings(axes: Axes, reach: float) -> None:
    step = next((step for step in (10, 20, 50, 100, 200, 500) if reach / step <= 5.5), 1000)
    angle = np.linspace(0, 2 * np.pi, 181)
    for radius in range(step, int(reach * 1.42), step):
        axes.plot(radius * np.sin(angle), radius * np.cos(angle), color="#dfe3e8", linewidth=0.8, zorder=0)
        if radius < reach * 0.97:
            axes.annotate(
                f"{radius} m",
                (0, -radius),
                color=MUTED,
                fontsize=9,
                ha="center",
                va="center",
                zorder=6,
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8, "alpha": 0.8},
            )


def _shades(points: Float32Array, reach: float, ground: float) -> UInt8Array:
    """Return uint8 [side, side]: 0 where there is no point, else from 1 at the ground upwards; the highest on top."""
    size = _POINT_PIXELS
    cell = np.floor((reach - points[:, 1::-1].astype(np.float64)) * (size / (2 * reach))).astype(np.int64)
    inside = ((cell >= 0) & (cell < size)).all(axis=1)
    level = np.searchsorted(_HEIGHT_STEPS, points[inside, 2] - ground, side="right") + 1
    image = np.zeros(size * size, np.uint8)
    np.maximum.at(image, cell[inside, 1] * size + cell[inside, 0], level.astype(np.uint8))
    return image.reshape(size, size)


def _draw_shades(axes: Axes, shades: UInt8Array, colours: UInt8Array, reach: float) -> None:
    axes.imshow(colours[shades], extent=(reach, -reach, -reach, reach), interpolation="none", zorder=1, aspect="equal")


def _heading_ticks(boxes: Float32Array) -> Float64Array:
    """Return the ticks' ends, [M, 2, 2] as (y, x)."""
    half = 0.5 * boxes[:, 3].astype(np.float64)
    forward = np.stack([np.sin(boxes[:, 6]), np.cos(boxes[:, 6])], axis=1)
    centre = boxes[:, 1::-1].astype(np.float64)
    reach = half + np.clip(0.5 * half, 0.4, 1.2)
    return np.stack([centre + half[:, None] * forward * 0.35, centre + reach[:, None] * forward], axis=1)
