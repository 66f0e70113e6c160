"""The charts of a comparison of methods, each returned as the text of a self-contained SVG."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter

from detection3d.evaluation.comparison import METRICS, Comparison, Metric
from detection3d.evaluation.reporting.figures import INK, MUTED, SERIES, chart_style, label_text, to_svg

WIDTH = 5.0  # inches
HEIGHT_OF_A_METHOD = 0.34
SPREAD = 0.5  # of a row's height, over which its dots are spread by seed
DASHES = ("-", (0, (5, 2)))


def metric_figure(comparison: Comparison, metric: Metric) -> str:
    """Draw one dot for each run, one row for each method, and a bar at the mean."""
    names = [method.name for method in comparison.methods]
    with chart_style():
        figure, axes = _rows(names)
        for row, method in enumerate(comparison.methods):
            values = 100 * np.array(method.values(metric))
            colour = MUTED if method.name == comparison.baseline else SERIES[0]
            places = row + _offsets([run.seed for run in method.runs], comparison.seeds)
            axes.plot(values, places, "o", color=colour, markersize=3.6, alpha=0.75, markeredgewidth=0)
            if len(values):
                axes.plot([values.mean()] * 2, [row - 0.36, row + 0.36], color=INK, linewidth=1.6)
        axes.set(xlabel=f"{METRICS[metric]}, %")
        return to_svg(figure)


def difference_figure(comparison: Comparison, metric: Metric) -> str:
    """Draw each seed's difference to the baseline, the mean, and both intervals of it."""
    differences = comparison.differences(metric)
    with chart_style():
        figure, axes = _rows(list(differences))
        axes.axvline(0, color=INK, linewidth=0.9)
        for row, (name, found) in enumerate(differences.items()):
            paired = comparison.paired(name, metric)
            places = row + _offsets(list(paired), comparison.seeds)
            axes.plot(100 * np.array(list(paired.values())), places, "o", color=MUTED, markersize=3, alpha=0.6,
                      markeredgewidth=0)  # fmt: skip
            colour = INK if found.verdict == "no difference shown" else SERIES[0]
            for interval, width in ((found.corrected_interval, 1.1), (found.interval, 3.4)):
                if interval is not None:
                    low, high = (100 * end for end in interval)
                    axes.plot([low, high], [row, row], color=colour, linewidth=width, solid_capstyle="butt")
            if found.mean is not None:
                axes.plot([100 * found.mean], [row], "o", color=colour, markersize=6, markeredgecolor="white")
        axes.set(xlabel=f"{METRICS[metric]} minus that of {comparison.baseline}, points")
        return to_svg(figure)


def rate_figure(comparison: Comparison) -> str:
    """Draw the mean AP of the choice's runs against the learning rate; the chosen one is ringed."""
    with chart_style():
        figure = Figure(figsize=(WIDTH, 3.6), layout="constrained")
        axes = figure.add_subplot()
        for number, method in enumerate(comparison.methods):
            choice = method.choice
            points = [
                (rate, 100 * float(np.mean(list(scores.values()))))
                for rate, scores in zip(choice.rates, choice.scores, strict=True)
                if scores
            ]
            colour, dashes = _style(number, method.name == comparison.baseline)
            axes.plot(
                *_columns(points), "o", linestyle=dashes, color=colour, markersize=3.5, label=label_text(method.name)
            )
            chosen = [point for point in points if point[0] == choice.chosen]
            axes.plot(*_columns(chosen), "o", color=colour, markersize=9, fillstyle="none")
        rates = comparison.methods[0].choice.rates
        axes.set(xlabel="peak learning rate", ylabel="AP, %", xscale="log")
        axes.set_xticks(rates, labels=[f"{rate:g}" for rate in rates])
        axes.minorticks_off()
        _legend(figure, axes)
        return to_svg(figure)


def training_figure(
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]], baseline: str, *, logarithmic: bool
) -> str:
    """Draw one quantity over the steps, a line for each method.

    Args:
        curves: steps and values by method.
        baseline: the method that is drawn in black.
        logarithmic: the scale of the values.
    """
    with chart_style():
        figure = Figure(figsize=(WIDTH, 3.6), layout="constrained")
        axes = figure.add_subplot()
        for number, (name, (steps, values)) in enumerate(curves.items()):
            colour, dashes = _style(number, name == baseline)
            axes.plot(steps, values, color=colour, linestyle=dashes, linewidth=1.5, label=label_text(name))
        axes.set(xlabel="step")
        if logarithmic:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(2, 0.5)))
        _legend(figure, axes)
        return to_svg(figure)


def _rows(names: Sequence[str]) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, 0.75 + HEIGHT_OF_A_METHOD * max(len(names), 1)), layout="constrained")
    axes = figure.add_subplot()
    axes.set_yticks(range(len(names)), labels=list(names), color=INK)
    axes.set_ylim(len(names) - 0.4, -0.6)  # the first method on top
    axes.tick_params(axis="y", length=0)
    return figure, axes


def _offsets(seeds: Sequence[int], of: Sequence[int]) -> np.ndarray:
    """Return where a run stands within its row: each seed in its own place, the same in every row."""
    places = np.linspace(-SPREAD / 2, SPREAD / 2, len(of)) if len(of) > 1 else np.zeros(1)
    return np.array([places[list(of).index(seed)] for seed in seeds])


def _style(number: int, baseline: bool) -> tuple[str, str | tuple[int, tuple[int, int]]]:
    if baseline:
        return INK, "-"
    return SERIES[number % len(SERIES)], DASHES[number // len(SERIES) % len(DASHES)]


def _columns(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]


def _legend(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=8)
