"""The report's pictures: charts and frames from above, each with what a reader who can't see it should know."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from detection3d.evaluation.analysis import Analysis
from detection3d.evaluation.head_errors import box_errors
from detection3d.evaluation.metrics import MetricRow, Metrics
from detection3d.evaluation.reporting.birdseye import birdseye_figure, boxes_beyond
from detection3d.evaluation.reporting.conflict_figures import (
    ConflictView,
    PurityHistory,
    conflict_figure,
    mass_figure,
    purity_figure,
)
from detection3d.evaluation.reporting.error_figures import distribution_figure, reliability_figure
from detection3d.evaluation.reporting.figures import SERIES, Curve, data_uri, line_figure, precision_recall_figure
from detection3d.evaluation.reporting.metrics_table import is_of_interest, percents
from detection3d.evaluation.reporting.report_tables import type_name
from detection3d.evaluation.reporting.scenes import JudgedScene
from detection3d.types.scene import Float64Array, ObjectType

_COLOURS = {ObjectType.VEHICLE: SERIES[0], ObjectType.PEDESTRIAN: SERIES[1], ObjectType.CYCLIST: SERIES[2]}


@dataclass(frozen=True)
class Picture:
    """An image of the report: `source` is a data URI, `alternative` what a reader who can't see it should know."""

    source: str
    alternative: str
    title: str = ""
    caption: str = ""


def precision_recall_pictures(metrics: Metrics) -> list[Picture]:
    """Return the curves of each type that has ground truth."""
    by_type: dict[str, list[MetricRow]] = {}
    for row in metrics.rows:
        if row.breakdown == "OBJECT_TYPE" and row.ground_truth and is_of_interest(row):
            by_type.setdefault(type_name(row.shard.object_type), []).append(row)
    pictures = []
    for name, rows in by_type.items():
        values = [f"level {row.level}: AP {percents(row.ap, row.aph)[0]} %" for row in rows]
        svg = precision_recall_figure({f"level {row.level}": row.curve for row in rows})
        pictures.append(Picture(data_uri(svg), f"Precision against recall for {name}; {'; '.join(values)}", name))
    return pictures


def error_pictures(analysis: Analysis) -> list[Picture]:
    """Return the distributions of the heads' errors; none where nothing was found."""
    centre: dict[str, Float64Array] = {}
    size: dict[str, Float64Array] = {}
    heading: dict[str, Float64Array] = {}
    for kind in analysis.head_errors:
        pairs = analysis.pairs.select(analysis.pairs.types == kind)
        errors, name = box_errors(pairs), type_name(kind)
        centre[name] = errors.centre
        # A box that was matched has volume, so no side of it is 0.
        size[name] = 100 * np.abs(errors.size / pairs.truth[:, 3:6].astype(np.float64)).max(axis=1)
        heading[name] = np.degrees(errors.heading)
    if not centre:
        return []
    charts = (
        ("Centre", centre, "distance from above (m)", None),
        ("Size", size, "error of the side that is most off (%)", None),
        ("Heading", heading, "error (degrees), logarithmic", 90.0),
    )
    return [
        Picture(
            data_uri(distribution_figure(errors, label, mark)),
            f"Distribution of the error of the {title.lower()}; medians: {_medians(errors)}",
            title,
            "Beyond the dashed line front and back are mistaken for each other" if mark else "",
        )
        for title, errors, label, mark in charts
    ]


def reliability_pictures(analysis: Analysis) -> list[Picture]:
    """Return the reliability diagram of each type that was detected."""
    pictures = []
    for kind, calibration in analysis.calibration.items():
        error = calibration.error
        assert error is not None, "a type without detections has no calibration"
        caption = f"expected calibration error {100 * error:.1f} %, {int(calibration.counts.sum()):,} detections"
        svg = reliability_figure(calibration, _COLOURS.get(kind, SERIES[4]))
        name = type_name(kind)
        pictures.append(
            Picture(data_uri(svg), f"Share of matched detections by score: {name}; {caption}", name, caption)
        )
    return pictures


def scene_picture(scene: JudgedScene) -> Picture:
    """Draw a judged frame."""
    name, timestamp = scene.scene.detections.key
    found, missed = int(scene.found.sum()), int((~scene.found).sum())
    false = int((~scene.matched & ~scene.excused).sum())
    if scene.labelled:
        parts = [f"{found} found", f"{missed} missed", f"{false} false"]
        if excused := int(scene.excused.sum()):
            parts.append(f"{excused} in a no-label zone")
        caption = ", ".join(parts)
    else:
        caption = f"{len(scene.boxes)} detections, no ground truth"
    if beyond := boxes_beyond(scene):
        caption += f"; {beyond} boxes lie outside the picture"
    more = [] if scene.scene.points is None else [f"{len(scene.points):,} points"]
    more += [scene.scene.circumstances] if scene.scene.circumstances else []
    return Picture(
        source=data_uri(birdseye_figure(scene)),
        alternative=f"Bird's-eye view of frame {name} at {timestamp}: {caption}",
        title=f"{name} · {timestamp}",
        caption=" · ".join([caption, *more]),
    )


def training_picture(chart: Curve | PurityHistory) -> Picture:
    """Draw a chart of the training."""
    if isinstance(chart, PurityHistory):
        title = "Purity of the sign at the fork"
        alternative = f"{title}: shares of the positions with a gradient by purity, against the step"
        caption = "1: all gradients there are positive, 0: all are negative, ½: both signs weigh the same"
        return Picture(data_uri(purity_figure(chart)), alternative, title, caption)
    alternative = f"{chart.title}: {chart.y_label} against {chart.x_label}; {', '.join(chart.series)}"
    return Picture(data_uri(line_figure(chart)), alternative, chart.title)


def conflict_pictures(view: ConflictView) -> list[Picture]:
    """Draw where the tasks conflict."""
    place = f"step {view.step:,}, over all samples and channels"
    return [
        Picture(
            data_uri(conflict_figure(view)),
            f"Map seen from above of the part of the tasks' gradients that cancels, at step {view.step}",
            "Where the tasks conflict",
            f"{place}: {100 * view.total_share:.1f} % of all gradient cancels between the tasks",
        ),
        Picture(
            data_uri(mass_figure(view)),
            f"Map seen from above of the sum of the tasks' absolute gradients, at step {view.step}",
            "Where there is gradient",
            place,
        ),
    ]


def _medians(errors: Mapping[str, Float64Array]) -> str:
    return ", ".join(f"{name} {np.median(values):.3g}" for name, values in errors.items())
