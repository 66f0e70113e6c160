"""A frame seen from above: points, objects and detections, forward up and left to the left."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.figure import Figure

from detection3d.evaluation.figures import MUTED, chart_style, to_svg
from detection3d.evaluation.scenes import JudgedScene
from detection3d.geometry.host.boxes import corners_bev
from detection3d.types.scene import Float32Array, Float64Array

FOUND = "#047857"  # objects that were found
MISSED = "#be123c"  # objects that weren't
RIGHT = "#1d4ed8"  # detections that found an object
FALSE = "#c2700a"  # detections that didn't
EXCUSED = "#6b7280"  # unmatched detections in a no-label zone; all detections where there is no ground truth

_POINT_PIXELS = 840  # side of the image of the points; the pictures are shown about 540 wide
_HEIGHT_STEPS = (0.3, 0.9, 1.6, 2.6)  # metres above the vehicle's origin, where the grey of the points changes
# Nothing, then from the ground to the tops.
_POINT_COLOURS = np.array(
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
_LARGEST_REACH = 75.0  # metres; further out, a pedestrian is a dot
_MAX_SCORE_LABELS = 80  # beyond that they cover each other


def birdseye_figure(scene: JudgedScene) -> str:
    """Draw a judged scene.

    Args:
        scene: from `judge_scene`.

    Returns:
        SVG with the points as an embedded PNG and the boxes as lines.
    """
    reach = _reach(scene)
    with chart_style():
        figure = Figure(figsize=(7.2, 7.2))
        axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
        axes.set_axis_off()
        axes.set(xlim=(reach, -reach), ylim=(-reach, reach), aspect="equal")
        _draw_rings(axes, reach)
        _draw_points(axes, scene.frame.points, reach)
        _draw_vehicle(axes, reach)
        truth = scene.truth.boxes
        _draw_boxes(axes, truth[scene.found], FOUND, width=0.9, fill=0.35)  # seen through the detection's outline
        _draw_boxes(axes, truth[~scene.found], MISSED, width=1.6, fill=0.18, dashed=True)
        plain = ~scene.matched & (scene.excused | (not scene.labelled))
        _draw_boxes(axes, scene.boxes[plain], EXCUSED, width=1.2)
        _draw_boxes(axes, scene.boxes[scene.matched], RIGHT, width=1.2)
        _draw_boxes(axes, scene.boxes[~scene.matched & ~plain], FALSE, width=1.6, fill=0.18)
        _draw_scores(axes, scene, plain, reach)
        return to_svg(figure)


def boxes_beyond(scene: JudgedScene) -> int:
    """Count the objects and detections whose centre lies outside the picture."""
    centres = np.concatenate([scene.truth.boxes[:, :2], scene.boxes[:, :2]])
    return int((np.abs(centres) > _reach(scene)).any(axis=1).sum())


def _reach(scene: JudgedScene) -> float:
    """Return half the side of the picture, metres: all boxes if they can still be told apart, no empty margin."""
    centres = np.concatenate([scene.truth.boxes[:, :2], scene.boxes[:, :2]])
    boxes = float(np.abs(centres).max(initial=0.0)) + 4.0
    points = np.abs(scene.frame.points[:, :2]).max(axis=1, initial=0.0)
    crowd = float(np.quantile(points, 0.97)) if len(points) else 0.0
    return float(np.clip(max(boxes, crowd), 15.0, _LARGEST_REACH))


def _draw_rings(axes: Axes, reach: float) -> None:
    step = next(step for step in (10, 20, 50, 100) if reach / step <= 5.5)
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


def _draw_points(axes: Axes, points: Float32Array, reach: float) -> None:
    """Draw the points as an image of a few grey levels: markers would make the report ten times as large."""
    size = _POINT_PIXELS
    cell = np.floor((reach - points[:, 1::-1].astype(np.float64)) * (size / (2 * reach))).astype(np.int64)
    inside = ((cell >= 0) & (cell < size)).all(axis=1)
    level = np.searchsorted(_HEIGHT_STEPS, points[inside, 2], side="right") + 1
    image = np.zeros(size * size, np.uint8)
    np.maximum.at(image, cell[inside, 1] * size + cell[inside, 0], level.astype(np.uint8))  # the highest on top
    axes.imshow(
        _POINT_COLOURS[image].reshape(size, size, 4),
        extent=(reach, -reach, -reach, reach),
        interpolation="none",
        zorder=1,
        aspect="equal",
    )


def _draw_vehicle(axes: Axes, reach: float) -> None:
    size = reach / 42
    shape = np.array([[0, 1.6], [1, -1.2], [0, -0.6], [-1, -1.2]]) * size
    axes.add_collection(PolyCollection([shape], facecolors="#111827", edgecolors="white", linewidths=0.8, zorder=5))


def _draw_boxes(
    axes: Axes, boxes: Float32Array, colour: str, width: float, fill: float = 0.0, dashed: bool = False
) -> None:
    """Draw outlines, and a tick from the centre to a little beyond the front that shows the heading."""
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


def _heading_ticks(boxes: Float32Array) -> Float64Array:
    """Return the ticks' ends, [M, 2, 2] as (y, x)."""
    half = 0.5 * boxes[:, 3].astype(np.float64)
    forward = np.stack([np.sin(boxes[:, 6]), np.cos(boxes[:, 6])], axis=1)
    centre = boxes[:, 1::-1].astype(np.float64)
    reach = half + np.clip(0.5 * half, 0.4, 1.2)
    return np.stack([centre + half[:, None] * forward * 0.35, centre + reach[:, None] * forward], axis=1)


def _draw_scores(axes: Axes, scene: JudgedScene, plain: np.ndarray, reach: float) -> None:
    best = np.argsort(-scene.scores, kind="stable")[:_MAX_SCORE_LABELS]
    for index in best:
        x, y, _, length, width, _, heading = (float(value) for value in scene.boxes[index])
        side = 0.5 * (abs(length * np.sin(heading)) + abs(width * np.cos(heading)))
        colour = EXCUSED if plain[index] else RIGHT if scene.matched[index] else FALSE
        axes.annotate(
            f"{scene.scores[index]:.2f}".lstrip("0"),
            (y - side - reach / 90, x),
            color=colour,
            fontsize=8,
            ha="left",
            va="center",
            zorder=7,
            clip_on=True,
        )
