"""Train several methods alike over several seeds and tell which of them differ from the plain sum.

Each method starts from the same weights on the same batches; its learning rate is chosen on other seeds from one grid.
Run the same command again to go on after an interruption, or with more seeds or methods to extend a comparison.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from detection3d.cli.run import run

PAPER = ("sum", "clipping", "gradient_penalty", "mgda", "pcgrad", "gradnorm", "random_sign", "graddrop")
CORES_OF_A_RUN = 2
MOST_PROCESSES = 8


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, compare and print the table; 1 where runs are missing."""
    options = _parser().parse_intermixed_args(arguments)  # settings may also follow an option of one value

    from detection3d.config_file import load_config
    from detection3d.training.comparison_plan import make_plan

    config = load_config(options.config, options.overrides)
    output = options.output or Path("runs") / f"compare-{Path(options.config).stem}"
    # Before torch, so that a misspelt method is told at once.
    plan = make_plan(config, options.methods, options.learning_rates or (), options.seeds, options.grid_seeds, output)

    from rich.console import Console

    from detection3d.cli.device import choose_device, refuse_several_ranks
    from detection3d.evaluation.reporting.comparison_table import print_comparison
    from detection3d.training.comparison import Means, compare

    refuse_several_ranks()
    names = [None] if options.device is None else options.device.split(",")
    devices = tuple(str(choose_device(name)) for name in names)
    processes = options.processes if options.processes is not None else _processes()
    console = Console()
    means = Means(devices, processes, options.keep_checkpoints, options.speed_pairs)
    comparison = compare(plan, means, console)
    print_comparison(comparison, console)
    print(f"report: {output / 'report.html'}")
    return 0 if comparison.complete else 1


def entry() -> None:
    """Run as a console command."""
    sys.exit(run(main))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="compare_methods.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", help="a YAML file, or the name of a shipped config such as tiny")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings, such as training.steps=100")
    parser.add_argument(
        "--methods", nargs="+", default=PAPER, metavar="METHOD",
        help="kinds of multitask.method; 'gradnorm+graddrop' for one after another; 'NAME={kind: graddrop, leak: 0.2}' "
        f"for settings of its own; sum is the baseline and must be among them (default: {' '.join(PAPER)})",
    )  # fmt: skip
    parser.add_argument("--seeds", type=int, default=8, help="final runs of each method (default: 8)")
    parser.add_argument(
        "--grid-seeds", type=int, default=3, help="runs for each learning rate of each method (default: 3)"
    )
    parser.add_argument(
        "--learning-rates", type=float, nargs="+", metavar="RATE",
        help="to choose from, the same for every method; a single one is not chosen (default: 0.5, 1 and 2 times the "
        "config's)",
    )  # fmt: skip
    parser.add_argument(
        "--output", type=Path, help="the comparison's folder (default: runs/compare-NAME of the config)"
    )
    parser.add_argument("--processes", type=int, help="runs at a time (default: one for every two cores, at most 8)")
    parser.add_argument(
        "--device", help="cpu, cuda, cuda:1 ..., or several: cuda:0,cuda:1 (default: cuda if there is one)"
    )
    parser.add_argument(
        "--speed-pairs", type=int, default=30, help="pairs of steps for each method's speed; 0: none (default: 30)"
    )
    parser.add_argument("--keep-checkpoints", action="store_true", help="leave the weights of finished runs")
    return parser


def _processes() -> int:
    return max(1, min(MOST_PROCESSES, len(os.sched_getaffinity(0)) // CORES_OF_A_RUN))
