"""Train a detector. Run the same command again to go on after an interruption.

On several GPUs: torchrun --standalone --nproc-per-node 8 tools/train.py CONFIG ...
The config's batch is that of all ranks together, and so is its learning rate; with training.sync_batch_norm=true the
steps are those of one process.
A cluster's SIGTERM, SIGUSR1 or SIGHUP saves and ends with status 75; `stopped` in the run's folder says so, too.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from detection3d.cli.run import run
from detection3d.training.launch import end_with_launcher, read_launch
from detection3d.training.stop import Interrupted, notices_waiting


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and train."""
    end_with_launcher()  # before anything that takes time
    parser = argparse.ArgumentParser(
        prog="train.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", help="a YAML file, or the name of a shipped config such as tiny")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings, such as training.steps=100")
    parser.add_argument("--output", type=Path, help="the run's folder (default: runs/NAME of the config)")
    parser.add_argument("--device", help="cpu, cuda, cuda:1 ... (default: cuda where there is one)")
    parser.add_argument(
        "--initialize-from",
        type=Path,
        metavar="PLACE",
        help="begin a new run with the weights that fit of a checkpoint, a run folder or an exported model",
    )
    parser.add_argument(
        "--allow-changes", action="store_true", help="go on with a run though settings differ; provenance.json has them"
    )
    parser.add_argument(
        "--profile",
        nargs="?",
        const="6:10",
        metavar="FIRST:LAST",
        help="trace these steps of this start into OUTPUT/profile (6:10 where none are given)",
    )
    parser.add_argument("--wandb", metavar="PROJECT", help="log to a project of Weights & Biases, too")
    options = parser.parse_intermixed_args(arguments)  # settings may also follow an option

    from detection3d.config_file import load_config

    overrides = [*options.overrides, *([f"logging.wandb={options.wandb}"] if options.wandb else [])]
    config = load_config(options.config, overrides)  # before torch, so that a misspelt key is told at once

    launch = read_launch()

    from detection3d.cli.device import choose_device
    from detection3d.training.loop import train
    from detection3d.training.profiling import parse_steps
    from detection3d.training.rank_errors import kept_errors
    from detection3d.training.start import Start
    from detection3d.training.team import joined_team

    output = options.output or Path("runs") / Path(options.config).stem
    profile = None if options.profile is None else parse_steps(options.profile)
    start = Start(options.initialize_from, options.allow_changes, profile)
    try:
        with kept_errors(launch, output) as keep:
            device = choose_device(options.device, launch)
            with joined_team(launch, device, keep) as team:
                train(config, output, device, team, start)
    except Interrupted as stopped:
        if launch.restarts_left == 0:
            raise
        # torchrun would take any other status for a failure, and start the ranks again that were just told to stop.
        sys.stderr.write(f"{stopped}\n")
    return 0


def entry() -> None:
    """Run as a console command."""
    with notices_waiting():
        status = run(main)
    sys.exit(status)
