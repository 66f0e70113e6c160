"""What went wrong on which rank: in a file of its own, as the messages of many ranks on one terminal mix."""

import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from detection3d.errors import UserError
from detection3d.training.launch import Launch, host_name


@contextmanager
def kept_errors(launch: Launch, run: Path) -> Iterator[Callable[[Exception], None]]:
    """Add what this rank ends with to `errors/rank_N.log` in the run's folder, with its traceback.

    Args:
        launch: who this rank is; alone, it has the terminal to itself and keeps nothing.
        run: the run's folder; where it is no run yet, nothing is written into it.

    Yields:
        What keeps an error that is not raised.
    """

    def keep(error: Exception) -> None:
        if launch.size > 1 and (run / "config.yaml").is_file():
            _keep(error, launch, run / "errors" / f"rank_{launch.rank}.log")

    try:
        yield keep
    except Exception as error:
        keep(error)
        raise


def _keep(error: Exception, launch: Launch, path: Path) -> None:
    when = time.strftime("%Y-%m-%d %H:%M:%S")
    text = (
        f"{when}, rank {launch.rank} of {launch.size} on {host_name()}\n{''.join(traceback.format_exception(error))}\n"
    )
    try:
        path.parent.mkdir(exist_ok=True)
        with path.open("a") as file:
            file.write(text)
    except OSError as problem:  # a full disk may be why the rank ends; its own error is the one to be told
        sys.stderr.write(f"warning: {path} could not be written ({problem.strerror})\n")
        return
    if not isinstance(error, UserError):  # Python prints a traceback without a name
        sys.stderr.write(f"rank {launch.rank} of {launch.size} on {host_name()} failed, see {path}\n")
