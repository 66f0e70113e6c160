"""A judged frame seen from above: points, objects and detections."""

import numpy as np
from matplotlib.axes import Axes

from detection3d.evaluation.reporting.birdseye_canvas import (
    birdseye_axes,
    draw_boxes,
    draw_points,
    draw_vehicle,
    fitting_reach,
    write_beside,
)
from detection3d.evaluation.reporting.figures import to_svg
from detection3d.evaluation.reporting.scenes import JudgedScene

FOUND = "#047857"  # objects that were found
MISSED = "#be123c"  # objects that weren't
RIGHT = "#1d4ed8"  # detections that found an object
FALSE = "#c2700a"  # detections that didn't
EXCUSED = "#6b7280"  # unmatched detections in a no-label zone; all detections where there is no ground truth

_MAX_SCORE_LABELS = 80  # beyond that they cover each other


def birdseye_figure(scene: JudgedScene) -> str:
    """Draw a judged scene.

    Args:
        scene: from `judge_scene`.

    Returns:
        SVG with the points as an embedded PNG and the boxes as lines.
    """
    reach = _reach(scene)
    with birdseye_axes(reach) as (figure, axes):
        draw_points(axes, scene.points, reach)
        draw_vehicle(axes, reach)
        truth = scene.truth.boxes
        draw_boxes(axes, truth[scene.found], FOUND, width=0.9, fill=0.35)  # seen through the detection's outline
        draw_boxes(axes, truth[~scene.found], MISSED, width=1.6, fill=0.18, dashed=True)
        plain = ~scene.matched & (scene.excused | (not scene.labelled))
        draw_boxes(axes, scene.boxes[plain], EXCUSED, width=1.2)
        draw_boxes(axes, scene.boxes[scene.matched], RIGHT, width=1.2)
        draw_boxes(axes, scene.boxes[~scene.matched & ~plain], FALSE, width=1.6, fill=0.18)
        _draw_scores(axes, scene, plain, reach)
        return to_svg(figure)


def boxes_beyond(scene: JudgedScene) -> int:
    """Count the objects and detections whose centre lies outside the picture."""
    return int((np.abs(_centres(scene)) > _reach(scene)).any(axis=1).sum())


def _reach(scene: JudgedScene) -> float:
    return fitting_reach(_centres(scene), scene.points)


def _centres(scene: JudgedScene) -> np.ndarray:
    return np.concatenate([scene.truth.boxes[:, :2], scene.boxes[:, :2]])


def _draw_scores(axes: Axes, scene: JudgedScene, plain: np.ndarray, reach: float) -> None:
    best = np.argsort(-scene.scores, kind="stable")[:_MAX_SCORE_LABELS]
    for index in best:
        colour = EXCUSED if plain[index] else RIGHT if scene.matched[index] else FALSE
        write_beside(axes, scene.boxes[index], f"{scene.scores[index]:.2f}".lstrip("0"), colour, reach)
