"""Put evaluations side by side: metrics, differences to the first, and what the segments support of them."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from detection3d.cli.run import run


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, compare and print the table.

    Args:
        arguments: the command line; None takes `sys.argv`.

    Returns:
        The exit status.

    Raises:
        UserError: a folder is no evaluation, was changed since, or has another ground truth than the first.
    """
    parser = argparse.ArgumentParser(prog="report.py", description=__doc__)
    parser.add_argument(
        "folders", type=Path, nargs="+", metavar="FOLDER", help="written by tools/evaluate.py or tools/waymo_metrics.py"
    )
    parser.add_argument(
        "--output", type=Path, default=Path("side_by_side"), metavar="DIR",
        help="where report.html and comparison.json go (default: side_by_side)",
    )  # fmt: skip
    parser.add_argument(
        "--resamples", type=int, default=1000, help="of the segments, for the intervals (default: 1000)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the resamples (default: 0)")
    options = parser.parse_args(arguments)

    # Heavy modules only now, so that --help answers at once.
    from rich.console import Console

    from detection3d.cli.output import output_folder
    from detection3d.errors import UserError
    from detection3d.evaluation.files.evaluated_folder import read_evaluated_folder
    from detection3d.evaluation.reporting.side_by_side_report import write_side_by_side
    from detection3d.evaluation.reporting.side_by_side_text import comparison_table, sentence
    from detection3d.evaluation.reporting.terminal import print_table
    from detection3d.evaluation.side_by_side import MEASURES, compare_evaluations

    if options.resamples < 100:
        raise UserError(f"--resamples is {options.resamples}; give 100 or more, or the intervals' ends are chance")
    if options.seed < 0:
        raise UserError(f"--seed is {options.seed}; give 0 or more")
    if len({path.resolve() for path in options.folders}) < len(options.folders):
        raise UserError("a folder is given twice; give each evaluation once")
    with output_folder(options.output) as output:
        folders = [read_evaluated_folder(path) for path in options.folders]
        comparison = compare_evaluations(folders, options.resamples, options.seed)
        path = write_side_by_side(output, comparison)
    console = Console()
    for measure in MEASURES:
        print_table(comparison_table(comparison, measure), console, log_width=200)
    for text in (*(sentence(comparison, column) for column in comparison.columns[1:]), *comparison.notes):
        print(text)
    print(f"report: {path}")
    return 0


def entry() -> None:
    """Run as a console command."""
    sys.exit(run(main))
