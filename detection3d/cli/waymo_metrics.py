"""Measure detections against ground truth, both from files: the table, `metrics.json` and `report.html`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from detection3d.cli.run import run


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the tool.

    Args:
        arguments: the command line; None takes `sys.argv`.

    Returns:
        The exit status.

    Raises:
        UserError: a file is missing, damaged or of another kind, or the two share no frame.
    """
    parser = argparse.ArgumentParser(prog="waymo_metrics", description=__doc__)
    parser.add_argument("--predictions", type=Path, required=True, metavar="F", help="detections, .parquet or .bin")
    parser.add_argument("--ground-truth", type=Path, required=True, metavar="F", help="labels, .parquet or .bin")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="where the results go")
    parser.add_argument("--backend", choices=["native"], default="native", help="what computes the metrics")
    options = parser.parse_args(arguments)

    # Heavy modules only now, so that --help answers at once.
    from detection3d import __version__
    from detection3d.errors import UserError
    from detection3d.evaluation.metrics import evaluate
    from detection3d.evaluation.metrics_json import write_metrics_json
    from detection3d.evaluation.metrics_table import print_metrics
    from detection3d.evaluation.objects import read_detections, read_ground_truth
    from detection3d.evaluation.report import write_report

    predictions = read_detections(options.predictions)
    ground_truth = read_ground_truth(options.ground_truth)
    keys = {item.key for item in predictions}
    if keys and ground_truth and not any(item.key in keys for item in ground_truth):
        raise UserError(
            f"no frame of {options.predictions} ({_frame(predictions[0].key)}, ...) is in {options.ground_truth} "
            f"({_frame(ground_truth[0].key)}, ...); are they of the same data set?"
        )
    metrics = evaluate(predictions, ground_truth)
    options.output.mkdir(parents=True, exist_ok=True)
    provenance = {
        "predictions": str(options.predictions),
        "ground_truth": str(options.ground_truth),
        "backend": options.backend,
        "detection3d": __version__,
    }
    metrics_path = write_metrics_json(options.output, metrics, provenance)
    report_path = write_report(options.output / "report.html", metrics, (), "Waymo metrics", provenance)
    print_metrics(metrics)
    print(f"metrics  {metrics_path}\nreport   {report_path}")
    return 0


def _frame(key: tuple[str, int]) -> str:
    return f"{key[0]} at {key[1]}"


def entry() -> None:
    """Run as a console script."""
    sys.exit(run(main))
