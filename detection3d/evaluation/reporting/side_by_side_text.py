"""A side-by-side comparison in words: cells, sentences, the terminal's table, and JSON."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from rich import box
from rich.markup import escape
from rich.table import Table

from detection3d.evaluation.bootstrap import COVERAGE, FEWEST_SEGMENTS
from detection3d.evaluation.side_by_side import (
    MEASURES,
    Column,
    Difference,
    Interval,
    Measure,
    RowKey,
    SideBySide,
    Value,
)

SCHEMA_VERSION = 1
MINUS = "\N{MINUS SIGN}"


def percent(value: float) -> str:
    """Write a metric in percent."""
    return f"{100 * value:.2f}"


def signed(value: float) -> str:
    """Write a difference in percentage points, with its sign; one that rounds to nothing has none."""
    text = f"{100 * value:+.2f}"
    return "0.00" if float(text) == 0 else text.replace("-", MINUS)


def interval_text(values: Interval, as_difference: bool) -> str:
    """Write an interval."""
    write = signed if as_difference else percent
    return f"{write(values[0])} to {write(values[1])}"


def row_title(row: RowKey) -> str:
    """Return a row's name for people."""
    return f"{'Mean' if row.object_type is None else row.object_type.name.capitalize()}, level {row.level}"


def verdict_text(found: Difference) -> str:
    """Return a verdict for people."""
    return {
        "higher": "higher",
        "lower": "lower",
        "no difference shown": "no difference shown",
        "too few segments": "too few segments to tell",
    }[found.verdict]


def sentence(comparison: SideBySide, column: Column) -> str:
    """Say how an evaluation compares with the first in the headline."""
    row, first = comparison.headline, comparison.columns[0]
    found = column.values[row, "APH"].difference
    if found is None:
        return f"{column.label} can't be compared with {first.label}: there is no ground truth."
    by = f"by {signed(found.value).lstrip('+' + MINUS)} points"
    if found.interval is None:
        return (
            f"{column.label} differs from {first.label} {by}, but only {comparison.segments_with[row]} of the "
            f"{comparison.segments} segments have objects of each type, too few to tell whether it is more than chance."
        )
    span = f"({100 * COVERAGE:g} % interval {interval_text(found.interval, True)})"
    if found.verdict in ("higher", "lower"):
        return f"{column.label} is {found.verdict} than {first.label} {by} {span}."
    return f"No difference between {column.label} and {first.label} is shown: {signed(found.value)} points {span}."


def method_note(comparison: SideBySide) -> str:
    """Say where the intervals come from and how far they reach."""
    return (
        f"Intervals of {100 * COVERAGE:g} %: the {comparison.segments:,} segments were drawn with replacement "
        f"{comparison.resamples:,} times (seed {comparison.seed}), and all evaluations measured on the same draws. "
        "They tell what other segments of the same kind would change, not what another training would. Each stands by "
        "itself: of many, some leave out 0 by chance; the mean at the hardest level is the one to go by. Where fewer "
        f"than {FEWEST_SEGMENTS} segments have objects of a type, no interval is given."
    )


def comparison_table(comparison: SideBySide, measure: Measure = "APH") -> Table:
    """Return the table for the terminal."""
    table = Table(box=box.SIMPLE_HEAD, title=f"{measure} %, {comparison.segments:,} segments", title_justify="left")
    table.add_column("type", no_wrap=True)
    for column in comparison.columns:
        table.add_column(escape(column.label), justify="right", overflow="fold")
        if column is not comparison.columns[0]:
            table.add_column("difference", justify="right", no_wrap=True)
            table.add_column("interval", justify="right", no_wrap=True)
            table.add_column("verdict", no_wrap=True)
    for row in comparison.rows:
        cells: list[str] = []
        for place, column in enumerate(comparison.columns):
            value = column.values[row, measure]
            cells.append("no ground truth" if value.value is None else percent(value.value))
            if place:
                cells += _difference_cells(value)
        table.add_row(row_title(row), *cells)
    return table


def comparison_to_json(comparison: SideBySide) -> str:
    """Return the comparison as JSON: metrics in [0, 1], as in metrics.json."""
    content = {
        "schema_version": SCHEMA_VERSION,
        "baseline": comparison.columns[0].label,
        "segments": comparison.segments,
        "segments_with_objects": {row.name: comparison.segments_with[row] for row in comparison.rows},
        "bootstrap": {"resamples": comparison.resamples, "seed": comparison.seed, "coverage": COVERAGE},
        "notes": list(comparison.notes),
        "evaluations": [
            {
                "name": column.label,
                "folder": str(column.folder.path),
                "frames": column.metrics.frames,
                "metrics": {
                    row.name: {measure: _value_json(column.values[row, measure]) for measure in MEASURES}
                    for row in comparison.rows
                },
                **column.analysis.to_json(),
                "provenance": column.folder.content.get("provenance", {}),
            }
            for column in comparison.columns
        ],
    }
    return json.dumps(content, indent=2, allow_nan=False) + "\n"


def head_error_rows(columns: Sequence[Column]) -> list[tuple[str, ...]]:
    """Return type, evaluation, and the main errors of the heads, for each type that any evaluation found."""
    rows = []
    for kind in dict.fromkeys(kind for column in columns for kind in column.analysis.head_errors):
        for column in columns:
            errors = column.analysis.head_errors.get(kind)
            calibration = column.analysis.calibration.get(kind)
            error = None if calibration is None else calibration.error
            cells = ("0", *[""] * 6)
            if errors is not None:
                unflipped = errors.heading_mean_unflipped
                cells = (
                    f"{errors.count:,}",
                    f"{errors.overlap:.3f}",
                    f"{errors.centre_mean:.3f}",
                    f"{errors.z_mean:.3f}",
                    " / ".join(f"{value:.2f}" for value in errors.size_mean),
                    f"{100 * errors.flipped_share:.1f} %",
                    "" if unflipped is None else f"{np.degrees(unflipped):.1f}°",
                )
            rows.append((kind.name.capitalize(), column.label, *cells, "" if error is None else f"{100 * error:.1f} %"))
    return rows


def provenance_differences(columns: Sequence[Column]) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Return what differs in where the evaluations come from, by name, and what is the same."""
    given = [column.folder.content.get("provenance", {}) for column in columns]
    different, same = {}, {}
    for name in dict.fromkeys(name for values in given for name in values):
        texts = [_plain(values.get(name, "")) for values in given]
        if len(set(texts)) == 1:
            same[name] = texts[0]
        else:
            different[name] = texts
    return different, same


def _difference_cells(value: Value) -> list[str]:
    found = value.difference
    if found is None:
        return ["", "", ""]
    span = "" if found.interval is None else interval_text(found.interval, True)
    return [signed(found.value), span, verdict_text(found)]


def _value_json(value: Value) -> dict[str, Any]:
    found = value.difference
    return {
        "value": value.value,
        "interval": value.interval,
        "difference": None
        if found is None
        else {"value": found.value, "interval": found.interval, "verdict": found.verdict},
    }


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {item}" for name, item in value.items() if item is not None)
    return str(value)
