"""The report of a comparison of methods: one HTML file that needs nothing else."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from detection3d.evaluation.comparison import CONVERGED, LEVEL, METRICS, ClassScores, Comparison, MethodRuns, Metric
from detection3d.evaluation.reporting import comparison_text as text
from detection3d.evaluation.reporting.comparison_figures import (
    difference_figure,
    metric_figure,
    rate_figure,
    training_figure,
)
from detection3d.evaluation.reporting.figures import data_uri
from detection3d.files import replace_file

FILE_NAME = "report.html"


@dataclass(frozen=True)
class _Picture:
    """A chart: `alternative` says what a reader who can't see it should know."""

    title: str
    source: str
    alternative: str


@dataclass(frozen=True)
class _Row:
    """A method's line in the main table."""

    name: str
    runs: str
    rate: str
    metrics: tuple[str, ...]
    difference: str
    interval: str
    probability: str
    verdict: str
    speed: str
    move: str
    converged: bool


@dataclass(frozen=True)
class _MetricRow:
    """A method's line in the table of one of the other measures."""

    name: str
    value: str
    difference: str
    interval: str
    probability: str
    verdict: str


def write_comparison_report(folder: Path, comparison: Comparison, provenance: Mapping[str, Any]) -> Path:
    """Write `report.html` into an existing folder and return its path.

    Args:
        folder: the comparison's.
        comparison: what was found.
        provenance: what the numbers come from, shown as a list.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    html = environment.get_template("comparison.html.j2").render(
        title=f"{len(comparison.methods)} methods at one fork",
        comparison=comparison,
        headline=text.headline(comparison),
        warnings=text.warnings(comparison),
        limits=text.limits(comparison),
        level=LEVEL,
        converged=f"{100 * CONVERGED:g}",
        metrics=list(METRICS.values()),
        rows=[_row(comparison, method) for method in comparison.methods],
        others={METRICS[metric]: _metric_rows(comparison, metric) for metric in METRICS if metric != "ap"},
        classes=_classes(comparison),
        differences=[
            _picture(f"{METRICS[metric]}: differences", difference_figure(comparison, metric), _say(comparison, metric))
            for metric in METRICS
        ],
        dots=[
            _picture(f"{METRICS[metric]}: every run", metric_figure(comparison, metric), _values(comparison, metric))
            for metric in METRICS
        ],
        rates=_rates(comparison),
        training=_training(comparison),
        settings={method.name: _plain(dict(method.settings)) for method in comparison.methods},
        provenance={name: _plain(value) for name, value in provenance.items()},
    )
    path = folder / FILE_NAME
    replace_file(path, html.encode())
    return path


def _row(comparison: Comparison, method: MethodRuns) -> _Row:
    found = comparison.differences("ap").get(method.name)
    return _Row(
        name=method.name,
        runs=f"{len(method.runs)}/{len(comparison.seeds)}",
        rate=text.rate(method),
        metrics=tuple(text.mean_and_spread(method, metric) for metric in METRICS),
        difference="baseline" if found is None else text.difference(found),
        interval="" if found is None else text.interval(found),
        probability="" if found is None else text.probability(found),
        verdict="" if found is None else found.verdict,
        speed=text.speed(method),
        move=text.move(method),
        converged=method.convergence is None or method.convergence.holds,
    )


def _metric_rows(comparison: Comparison, metric: Metric) -> list[_MetricRow]:
    differences = comparison.differences(metric)
    rows = []
    for method in comparison.methods:
        value, found = text.mean_and_spread(method, metric), differences.get(method.name)
        cells = ("baseline", "", "", "")
        if found is not None:
            cells = (text.difference(found), text.interval(found), text.probability(found), found.verdict)
        rows.append(_MetricRow(method.name, value, *cells))
    return rows


def _classes(comparison: Comparison) -> dict[str, dict[str, list[str]]]:
    """Return AP, APH and error of each class: class to method to cells; no verdicts, these are for looking."""
    names = sorted({item.name for method in comparison.methods for run in method.runs for item in run.final.classes})

    def cell(items: list[ClassScores], metric: Metric) -> str:
        values = 100 * np.array([getattr(item, metric) for item in items])
        return f"{values.mean():.2f}" + (f" ± {values.std(ddof=1):.2f}" if len(values) > 1 else "")

    return {
        name: {
            method.name: [cell([run.final.of(name) for run in method.runs], metric) for metric in METRICS]
            for method in comparison.methods
            if method.runs
        }
        for name in names
    }


def _rates(comparison: Comparison) -> list[_Picture]:
    if not comparison.grid_seeds:
        return []
    chosen = "; ".join(f"{method.name} {text.rate(method)}" for method in comparison.methods)
    return [_picture("AP by learning rate", rate_figure(comparison), f"chosen: {chosen}")]


def _training(comparison: Comparison) -> list[_Picture]:
    titles = dict.fromkeys(title for method in comparison.methods for title in method.telemetry)
    pictures = []
    for title in titles:
        curves = {method.name: method.telemetry[title] for method in comparison.methods if title in method.telemetry}
        last = "; ".join(f"{name} {values[-1]:.3g}" for name, (_, values) in curves.items())
        figure = training_figure(curves, comparison.baseline, logarithmic=title.endswith("loss"))
        pictures.append(_picture(title, figure, f"At the end: {last}"))
    return pictures


def _picture(title: str, svg: str, alternative: str) -> _Picture:
    return _Picture(title, data_uri(svg), f"{title}. {alternative}")


def _say(comparison: Comparison, metric: Metric) -> str:
    differences = comparison.differences(metric)
    return "; ".join(
        f"{name} {text.difference(found)} {text.interval(found)} {found.verdict}" for name, found in differences.items()
    )


def _values(comparison: Comparison, metric: Metric) -> str:
    return "; ".join(f"{method.name} {text.mean_and_spread(method, metric)}" for method in comparison.methods)


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_plain(item)}" for name, item in value.items() if item is not None)
    if isinstance(value, list | tuple):
        return ", ".join(map(_plain, value))
    return str(value)
