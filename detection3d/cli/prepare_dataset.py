"""One's own data set to a prepared store."""

import argparse
import sys
from collections.abc import Sequence

from detection3d.cli.preparing import add_options, prepare_and_report
from detection3d.cli.run import run


def main(arguments: Sequence[str] | None = None) -> int:
    """Prepare, or check, every recording that a function lists; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="prepare_dataset.py",
        description="Turn your own recordings into a prepared store, or say what is wrong with them. A function of"
        " yours takes the data set's folder and returns its recordings: docs/own_data.md has an example. Run it again"
        " to go on after an interruption.",
    )
    parser.add_argument("function", metavar="FILE.py:FUNCTION", help="the function, or MODULE:FUNCTION")
    add_options(parser, "the data set's folder, which is handed to the function")
    options = parser.parse_args(arguments)

    from detection3d.data.recording_sources import Listing, find_sources

    return prepare_and_report(find_sources(Listing(options.function, options.input)), options)


def entry() -> None:
    """Run the tool and exit with its status."""
    sys.exit(run(main))
