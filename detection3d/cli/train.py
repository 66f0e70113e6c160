"""Train a detector. Run the same command again to go on after an interruption."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from detection3d.cli.run import run


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(prog="train.py", description=__doc__)
    parser.add_argument("config", help="a YAML file, or the name of a shipped config such as tiny")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings, such as training.steps=100")
    parser.add_argument("--output", type=Path, help="the run's folder (default: runs/NAME of the config)")
    parser.add_argument("--device", help="cpu, cuda, cuda:1 ... (default: cuda where there is one)")
    options = parser.parse_intermixed_args(arguments)  # settings may also follow an option

    from detection3d.config_file import load_config

    config = load_config(options.config, options.overrides)  # before torch, so that a misspelt key is told at once

    from detection3d.cli.device import choose_device, refuse_several_ranks
    from detection3d.training.loop import train

    refuse_several_ranks()
    train(config, options.output or Path("runs") / Path(options.config).stem, choose_device(options.device))
    return 0


def entry() -> None:
    """Run as a console command."""
    sys.exit(run(main))
