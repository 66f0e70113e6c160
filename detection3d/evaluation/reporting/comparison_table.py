"""A comparison as a table for the terminal, in the form of the paper's."""

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from detection3d.evaluation.comparison import METRICS, Comparison
from detection3d.evaluation.reporting import comparison_text as text
from detection3d.evaluation.reporting.terminal import print_table


def comparison_table(comparison: Comparison) -> Table:
    """Return one row for each method: metrics in percent, their differences to the baseline in points, speed."""
    title = (
        f"{len(comparison.seeds)} seeds, {comparison.frames} validation frames; LEVEL_2, mean over classes, mean ±"
        " standard deviation over seeds"
    )
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left")
    table.add_column("method", no_wrap=True)
    names = [f"{name} %" for name in METRICS.values()]
    minus = f"AP minus {comparison.baseline}"
    for name in ("runs", "rate", *names, minus, "interval", "p (Holm)", "verdict", "speed", "last quarter"):
        table.add_column(name, justify="right", no_wrap=name in ("runs", "rate", *names, "speed"))
    differences = comparison.differences("ap")
    for method in comparison.methods:
        found = differences.get(method.name)
        table.add_row(
            escape(method.name),
            f"{len(method.runs)}/{len(comparison.seeds)}",
            text.rate(method),
            *(text.mean_and_spread(method, metric) for metric in METRICS),
            "baseline" if found is None else text.difference(found),
            "" if found is None else escape(text.interval(found)),
            "" if found is None else text.probability(found),
            "" if found is None else found.verdict,
            text.speed(method),
            text.move(method),
        )
    return table


def print_comparison(comparison: Comparison, console: Console) -> None:
    """Print the table, what it shows, and what to know before trusting it."""
    console = print_table(comparison_table(comparison), console, log_width=200)
    console.print(text.headline(comparison), highlight=False, markup=False, soft_wrap=True)
    for warning in text.warnings(comparison):
        console.print(f"note: {warning}", highlight=False, markup=False, soft_wrap=True)
