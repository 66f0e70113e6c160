"""Evaluate a trained run with Waymo's metrics; writes detections, metrics.json and report.html."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from detection3d.cli.run import run


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, evaluate and print the table."""
    parser = argparse.ArgumentParser(prog="evaluate.py", description=__doc__)
    parser.add_argument("run", type=Path, help="the folder that tools/train.py or tools/export.py wrote")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings, such as data.validation=FOLDER")
    parser.add_argument("--checkpoint", default="last", help="last, best or a file (default: last)")
    parser.add_argument("--output", type=Path, help="folder to write to (default: RUN/evaluation/STEP)")
    parser.add_argument("--device", help="cpu, cuda, cuda:1 ... (default: cuda where there is one)")
    options = parser.parse_intermixed_args(arguments)  # settings may also follow an option

    from detection3d.cli.device import choose_device
    from detection3d.evaluation.reporting.metrics_table import print_metrics
    from detection3d.training.checkpoint import find_checkpoint
    from detection3d.training.evaluation import evaluate_run
    from detection3d.training.inference import load_run_config

    checkpoint = find_checkpoint(options.run, options.checkpoint)
    config = load_run_config(options.run, options.overrides)
    result = evaluate_run(options.run, config, checkpoint, options.output, choose_device(options.device))
    print_metrics(result.metrics)
    print(f"report: {result.report}")
    return 0


def entry() -> None:
    """Run as a console command."""
    sys.exit(run(main))
