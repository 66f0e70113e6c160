"""A prepared store's labelled objects to an object database."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from detection3d.cli.preparing import positive
from detection3d.cli.run import run


def main(arguments: Sequence[str] | None = None) -> int:
    """Build the database and say what it holds; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="make_object_database.py",
        description="Cut the labelled objects out of a prepared store's frames. Training puts them into other frames"
        " where augmentation.objects.database names the folder.",
    )
    parser.add_argument("--data", type=Path, required=True, metavar="STORE", help="a prepared store of training data")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder of the database")
    parser.add_argument("--every", type=positive, default=1, metavar="N", help="of each segment, every Nth frame")
    parser.add_argument(
        "--min-points", type=positive, default=5, metavar="N", help="leave out objects with fewer points (default: 5)"
    )
    parser.add_argument("--workers", type=positive, metavar="N", help="processes (default: one for each core)")
    options = parser.parse_args(arguments)

    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from detection3d.data.object_database import build_database
    from detection3d.data.preparation_pool import available_cores
    from detection3d.data.store import Store

    store = Store.open(options.data)
    frames = len(store.every(options.every))
    columns = (TextColumn("frames"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[objects]} objects"))
    console = Console(stderr=True)
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("frames", total=frames, objects=0)
        record = build_database(
            store,
            options.output,
            every=options.every,
            min_points=options.min_points,
            workers=options.workers or available_cores(),
            report=lambda done, objects: progress.update(task, completed=done, objects=objects),
        )
    held = ", ".join(f"{count:,} {name}" for name, count in record.objects.items())
    size = sum(file.size for file in record.files.values())
    print(f"{options.output}: {held}, from {frames:,} frames; {size / 1e6:,.1f} MB")
    print(f"to use it, set augmentation.objects={{database: {options.output}, totals: {{CLASS: NUMBER, ...}}}}")
    return 0


def entry() -> None:
    """Run the tool and exit with its status."""
    sys.exit(run(main))
