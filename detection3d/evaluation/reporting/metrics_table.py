"""The metrics as a table for the terminal."""

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from detection3d.evaluation.files.metrics_json import MEAN_TYPES, mean_metrics
from detection3d.evaluation.metrics import MetricRow, Metrics
from detection3d.evaluation.reporting.terminal import print_table
from detection3d.types.scene import ObjectType

NO_GROUND_TRUTH = "no ground truth"


def metrics_table(metrics: Metrics, breakdown: str = "OBJECT_TYPE") -> Table:
    """Return the rows of one breakdown, and the means, as a rich table.

    Print it with `print_metrics`, or with any `rich.console.Console`.

    Args:
        metrics: the result of `evaluate`.
        breakdown: "OBJECT_TYPE" or "RANGE".

    Returns:
        Type by level: AP and APH in percent, and the counts. Rows without any ground truth say so in place of a
        number.
    """
    table = Table(box=box.SIMPLE_HEAD, title=f"{metrics.frames} frames, 3D boxes", title_justify="left")
    table.add_column("type", no_wrap=True)
    table.add_column("level", justify="right")
    for name in ("AP %", "APH %", "objects", "detections", "found", "false", "missed"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in metrics.rows:
        if row.breakdown == breakdown and is_of_interest(row):
            table.add_row(*_cells(row))
    if breakdown == "OBJECT_TYPE":
        table.add_section()
        for level, mean in mean_metrics(metrics).items():
            left_out = f", no {', '.join(mean.without_ground_truth)}" if mean.without_ground_truth else ""
            values = (NO_GROUND_TRUTH, "") if mean.ap is None or mean.aph is None else percents(mean.ap, mean.aph)
            table.add_row(f"mean{left_out if mean.over else ''}", str(level), *values)
    return table


def print_metrics(metrics: Metrics, console: Console | None = None) -> None:
    """Print the table; colours and lines only where the output is a terminal.

    Args:
        metrics: the result of `evaluate`.
        console: None prints to the standard output.
    """
    print_table(metrics_table(metrics), Console() if console is None else console)


def is_of_interest(row: MetricRow) -> bool:
    """Tell whether a row is worth showing; metrics.json holds them all.

    Signs, which the benchmark does not rank, are shown where the detector says any: most never look for them.
    """
    if row.shard.object_type not in MEAN_TYPES:
        return row.predictions > 0
    return row.breakdown == "OBJECT_TYPE" or row.ground_truth > 0 or row.predictions > 0


def types_of_interest(metrics: Metrics) -> frozenset[ObjectType]:
    """Return the object types that a reader should see: those of the mean, and others that were detected.

    Metrics without the breakdown OBJECT_TYPE don't tell what was detected.
    """
    rows = [row for row in metrics.rows if row.breakdown == "OBJECT_TYPE"]
    return frozenset(MEAN_TYPES) | {row.shard.object_type for row in rows if is_of_interest(row)}


def percents(ap: float | np.float32, aph: float | np.float32) -> tuple[str, str]:
    """Write AP and APH in percent with two decimals."""
    return f"{100 * float(ap):.2f}", f"{100 * float(aph):.2f}"


def _cells(row: MetricRow) -> tuple[str, ...]:
    name = " ".join(filter(None, (row.shard.object_type.name, row.shard.part)))
    values = percents(row.ap, row.aph) if row.ground_truth else (NO_GROUND_TRUTH, "")
    counts = (row.ground_truth, row.predictions, row.true_positives, row.false_positives, row.false_negatives)
    return (name, str(row.level), *values, *(f"{count:,}" for count in counts))
