"""The page of a side-by-side comparison: one HTML file that needs nothing else."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from detection3d.evaluation.reporting import side_by_side_text as text
from detection3d.evaluation.reporting.figures import MUTED, SERIES, chart_style, data_uri, label_text, to_svg
from detection3d.evaluation.reporting.report import page_environment
from detection3d.evaluation.reporting.report_pictures import Picture
from detection3d.evaluation.side_by_side import MEASURES, Column, Measure, RowKey, SideBySide
from detection3d.files import replace_file
from detection3d.types.scene import Float32Array

FILE_NAME = "report.html"
JSON_NAME = "comparison.json"


@dataclass(frozen=True)
class _Cell:
    """A value, what stands below it, and whether the difference is shown: "higher", "lower" or nothing."""

    value: str
    details: tuple[str, ...] = ()
    verdict: str = ""


def write_side_by_side(folder: Path, comparison: SideBySide) -> Path:
    """Write `report.html` and `comparison.json` into an existing folder.

    Returns:
        The path of the report.
    """
    different, same = text.provenance_differences(comparison.columns)
    coverage = comparison.columns[0].analysis.coverage
    html = (
        page_environment()
        .get_template("side_by_side.html.j2")
        .render(
            title=_title(comparison),
            labels=[column.label for column in comparison.columns],
            colours=[_colour(place) for place in range(len(comparison.columns))],
            coverage=coverage,
            headline=text.row_title(comparison.headline),
            cards=[_cell(column, comparison.headline, "APH") for column in comparison.columns],
            sentences=[text.sentence(comparison, column) for column in comparison.columns[1:]],
            notes=comparison.notes,
            method=text.method_note(comparison),
            tables={
                measure: [
                    (text.row_title(row), [_cell(column, row, measure) for column in comparison.columns])
                    for row in comparison.rows
                ]
                for measure in MEASURES
            },
            differences=_differences(comparison),
            curves=_curves(comparison),
            errors=text.head_error_rows(comparison.columns),
            frames=[f"{column.metrics.frames:,}" for column in comparison.columns],
            detections=[f"{sum(column.analysis.coverage.detections.values()):,}" for column in comparison.columns],
            folders=[str(column.folder.path) for column in comparison.columns],
            different=different,
            same=same,
        )
    )
    replace_file(folder / JSON_NAME, text.comparison_to_json(comparison).encode())
    replace_file(folder / FILE_NAME, html.encode())
    return folder / FILE_NAME


def _title(comparison: SideBySide) -> str:
    labels = [column.label for column in comparison.columns]
    if len(labels) == 1:
        return labels[0]
    if len(labels) <= 3:
        return " and ".join((", ".join(labels[:-1]), labels[-1]))
    return f"{len(labels)} evaluations side by side"


def _cell(column: Column, row: RowKey, measure: Measure) -> _Cell:
    value = column.values[row, measure]
    if value.value is None:
        return _Cell("n/a", ("no ground truth",))
    found = value.difference
    if found is None:
        details = () if value.interval is None else (text.interval_text(value.interval, False),)
        return _Cell(text.percent(value.value), details)
    spread = text.verdict_text(found) if found.interval is None else text.interval_text(found.interval, True)
    verdict = found.verdict if found.verdict in ("higher", "lower") else ""
    return _Cell(text.percent(value.value), (text.signed(found.value), spread), verdict)


def _differences(comparison: SideBySide) -> list[Picture]:
    """Return the differences with their intervals; none where there is nothing to compare or to resample."""
    shown = [
        row for row in comparison.rows if any(_spread(column, row) is not None for column in comparison.columns[1:])
    ]
    if not shown:
        return []
    with chart_style():
        others = comparison.columns[1:]
        figure = Figure(figsize=(6.4, 0.9 + 0.26 * len(shown) * (len(others) + 0.6)), layout="constrained")
        axes = figure.add_subplot()
        axes.axvline(0, color=MUTED, linewidth=0.9)
        for place, column in enumerate(others):
            for line, row in enumerate(shown):
                found = column.values[row, "APH"].difference
                if found is None or found.interval is None:
                    continue
                y = line + (place - (len(others) - 1) / 2) * 0.62 / len(others)
                low, high = (100 * end for end in found.interval)
                colour = _colour(place + 1)
                solid = found.verdict in ("higher", "lower")
                axes.plot([low, high], [y, y], color=colour, linewidth=2.2 if solid else 1.2)
                axes.plot(
                    100 * found.value, y, "o", color=colour, markersize=5, markerfacecolor=colour if solid else "white"
                )
        axes.set_yticks(range(len(shown)), [text.row_title(row) for row in shown])
        axes.set_ylim(len(shown) - 0.5, -0.5)
        axes.set_xlabel(f"APH minus that of {label_text(comparison.columns[0].label)}, points")
        svg = to_svg(figure)
    told = "; ".join(text.sentence(comparison, column) for column in others)
    caption = "Filled: the interval leaves out 0. Hollow: no difference is shown."
    return [Picture(data_uri(svg), f"Differences in APH with their intervals. {told}", "", caption)]


def _spread(column: Column, row: RowKey) -> tuple[float, float] | None:
    found = column.values[row, "APH"].difference
    return None if found is None else found.interval


def _curves(comparison: SideBySide) -> list[Picture]:
    """Return the precision-recall curves of each type that has ground truth, at the hardest level."""
    level = comparison.headline.level
    pictures = []
    for kind in [row.object_type for row in comparison.rows if row.object_type is not None and row.level == level]:
        name = f"OBJECT_TYPE_TYPE_{kind.name}_LEVEL_{level}"
        rows = {column.label: column.metrics.row(name) for column in comparison.columns}
        if next(iter(rows.values())).ground_truth == 0:
            continue
        curves = {label: (row.curve.recall, row.curve.precision) for label, row in rows.items()}
        told = "; ".join(f"{label}: AP {text.percent(float(row.ap))} %" for label, row in rows.items())
        title = f"{kind.name.capitalize()}, level {level}"
        pictures.append(Picture(data_uri(_curve_figure(curves)), f"Precision against recall, {title}; {told}", title))
    return pictures


def _curve_figure(curves: Mapping[str, tuple[Float32Array, Float32Array]]) -> str:
    with chart_style():
        figure = Figure(figsize=(4.4, 3.5), layout="constrained")
        axes = figure.add_subplot()
        for place, (label, (recall, precision)) in enumerate(curves.items()):
            reached = np.flatnonzero(recall > 0)
            style = "-" if place == 0 else (0, (4, 2))
            axes.plot(
                recall[reached], precision[reached], color=_colour(place), linestyle=style, label=label_text(label)
            )
        axes.set(xlim=(0, 1.005), ylim=(0, 1.02), xlabel="recall", ylabel="precision")
        axes.legend(loc="lower left", frameon=False)
        return to_svg(figure)


def _colour(place: int) -> str:
    return SERIES[place % len(SERIES)]
