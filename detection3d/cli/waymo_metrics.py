"""Measure detections against ground truth, both from files: the table, `metrics.json` and `report.html`."""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detection3d.cli.output import output_folder
from detection3d.cli.run import run

if TYPE_CHECKING:
    from detection3d.evaluation import GroundTruth, MetricConfig, Metrics
    from detection3d.types.scene import Detections


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the tool.

    Args:
        arguments: the command line; None takes `sys.argv`.

    Returns:
        The exit status.

    Raises:
        UserError: a file is missing, damaged or of another kind, the two share no frame, or the backend isn't
            installed.
    """
    options = _parser().parse_args(arguments)
    with output_folder(options.output):
        _measure(options)
    return 0


def entry() -> None:
    """Run as a console script."""
    sys.exit(run(main))


def _measure(options: argparse.Namespace) -> None:
    # Heavy modules only now, so that --help answers at once.
    from detection3d.cli.compilation import find_cache, watch_compilation

    cache = find_cache()
    if cache is not None:
        print(f"compiled code is kept in {cache}: neither the installation nor a cache folder can be written to")
    from detection3d import __version__
    from detection3d.evaluation.analysis import analyse
    from detection3d.evaluation.files.metrics_json import write_metrics_json
    from detection3d.evaluation.files.objects import read_detections, read_ground_truth
    from detection3d.evaluation.metric_config import MetricConfig
    from detection3d.evaluation.metric_config_text import message_of_config, read_metric_config
    from detection3d.evaluation.reporting.report import write_report
    from detection3d.evaluation.reporting.scenes import scenes_of_files

    config = MetricConfig() if options.config is None else read_metric_config(options.config)
    provenance: dict[str, Any] = {
        "predictions": str(options.predictions),
        "ground_truth": str(options.ground_truth),
        # As messages, in float32: a file may spell the official one in other digits.
        "configuration": "official"
        if message_of_config(config) == message_of_config(MetricConfig())
        else str(options.config),
        "backend": options.backend,
        "detection3d": __version__,
    }
    if options.backend == "official":
        from detection3d.evaluation.official import official_versions

        provenance.update(official_versions())  # first, since it may be missing

    begin = time.perf_counter()
    with watch_compilation() as compilation:
        predictions = read_detections(options.predictions)
        ground_truth = read_ground_truth(options.ground_truth)
        counts = _count_what_is_odd(predictions, ground_truth, options)
        read = time.perf_counter()
        metrics = _evaluate(options.backend, predictions, ground_truth, config)
        evaluated = time.perf_counter()
        # Errors, calibration and the frames to look at go by type.
        by_type = any(row.breakdown == "OBJECT_TYPE" for row in metrics.rows)
        analysis = analyse(predictions, ground_truth, metrics, config) if by_type else None
    analysed = time.perf_counter()
    provenance.update(counts)
    provenance["compilation"] = str(compilation)

    sections = None if analysis is None else analysis.to_json()
    metrics_path = write_metrics_json(options.output, metrics, provenance, sections)
    shown = {name: str(value) for name, value in provenance.items()}
    scenes = () if analysis is None else scenes_of_files(analysis.shown, predictions, ground_truth)
    report_path = write_report(
        options.output / "report.html", metrics, scenes, "Waymo metrics", shown, config=config, analysis=analysis
    )
    _print(metrics)
    for name, count in counts.items():
        if count:
            print(f"note     {count:,} {_MEANINGS[name]}")
    print(
        f"time     {read - begin:.1f} s reading, {evaluated - read:.1f} s evaluating, {analysed - evaluated:.1f} s on "
        f"errors and scores; {compilation}"
    )
    print(f"metrics  {metrics_path}\nreport   {report_path}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="waymo_metrics.py", description=__doc__)
    files = "Waymo's Objects or Submission, or .parquet of ours"
    parser.add_argument("--predictions", type=Path, required=True, metavar="F", help=f"detections: {files}")
    parser.add_argument("--ground-truth", type=Path, required=True, metavar="F", help=f"labels: {files}")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="where the results go")
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="Waymo's metrics Config as text (.textproto): breakdowns, levels, thresholds; default: the benchmark's",
    )
    parser.add_argument(
        "--backend",
        choices=["native", "official"],
        default="native",
        help="what computes the metrics: our code, or Waymo's op, which needs the interpreter of the evaluation "
        "environment (make evaluation-env); they give the same numbers",
    )
    return parser


_MEANINGS = {
    "frames_of_predictions_only": "frames of the predictions are unknown to the ground truth: their detections count "
    "as false",
    "frames_of_ground_truth_only": "frames of the ground truth have no predictions: their objects count as missed",
    "labels_without_points": "labels have no lidar point and are left out, as officially: a detection on one is false",
    "detections_not_finite": "detections hold NaN or infinite numbers: they overlap nothing and count as false",
    "objects_not_finite": "objects of the ground truth hold NaN or infinite numbers: they overlap nothing and count as "
    "missed",
    "detections_of_unknown_type": "detections are of type UNKNOWN, which breakdowns by type leave out and which never "
    "match",
    "objects_of_unknown_type": "objects of the ground truth are of type UNKNOWN, which breakdowns by type leave out",
}


def _count_what_is_odd(
    predictions: "Sequence[Detections]", ground_truth: "Sequence[GroundTruth]", options: argparse.Namespace
) -> dict[str, int]:
    """Count what the metrics take as it is, though it is seldom meant; refuse files that share no frame."""
    from detection3d.errors import UserError
    from detection3d.evaluation.inputs import count_not_finite
    from detection3d.types.scene import ObjectType

    found, wanted = {item.key for item in predictions}, {item.key for item in ground_truth}
    if found and wanted and not found & wanted:
        raise UserError(
            f"no frame of {options.predictions} ({_frame(predictions[0].key)}, ...) is in {options.ground_truth} "
            f"({_frame(ground_truth[0].key)}, ...); are they of the same data set?"
        )
    return {
        "frames_of_predictions_only": len(found - wanted),
        "frames_of_ground_truth_only": len(wanted - found),
        "labels_without_points": sum(item.without_points for item in ground_truth),
        "detections_not_finite": count_not_finite(predictions),
        "objects_not_finite": count_not_finite(ground_truth),
        "detections_of_unknown_type": sum(int((item.types == ObjectType.UNKNOWN).sum()) for item in predictions),
        "objects_of_unknown_type": sum(int((item.types == ObjectType.UNKNOWN).sum()) for item in ground_truth),
    }


def _evaluate(
    backend: str,
    predictions: "Sequence[Detections]",
    ground_truth: "Sequence[GroundTruth]",
    config: "MetricConfig",
) -> "Metrics":
    match backend:
        case "official":
            from detection3d.evaluation.official import evaluate_officially

            return evaluate_officially(predictions, ground_truth, config)
        case _:
            from detection3d.evaluation.metrics import evaluate

            return evaluate(predictions, ground_truth, config)


def _print(metrics: "Metrics") -> None:
    """Print the table by type, or one for each breakdown where that isn't among them."""
    from rich.console import Console

    from detection3d.evaluation.reporting.metrics_table import metrics_table, print_metrics
    from detection3d.evaluation.reporting.terminal import print_table

    names = list(dict.fromkeys(row.breakdown for row in metrics.rows))
    if "OBJECT_TYPE" in names:
        print_metrics(metrics)
        return
    for name in names:
        print_table(metrics_table(metrics, name), Console())


def _frame(key: tuple[str, int]) -> str:
    return f"{key[0]} at {key[1]}"
