"""Copy what is kept of the reference runs.

python docs/reference/collect.py runs/reference

From each finished run into the same place beside this file: its model card, config, log, result and evaluations.
Weights and traces stay where they are. The comparisons' own files, which hold all runs, are copied as they are.
"""

import argparse
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from detection3d.cli.run import run as run_tool
from detection3d.errors import UserError
from detection3d.training.checkpoint import find_checkpoint
from detection3d.training.export import CARD, export
from detection3d.training.inference import load_run_config

OF_A_TRIAL = ("result.json", "log.txt")
OF_A_RUN = ("config.yaml", "metrics.jsonl", "provenance.json")


def main(arguments: Sequence[str] | None = None) -> int:
    """Copy all finished runs that have their weights, and say which."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, help="the folder of the comparisons")
    parser.add_argument(
        "--output", type=Path, default=Path(__file__).parent, help="where to (default: beside this file)"
    )
    options = parser.parse_args(arguments)
    results = sorted(options.runs.glob("*/runs/final/*/*/*/result.json"))
    if not results:
        raise UserError(f"{options.runs}: holds no finished run of a comparison")
    for result in results:
        trial, run = result.parent, result.parent / "run"
        if not (run / "checkpoints").is_dir():
            sys.stdout.write(f"left alone, without its weights: {trial}\n")
            continue
        output = options.output / trial.relative_to(options.runs)
        with tempfile.TemporaryDirectory() as folder:
            export(run, load_run_config(run, []), find_checkpoint(run, "last"), Path(folder))
            card = (Path(folder) / CARD).read_text()
        files = [trial / name for name in OF_A_TRIAL] + [run / name for name in OF_A_RUN]
        for file in (*files, *sorted(run.glob("evaluation/*/metrics.json"))):
            _copy(file, output / file.relative_to(trial))
        config, method, seed = trial.parts[-6], trial.parts[-3], trial.name
        title = f"# {config}, {method}, {seed.replace('_', ' ')},"
        (output / CARD).write_text(card.replace("# run,", title, 1))
        sys.stdout.write(f"{output}\n")
    for name in ("comparison.json", "report.html"):
        for file in sorted(options.runs.glob(f"*/{name}")):
            _copy(file, options.output / file.relative_to(options.runs))
    return 0


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


if __name__ == "__main__":
    sys.exit(run_tool(main))
