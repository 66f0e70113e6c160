"""Export a trained detector: safetensors, config and model card, in a folder that tools/evaluate.py takes."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from detection3d.cli.run import run


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, export and say what was written."""
    parser = argparse.ArgumentParser(prog="export.py", description=__doc__)
    parser.add_argument("run", type=Path, help="the folder that tools/train.py wrote")
    parser.add_argument("--checkpoint", default="last", help="last, best or a file (default: last)")
    parser.add_argument("--output", type=Path, required=True, help="the folder to write")
    options = parser.parse_args(arguments)

    from detection3d.training.checkpoint import find_checkpoint
    from detection3d.training.export import export
    from detection3d.training.inference import load_run_config

    checkpoint = find_checkpoint(options.run, options.checkpoint)
    result = export(options.run, load_run_config(options.run, []), checkpoint, options.output)
    kind = "averaged weights" if result.weights.averaged else "weights"
    print(f"{kind} of step {result.weights.step} are in {result.folder}")
    if not result.metrics:
        print("the card has no metrics, since this step was not evaluated: run tools/evaluate.py, then export again")
    return 0


def entry() -> None:
    """Run as a console command."""
    sys.exit(run(main))
