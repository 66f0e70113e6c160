"""A comparison in words: what it shows, what is missing, and what it can't show."""

import numpy as np

from detection3d.evaluation.comparison import CONVERGED, Comparison, MethodRuns, Metric
from detection3d.evaluation.paired import PairedDifference, Verdict

NO_VALUE = "n/a"


def headline(comparison: Comparison) -> str:
    """Say in one or two sentences which methods are shown to differ from the baseline in mean AP."""
    found = comparison.differences("ap")
    parts = []
    verdicts: tuple[Verdict, ...] = ("higher", "lower")
    for verdict in verdicts:
        names = [name for name, item in found.items() if item.verdict == verdict]
        if names:
            parts.append(f"{verdict} mean AP than {comparison.baseline}: {', '.join(names)}")
    rest = [name for name, item in found.items() if item.verdict == "no difference shown"]
    if not found:
        return f"There is nothing to compare {comparison.baseline} with."
    if not parts:
        return f"No method is shown to differ from {comparison.baseline} in mean AP: {', '.join(rest)}."
    shown = "; ".join(parts)
    return f"{shown[0].upper()}{shown[1:]}." + (f" No difference shown: {', '.join(rest)}." if rest else "")


def warnings(comparison: Comparison) -> list[str]:
    """Return what a reader must know before trusting the table."""
    lines = []
    for method in comparison.methods:
        if method.choice.chosen is None:
            lines.append(f"{method.name}: no learning rate could be chosen, since each had a failed run")
        elif method.missing:
            seeds = ", ".join(map(str, method.missing))
            lines.append(f"{method.name}: {len(method.runs)} of {len(comparison.seeds)} runs; missing seeds {seeds}")
        lines += [
            f"{method.name}: learning rate {run.learning_rate:g}, seed {run.seed} failed: {run.reason} (see {run.log})"
            for run in method.failed
        ]
    at_edge = [f"{method.name} {rate(method)}" for method in comparison.methods if method.choice.at_edge]
    if at_edge:
        rates = ", ".join(f"{value:g}" for value in comparison.methods[0].choice.rates)
        lines.append(
            f"the best learning rate is at the edge of the grid {rates}, so a better one may lie outside:"
            f" {', '.join(at_edge)}"
        )
    moving = [
        f"{method.name} {move(method)}"
        for method in comparison.methods
        if method.convergence is not None and not method.convergence.holds
    ]
    if moving:
        lines.append(
            f"not converged, mean AP moved by {100 * CONVERGED:g} points or more over the last quarter of the schedule:"
            f" {', '.join(moving)}"
        )
    if comparison.idle:
        lines.append(
            f"every run gave the very scores of {comparison.baseline}'s, so with these settings the method never acted:"
            f" {', '.join(comparison.idle)}"
        )
    if len(comparison.seeds) < 2:
        lines.append("one seed: without a second one no interval can be given, and no difference shown")
    return lines


def limits(comparison: Comparison) -> list[str]:
    """Say what the comparison does not show, whatever its numbers are."""
    return [
        f"It speaks of this detector, this data and this length of training, over {len(comparison.seeds)} seeds. Seeds"
        " change initial weights, batches, augmentation and draws; the training and validation scenes stay the same.",
        "“No difference shown” is not “equal”: the interval says how large a difference may have gone unseen.",
        "Learning rates are chosen on other seeds but on the same validation frames, by the same rule for every method."
        " No other setting is tuned for any of them.",
        "Mean AP is the one measure that decides. APH, error and the classes are shown beside; each is corrected for"
        " the number of methods, not for the number of measures.",
        "The paired t-test takes the differences to be roughly normal; every seed is drawn, so one can see how far.",
    ]


def mean_and_spread(method: MethodRuns, metric: Metric) -> str:
    """Write the mean over seeds and the standard deviation, in percent."""
    values = 100 * np.array(method.values(metric))
    if not len(values):
        return NO_VALUE
    return f"{values.mean():.2f}" + (f" ± {values.std(ddof=1):.2f}" if len(values) > 1 else "")


def difference(found: PairedDifference) -> str:
    """Write a mean difference, in points."""
    return NO_VALUE if found.mean is None else signed(found.mean)


def interval(found: PairedDifference) -> str:
    """Write the corrected interval of a difference, in points; nothing where there is none."""
    if found.corrected_interval is None:
        return ""
    low, high = found.corrected_interval
    return f"[{signed(low)}, {signed(high)}]"


def probability(found: PairedDifference) -> str:
    """Write the p-value after Holm."""
    if found.corrected_interval is None:
        return NO_VALUE
    return "< 0.001" if found.adjusted_p < 0.001 else f"{found.adjusted_p:.3f}"


def rate(method: MethodRuns) -> str:
    """Write the chosen learning rate."""
    return NO_VALUE if method.choice.chosen is None else f"{method.choice.chosen:g}"


def speed(method: MethodRuns) -> str:
    """Write the relative speed."""
    return NO_VALUE if method.speed is None else f"{method.speed.relative:.2f}"


def move(method: MethodRuns) -> str:
    """Write how far the mean AP moved over the last quarter, in points."""
    return NO_VALUE if method.convergence is None else signed(method.convergence.mean)


def signed(value: float) -> str:
    """Write a difference of metrics in points, with its sign."""
    text = f"{100 * value:+.2f}"
    return text if float(text) else "0.00"
