"""The report: one HTML file that needs nothing else, neither a network nor a server."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2

from detection3d.evaluation.birdseye import EXCUSED, FALSE, FOUND, MISSED, RIGHT, birdseye_figure, boxes_beyond
from detection3d.evaluation.conflict_figures import (
    ConflictView,
    PurityHistory,
    conflict_figure,
    mass_figure,
    purity_figure,
)
from detection3d.evaluation.figures import Curve, data_uri, line_figure, precision_recall_figure
from detection3d.evaluation.metrics import MetricConfig, MetricRow, Metrics
from detection3d.evaluation.metrics_json import MeanMetric, mean_metrics
from detection3d.evaluation.metrics_table import is_of_interest, percents
from detection3d.evaluation.scenes import JudgedScene, Scene, best_cutoff, judge_scene
from detection3d.files import replace_file

__all__ = ["MAX_SCENES", "ConflictView", "Curve", "PurityHistory", "Scene", "write_report"]

MAX_SCENES = 8
"""Pictures in a report: each takes 100 to 300 kB, and a report should open at once."""

NOT_AVAILABLE = "n/a"


@dataclass(frozen=True)
class _Picture:
    """An image of the report: `source` is a data URI, `alternative` what a reader who can't see it should know."""

    source: str
    alternative: str
    title: str = ""
    caption: str = ""


@dataclass(frozen=True)
class _Line:
    """A line of a metric table; `ap` is empty where there is no ground truth."""

    name: str
    level: int
    ap: str
    aph: str
    counts: tuple[str, ...]
    first_of_type: bool


@dataclass(frozen=True)
class _Card:
    """A number at the top of the report."""

    name: str
    value: str
    detail: str


def write_report(
    path: Path | str,
    metrics: Metrics,
    scenes: Sequence[Scene],
    title: str,
    provenance: Mapping[str, str],
    training_charts: Sequence[Curve | PurityHistory] = (),
    conflict: ConflictView | None = None,
    config: MetricConfig | None = None,
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

    Returns:
        The path.
    """
    config = MetricConfig() if config is None else config
    cutoff = best_cutoff(metrics)
    shown = {row.shard.object_type for row in metrics.rows if is_of_interest(row)}
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    html = environment.get_template("report.html.j2").render(
        title=title,
        frames=metrics.frames,
        cards=_cards(metrics),
        by_type=_lines(metrics, "OBJECT_TYPE"),
        by_range=_lines(metrics, "RANGE"),
        means=_mean_lines(metrics),
        curves=_precision_recall(metrics),
        scenes=[_scene_picture(judge_scene(scene, cutoff, config, shown)) for scene in scenes[:MAX_SCENES]],
        scene_count=len(scenes),
        cutoff=f"{cutoff:.2f}",
        legend={"FOUND": FOUND, "MISSED": MISSED, "RIGHT": RIGHT, "FALSE": FALSE, "EXCUSED": EXCUSED},
        training=[_training_picture(chart) for chart in training_charts],
        conflict=[] if conflict is None else _conflict_pictures(conflict),
        provenance=provenance,
    )
    replace_file(Path(path), html.encode())
    return Path(path)


def _cards(metrics: Metrics) -> list[_Card]:
    cards = []
    for level, mean in mean_metrics(metrics).items():
        cards.append(_mean_card(level, mean))
    hardest = max((row.level for row in metrics.rows), default=0)
    for row in metrics.rows:
        if row.breakdown == "OBJECT_TYPE" and row.level == hardest and is_of_interest(row):
            value = percents(row.ap, row.aph)[0] if row.ground_truth else NOT_AVAILABLE
            detail = f"APH {percents(row.ap, row.aph)[1]}" if row.ground_truth else "no ground truth"
            cards.append(_Card(f"{_type_name(row)}, level {row.level}", value, detail))
    return cards


def _mean_card(level: int, mean: MeanMetric) -> _Card:
    if mean.ap is None or mean.aph is None:
        return _Card(f"Mean, level {level}", NOT_AVAILABLE, "no ground truth")
    ap, aph = percents(mean.ap, mean.aph)
    missing = f", without {', '.join(mean.without_ground_truth).lower()}" if mean.without_ground_truth else ""
    return _Card(f"Mean, level {level}", ap, f"APH {aph}{missing}")


def _lines(metrics: Metrics, breakdown: str) -> list[_Line]:
    lines: list[_Line] = []
    previous = None
    for row in metrics.rows:
        if row.breakdown != breakdown or not is_of_interest(row):
            continue
        ap, aph = percents(row.ap, row.aph) if row.ground_truth else ("", "")
        counts = (row.ground_truth, row.predictions, row.true_positives, row.false_positives, row.false_negatives)
        name = f"{_type_name(row)} {_distance(row)}".strip()
        lines.append(_Line(name, row.level, ap, aph, tuple(f"{count:,}" for count in counts), name != previous))
        previous = name
    return lines


def _mean_lines(metrics: Metrics) -> list[_Line]:
    lines = []
    for level, mean in mean_metrics(metrics).items():
        ap, aph = ("", "") if mean.ap is None or mean.aph is None else percents(mean.ap, mean.aph)
        over = ", ".join(mean.over).lower()
        lines.append(_Line(f"Mean over {over}" if over else "Mean", level, ap, aph, (), not lines))
    return lines


def _precision_recall(metrics: Metrics) -> list[_Picture]:
    by_type: dict[str, list[MetricRow]] = {}
    for row in metrics.rows:
        if row.breakdown == "OBJECT_TYPE" and row.ground_truth and is_of_interest(row):
            by_type.setdefault(_type_name(row), []).append(row)
    pictures = []
    for name, rows in by_type.items():
        values = [f"level {row.level}: AP {percents(row.ap, row.aph)[0]} %" for row in rows]
        svg = precision_recall_figure({f"level {row.level}": row.curve for row in rows})
        pictures.append(_Picture(data_uri(svg), f"Precision against recall for {name}; {'; '.join(values)}", name))
    return pictures


def _scene_picture(scene: JudgedScene) -> _Picture:
    frame = scene.frame
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
    extra = ", ".join(filter(None, (frame.time_of_day, frame.weather, frame.location)))
    return _Picture(
        source=data_uri(birdseye_figure(scene)),
        alternative=f"Bird's-eye view of frame {frame.context_name} at {frame.timestamp_micros}: {caption}",
        title=f"{frame.context_name} · {frame.timestamp_micros}",
        caption=f"{caption} · {len(frame.points):,} points" + (f" · {extra}" if extra else ""),
    )


def _training_picture(chart: Curve | PurityHistory) -> _Picture:
    if isinstance(chart, PurityHistory):
        title = "Purity of the sign at the fork"
        alternative = f"{title}: shares of the positions with a gradient by purity, against the step"
        caption = "1: all gradients there are positive, 0: all are negative, ½: both signs weigh the same"
        return _Picture(data_uri(purity_figure(chart)), alternative, title, caption)
    alternative = f"{chart.title}: {chart.y_label} against {chart.x_label}; {', '.join(chart.series)}"
    return _Picture(data_uri(line_figure(chart)), alternative, chart.title)


def _conflict_pictures(view: ConflictView) -> list[_Picture]:
    place = f"step {view.step:,}, over all samples and channels"
    return [
        _Picture(
            data_uri(conflict_figure(view)),
            f"Map seen from above of the part of the tasks' gradients that cancels, at step {view.step}",
            "Where the tasks conflict",
            f"{place}: {100 * view.total_share:.1f} % of all gradient cancels between the tasks",
        ),
        _Picture(
            data_uri(mass_figure(view)),
            f"Map seen from above of the sum of the tasks' absolute gradients, at step {view.step}",
            "Where there is gradient",
            place,
        ),
    ]


def _type_name(row: MetricRow) -> str:
    return row.shard.object_type.name.capitalize()


def _distance(row: MetricRow) -> str:
    """Write the official "[30, 50)" and "[50, +inf)" for people."""
    if not row.shard.distance:
        return ""
    near, far = row.shard.distance.strip("[)").split(", ")
    return f"beyond {near} m" if far == "+inf" else f"{near} to {far} m"
