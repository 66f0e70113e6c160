"""Tables for people at a terminal and for logs."""

from rich.console import Console
from rich.table import Table


def print_table(table: Table, console: Console, log_width: int = 160) -> Console:
    """Print a table; colours and lines only where the output is a terminal.

    Args:
        table: the table.
        console: where to.
        log_width: columns where the output is no terminal.

    Returns:
        The console to go on with.
    """
    if not console.is_terminal:
        # A log has no width to fit in: a table folded at 80 columns can't be searched.
        console = Console(file=console.file, width=log_width, no_color=True, highlight=False)
        table.box = None
    console.print(table)
    return console
