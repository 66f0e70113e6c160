"""What numba's compilation costs a tool: where its results are kept, and how long it took this time."""

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass
class Compilation:
    """What was compiled.

    Attributes:
        functions: number of them.
        seconds: from the first one's beginning to its end, and so on, waiting of other threads not counted.
    """

    functions: int = 0
    seconds: float = 0.0

    def __str__(self) -> str:
        """Say it in a line."""
        if not self.functions:
            return "nothing to compile, it was cached"
        return f"{self.functions} functions compiled in {self.seconds:.1f} s, cached for the next time"


def find_cache() -> Path | None:
    """Make sure that numba has somewhere to keep compiled code, before a module with compiled functions is imported.

    It keeps it beside the modules, else in the user's cache folder, else where NUMBA_CACHE_DIR says, and refuses to
    import the modules where it can write to none of them (an installation for all users, a container without a home).

    Returns:
        The folder for temporary files that it was given then; None where numba finds a place by itself.
    """
    if os.environ.get("NUMBA_CACHE_DIR"):
        return None
    beside = Path(__file__).resolve().parent.parent / "evaluation"
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser())
    for folder in (beside, home):
        existing = next((path for path in (folder, *folder.parents) if path.exists()), folder)
        if os.access(existing, os.W_OK):
            return None
    chosen = Path(tempfile.gettempdir()) / f"detection3d-numba-{os.getuid()}"
    chosen.mkdir(mode=0o700, exist_ok=True)
    if chosen.stat().st_uid != os.getuid():  # code from it is run: it must be nobody else's
        chosen = Path(tempfile.mkdtemp(prefix="detection3d-numba-"))
    os.environ["NUMBA_CACHE_DIR"] = str(chosen)
    return chosen


@contextmanager
def watch_compilation() -> Iterator[Compilation]:
    """Note what is compiled within the context, in all threads; it is complete when the context ends."""
    from numba.core import event

    result = Compilation()
    begun: list[float] = []

    class Watch(event.Listener):
        def on_start(self, event: event.Event) -> None:
            del event
            begun.append(time.perf_counter())

        def on_end(self, event: event.Event) -> None:
            del event
            since = begun.pop()
            result.functions += 1
            if not begun:  # functions that others call are compiled within these
                result.seconds += time.perf_counter() - since

    with event.install_listener("numba:compile", Watch()):
        yield result
