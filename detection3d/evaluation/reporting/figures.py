"""The report's charts, each returned as the text of a self-contained SVG."""

import io
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from urllib.parse import quote

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from detection3d.evaluation.average_precision import PrecisionRecallCurve

INK = "#1f2937"
MUTED = "#6b7280"
RULE = "#e5e7eb"
SERIES = ("#1d4ed8", "#d97706", "#047857", "#9d174d", "#6d28d9", "#475569")


@dataclass(frozen=True)
class Curve:
    """One chart of the training.

    Attributes:
        title: what it shows.
        x_label: with its unit.
        y_label: likewise.
        series: name to (x, y); values that aren't finite are left out of the line.
    """

    title: str
    x_label: str
    y_label: str
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]]


def precision_recall_figure(curves: Mapping[str, PrecisionRecallCurve]) -> str:
    """Draw the precision-recall curves of one object type.

    Args:
        curves: by the name of the difficulty level.

    Returns:
        SVG.
    """
    with chart_style():
        figure = Figure(figsize=(4.4, 3.5), layout="constrained")
        axes = figure.add_subplot()
        for k, (name, curve) in enumerate(curves.items()):
            reached = curve.recall > 0
            recall, precision = curve.recall[reached], curve.precision[reached]
            style = "-" if k == 0 else (0, (4, 2))
            axes.plot(recall, precision, color=SERIES[k % len(SERIES)], linestyle=style, label=name)
            if len(recall) == 1:
                axes.plot(recall, precision, "o", color=SERIES[k % len(SERIES)], markersize=4)
        axes.set(xlim=(0, 1.005), ylim=(0, 1.02), xlabel="recall", ylabel="precision")
        if not any((curve.recall > 0).any() for curve in curves.values()):
            axes.text(0.5, 0.5, "nothing found", ha="center", va="center", color=MUTED, fontsize=11)
        else:
            axes.legend(loc="lower left", frameon=False)
        return to_svg(figure)


def line_figure(curve: Curve) -> str:
    """Draw one chart of the training; returns SVG."""
    with chart_style():
        figure = Figure(figsize=(4.4, 3.2), layout="constrained")
        axes = figure.add_subplot()
        for k, (name, (x, y)) in enumerate(curve.series.items()):
            values = np.asarray(y, np.float64)
            axes.plot(x, np.where(np.isfinite(values), values, np.nan), color=SERIES[k % len(SERIES)], label=name)
        axes.set(xlabel=curve.x_label, ylabel=curve.y_label)
        if len(curve.series) > 1:
            axes.legend(frameon=False)
        _mark_empty(axes, curve)
        return to_svg(figure)


def label_text(name: str) -> str:
    """Return a name that a user gave as matplotlib draws it letter by letter, and in legends, too."""
    text = name.replace("$", r"\$")  # else it begins a formula
    return f" {text}" if text.startswith("_") else text  # else it is left out of legends


def chart_style() -> AbstractContextManager[None]:
    """Set matplotlib's defaults for the report's charts, for the duration of a `with` block."""
    return matplotlib.rc_context(
        {
            "font.family": "DejaVu Sans",  # comes with matplotlib, and is drawn as outlines: the same everywhere
            "font.size": 9,
            "text.color": INK,
            "axes.edgecolor": MUTED,
            "axes.labelcolor": INK,
            "axes.linewidth": 0.7,
            "axes.grid": True,
            "axes.axisbelow": True,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "grid.color": RULE,
            "grid.linewidth": 0.7,
            "lines.linewidth": 1.8,
            "xtick.color": MUTED,
            "ytick.color": MUTED,
            "svg.hashsalt": "detection3d",  # the same input gives the same bytes
        }
    )


def to_svg(figure: Figure) -> str:
    """Return a figure as SVG, transparent and without a date."""
    FigureCanvasSVG(figure)
    text = io.StringIO()
    figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    return text.getvalue()


def data_uri(svg: str) -> str:
    """Return an SVG as the address of an image that a page carries in itself."""
    # As an image of its own, so that the identifiers inside can't clash with those of the other figures. Percent signs
    # and brackets are escaped in place: base64 would add a third to the pictures, which hold base64 already.
    return "data:image/svg+xml," + quote(svg, safe="/ :=;,+()!*@$?")


def _mark_empty(axes: Axes, curve: Curve) -> None:
    if not any(len(x) for x, _ in curve.series.values()):
        axes.text(0.5, 0.5, "no values", transform=axes.transAxes, ha="center", va="center", color=MUTED)
