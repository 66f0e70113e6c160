"""Folders that tools write their results to."""

import contextlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def output_folder(path: Path) -> Iterator[Path]:
    """Make a folder before the work that fills it, so that one that can't be made is told first.

    Args:
        path: the folder; it may be there.

    Yields:
        The folder. Where the work fails, it is removed again if it was made for it and nothing is in it.

    Raises:
        OSError: it can't be made, or written to.
    """
    new = not path.exists()
    path.mkdir(parents=True, exist_ok=True)
    trial = path / ".detection3d-trial"
    trial.touch()
    trial.unlink()
    try:
        yield path
    except BaseException:
        if new:
            with contextlib.suppress(OSError):  # something was written after all
                path.rmdir()
        raise
