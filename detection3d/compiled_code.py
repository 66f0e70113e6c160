"""numba, once compiled code that no longer fits the sources has been forgotten.

numba compiles a function anew when the file that it stands in has changed. It doesn't look at the functions that this
one calls: after `git pull` has changed only those, it would go on with what they were, without a word. So every module
with compiled functions takes numba from here.
"""

import contextlib
from pathlib import Path

import numba

__all__ = ["forget_stale_code", "numba"]

_PACKAGE = Path(__file__).parent


def forget_stale_code(package: Path = _PACKAGE) -> int:
    """Remove the indices of compiled code that are older than any source with compiled functions.

    Code that numba keeps elsewhere, as it does for an installation that can't be written to, is left alone: an
    installation is replaced file by file, with new times.

    Args:
        package: folder of the sources, each with its `__pycache__`.

    Returns:
        How many were removed.
    """
    indices = {path: path.stat().st_mtime for path in package.glob("**/__pycache__/*.nbi")}
    if not indices:
        return 0
    oldest = min(indices.values())
    changed = {path: path.stat().st_mtime for path in package.glob("**/*.py")}
    times = [time for path, time in changed.items() if time > oldest and b"@numba.njit" in path.read_bytes()]
    removed = 0
    for path, time in indices.items():
        if times and time < max(times):
            with contextlib.suppress(OSError):  # not ours to write, or another process was faster
                path.unlink()
                removed += 1
    return removed


forget_stale_code()
