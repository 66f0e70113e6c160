"""Charts of the heads' errors and of the scores' calibration, each the text of a self-contained SVG."""

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from detection3d.evaluation.calibration import Calibration
from detection3d.evaluation.reporting.figures import INK, MUTED, SERIES, chart_style, to_svg
from detection3d.types.scene import Float64Array

_QUANTILES = np.linspace(0, 1, 201)


def distribution_figure(errors: Mapping[str, Float64Array], label: str, mark: float | None = None) -> str:
    """Draw which share of the detections is off by at most so much.

    Args:
        errors: not negative, by object type.
        label: of the error, with its unit.
        mark: an error to mark with a line; the scale is then logarithmic, since few errors reach it. None: neither.

    Returns:
        SVG.
    """
    with chart_style():
        figure = Figure(figsize=(4.4, 3.3), layout="constrained")
        axes = figure.add_subplot()
        far = 0.0
        for k, (name, values) in enumerate(errors.items()):
            if len(values):
                # An error of 0 has no place on a logarithmic scale; it is drawn beyond the left edge.
                shown = np.quantile(values, _QUANTILES) if mark is None else np.quantile(values, _QUANTILES) + 1e-3
                axes.plot(shown, _QUANTILES, color=SERIES[k % len(SERIES)], label=name)
                far = max(far, float(np.quantile(values, 0.99)))
        axes.set(ylim=(0, 1.02), xlabel=label, ylabel="share of the detections")
        if mark is None:
            axes.set_xlim(0, 1.05 * far if far > 0 else 1)
        else:
            axes.set_xscale("log")
            axes.set_xlim(0.1, 2 * mark)
            ticks = [tick for tick in (0.1, 0.3, 1, 3, 10, 30) if tick < mark] + [mark, 2 * mark]
            axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
            axes.minorticks_off()
            axes.axvline(mark, color=MUTED, linewidth=0.9, linestyle=(0, (4, 3)))
        axes.legend(loc="lower right" if mark is None else "upper left", frameon=False)
        return to_svg(figure)


def reliability_figure(calibration: Calibration, colour: str = SERIES[0]) -> str:
    """Draw the share of matched detections against their score, and below it how many there are.

    Args:
        calibration: of one object type.
        colour: of the curve.

    Returns:
        SVG.
    """
    bins = len(calibration.counts)
    centres = (np.arange(bins) + 0.5) / bins
    filled = calibration.counts > 0
    with chart_style():
        figure = Figure(figsize=(4.4, 4.2), layout="constrained")
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        upper.plot([0, 1], [0, 1], color=MUTED, linewidth=0.9, linestyle=(0, (4, 3)))
        upper.bar(centres[filled], calibration.matched[filled], 0.94 / bins, color=colour, alpha=0.18)
        upper.plot(
            calibration.scores[filled], calibration.matched[filled], "o-", color=colour, markersize=3.5, linewidth=1.4
        )
        upper.set(xlim=(0, 1), ylim=(0, 1.02), ylabel="share matched")
        lower.bar(centres[filled], calibration.counts[filled], 0.94 / bins, color=colour, alpha=0.5)
        lower.set_yscale("log")
        lower.set_ylim(0.7, 2.0 * max(1, int(calibration.counts.max())))
        lower.set(xlabel="score", ylabel="detections")
        lower.minorticks_off()
        lower.tick_params(axis="y", labelcolor=INK)
        return to_svg(figure)
