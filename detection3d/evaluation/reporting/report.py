"""The report: one HTML file that needs nothing else, neither a network nor a server."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import jinja2

from detection3d.evaluation.analysis import Analysis
from detection3d.evaluation.metrics import MetricConfig, Metrics
from detection3d.evaluation.operating_point import best_cutoff, is_best_known
from detection3d.evaluation.reporting import report_tables as tables
from detection3d.evaluation.reporting.birdseye import EXCUSED, FALSE, FOUND, MISSED, RIGHT
from detection3d.evaluation.reporting.conflict_figures import ConflictView, PurityHistory
from detection3d.evaluation.reporting.figures import Curve
from detection3d.evaluation.reporting.metrics_table import types_of_interest
from detection3d.evaluation.reporting.report_pictures import (
    Picture,
    conflict_pictures,
    error_pictures,
    precision_recall_pictures,
    reliability_pictures,
    scene_picture,
    training_picture,
)
from detection3d.evaluation.reporting.scenes import Scene, judge_scene
from detection3d.files import replace_file

__all__ = ["MAX_SCENES", "ConflictView", "Curve", "PurityHistory", "Scene", "page_environment", "write_report"]

MAX_SCENES = 8
"""Pictures in a report: each takes 100 to 300 kB, and a report should open at once."""

LEGEND = {"FOUND": FOUND, "MISSED": MISSED, "RIGHT": RIGHT, "FALSE": FALSE, "EXCUSED": EXCUSED}


def write_report(
    path: Path | str,
    metrics: Metrics,
    scenes: Sequence[Scene],
    title: str,
    provenance: Mapping[str, str],
    training_charts: Sequence[Curve | PurityHistory] = (),
    conflict: ConflictView | None = None,
    config: MetricConfig | None = None,
    *,
    analysis: Analysis | None = None,
    facts: Mapping[str, str] | None = None,
) -> Path:
    """Write the report.

    Args:
        path: the HTML file; it is replaced at once, when the content is complete.
        metrics: the result of `evaluate`.
        scenes: frames to draw from above; at most `MAX_SCENES` are drawn, and the report says how many there were.
        title: the heading.
        provenance: what the numbers come from, shown as a list.
        training_charts: charts of the training; none leaves them out.
        conflict: where the tasks conflicted in training; None leaves the maps out.
        config: the metrics' configuration, for the pictures; None takes the official one.
        analysis: what `analyse` returned for the same files; None leaves out errors, calibration and counts. The
            scenes should be those of `analysis.shown`.
        facts: what was evaluated as far as only the caller knows, such as the data's folder; shown before the counts.

    Returns:
        The path.
    """
    config = MetricConfig() if config is None else config
    cutoff, shown = best_cutoff(metrics), types_of_interest(metrics)
    html = (
        page_environment()
        .get_template("report.html.j2")
        .render(
            title=title,
            frames=metrics.frames,
            coverage=None if analysis is None else analysis.coverage,
            headline=tables.headline(metrics),
            cards=tables.cards(metrics),
            by_type=tables.metric_lines(metrics, "OBJECT_TYPE"),
            by_range=tables.metric_lines(metrics, "RANGE"),
            others=tables.other_breakdowns(metrics),
            means=tables.mean_lines(metrics),
            curves=precision_recall_pictures(metrics),
            errors=[] if analysis is None else tables.error_rows(analysis),
            error_charts=[] if analysis is None else error_pictures(analysis),
            reliability=[] if analysis is None else reliability_pictures(analysis),
            overall_calibration=None if analysis is None else analysis.overall_calibration.error,
            scene_groups=_scene_groups(
                [
                    (scene.detections.key, scene_picture(judge_scene(scene, cutoff, config, shown)))
                    for scene in scenes[:MAX_SCENES]
                ],
                analysis,
            ),
            scenes_drawn=min(len(scenes), MAX_SCENES),
            scene_count=len(scenes),
            with_points=any(scene.points is not None for scene in scenes),
            cutoff=f"{cutoff:.2f}",
            best_known=is_best_known(metrics),
            legend=LEGEND,
            training=[training_picture(chart) for chart in training_charts],
            conflict=[] if conflict is None else conflict_pictures(conflict),
            objects=[] if analysis is None else tables.coverage_rows(analysis.coverage),
            with_no_level=analysis is not None and tables.has_boxes_without_level(analysis.coverage),
            facts=tables.evaluated_facts(analysis, facts or {}),
            provenance=provenance,
        )
    )
    replace_file(Path(path), html.encode())
    return Path(path)


def page_environment() -> jinja2.Environment:
    """Return where the pages' templates come from."""
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )


def _scene_groups(
    pictures: Sequence[tuple[tuple[str, int], Picture]], analysis: Analysis | None
) -> dict[str, list[Picture]]:
    """Return the pictures by the reason why they were chosen."""
    if analysis is None:
        return {"": [picture for _, picture in pictures]} if pictures else {}
    worst = {frame.key for frame in analysis.worst}
    groups = {
        "The worst of their segments: most objects missed and detections false": [
            picture for key, picture in pictures if key in worst
        ],
        "Drawn at random from the others": [picture for key, picture in pictures if key not in worst],
    }
    return {name: group for name, group in groups.items() if group}
