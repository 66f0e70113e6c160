"""The tables of `inspect_data`."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Console
from rich.table import Table

from detection3d.data.checking import Report
from detection3d.data.data_checks import DataWarning
from detection3d.data.statistics import (
    DISTANCE_BANDS,
    HEADING_SECTORS,
    PERCENTS,
    PointStatistics,
    Spread,
    Statistics,
    TypeStatistics,
)
from detection3d.evaluation.reporting.terminal import print_table


@dataclass(frozen=True)
class Findings:
    """What a person should look at.

    Attributes:
        warnings: about the frames at hand.
        report: what is wrong with the data themselves, judged frame by frame.
    """

    warnings: Sequence[DataWarning]
    report: Report


def print_statistics(statistics: Statistics, findings: Findings, title: str, console: Console) -> None:
    """Print everything, the findings last, where they stay in sight.

    Args:
        statistics: of the data.
        findings: likewise.
        title: what was looked at.
        console: where to print.
    """
    labelled = f", {statistics.labelled_frames} of them with labels"
    say(console, title)
    say(console, f"looked at {statistics.frames} frames of {statistics.segments} segments{labelled}\n")
    tables = [_per_frame(statistics)]
    if statistics.points.scans:
        tables += [_values(statistics.points), _scans(statistics.points)]
    if statistics.types:
        tables += [_types(statistics.types), _boxes(statistics.types), _headings(statistics.types)]
    for table in tables:
        print_table(table, console)
        say(console, "")
    for problem in findings.report.problems:
        where = f"{problem.recording} (timestamp {problem.timestamp})"
        say(console, f"error ({problem.kind}): {where}: {problem.message}")
    for warning in findings.warnings:
        say(console, f"warning: {warning.kind}: {warning.message}")
    for suspicion in findings.report.suspicions:
        say(console, f"suspicion ({suspicion.name}): {suspicion.message}\n    {suspicion.evidence}")
    if not (findings.report.problems or findings.warnings or findings.report.suspicions):
        say(console, "nothing suspicious")


def say(console: Console, line: str) -> None:
    """Print a line as it is."""
    console.print(line, highlight=False, markup=False, soft_wrap=True)


def _table(title: str, first: str, *columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left")
    table.add_column(first, no_wrap=True)
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _per_frame(statistics: Statistics) -> Table:
    voxels = statistics.voxels
    table = _table("in a frame", "", "mean", "5 %", "median", "95 %")
    rows = {
        "points": statistics.points.per_frame,
        "voxels": voxels.voxels,
        "columns of voxels": voxels.pillars,
        "cells of 8 x 8 columns": voxels.cells,
        "objects": statistics.objects_per_frame,
    }
    for name, spread in rows.items():
        if spread is not None:
            table.add_row(name, *(f"{value:,.0f}" for value in (spread.mean, spread.low, spread.median, spread.high)))
    table.add_section()
    near, middle, far = statistics.points.distance_shares
    shares = {
        "points in no-label zones": statistics.points.no_label_zone_share,
        "points within the range": statistics.points.in_range_share,
        "points below 30 m": near,
        "points from 30 to 50 m": middle,
        "points beyond 50 m": far,
        "boxes without points": statistics.empty_share,
    }
    for name, share in shares.items():
        if share is not None:
            table.add_row(name, _percent(share))
    table.add_row("points in a voxel", f"{voxels.points_per_voxel:.2f}")
    if statistics.points.ground is not None:
        table.add_row("z of the ground, m", f"{statistics.points.ground:.2f}")
    return table


def _values(points: PointStatistics) -> Table:
    names = {"distance": "distance, m", "z": "z, m", "intensity": "intensity", "elongation": "elongation"}
    columns = [f"{percent} %" for percent in PERCENTS[:-1]]
    table = _table("quantiles over the points", "", *columns, "largest")
    for name, values in points.quantiles.items():
        table.add_row(names[name], *(f"{value:.3g}" for value in values))
    return table


def _scans(points: PointStatistics) -> Table:
    table = _table("lidars", "lidar", "return", "points in a frame", "share")
    for scan in points.scans:
        count = f"{scan.points_per_frame:,.0f}"
        table.add_row(scan.lidar, str(scan.return_number), count, _percent(scan.share))
    return table


def _types(types: Sequence[TypeStatistics]) -> Table:
    columns = ("in a frame", "length, m", "width, m", "height, m", "speed, m/s", "moving", "without points")
    table = _table("objects: mean in a frame, else median (5 to 95 %)", "type", *columns)
    for item in types:
        sizes = (_range(spread, ".2f") for spread in (item.length, item.width, item.height))
        table.add_row(
            item.name,
            f"{item.per_frame.mean:.1f}",
            *sizes,
            _range(item.speed, ".1f"),
            _percent(item.moving_share),
            _percent(item.empty_share),
        )
    return table


def _boxes(types: Sequence[TypeStatistics]) -> Table:
    columns = [column for band in DISTANCE_BANDS for column in (band, "points in a box", "empty")]
    title = "boxes by distance: mean in a frame, median (5 to 95 %) of the points"
    table = _table(title, "type", *columns, "carried to 10 m")
    for item in types:
        cells: list[str] = []
        for band in item.bands:
            cells.append(f"{band.objects_per_frame:.1f}")
            cells.append("" if band.points is None else _range(band.points, ",.0f"))
            cells.append("" if band.empty_share is None else _percent(band.empty_share))
        cells.append("" if item.points_at_10_m is None else _range(item.points_at_10_m, ",.0f"))
        table.add_row(item.name, *cells)
    return table


def _headings(types: Sequence[TypeStatistics]) -> Table:
    columns = [f"{360 * sector // HEADING_SECTORS}°" for sector in range(HEADING_SECTORS)]
    table = _table("headings: % around each angle to the left of straight ahead", "type", *columns)
    for item in types:
        table.add_row(item.name, *(f"{100 * share:.0f}" for share in item.headings))
    return table


def _range(spread: Spread, style: str) -> str:
    return f"{spread.median:{style}} ({spread.low:{style}} to {spread.high:{style}})"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
