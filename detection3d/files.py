"""Writing files so that a reader sees the old content or the new one, never a part; and finding them."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from detection3d.errors import UserError

TEMPORARY = ".tmp"


def replace_file(path: Path, content: bytes | memoryview) -> None:
    """Put `content` at `path`: written beside it, flushed to the disk, then renamed.

    Raises:
        OSError: the disk is full or the folder not writable; what stood at `path` is intact and nothing is left over.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}{TEMPORARY}")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:  # writing, unlike opening, does not say where
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    flush_folder(path.parent)


def remove_unfinished(folder: Path) -> None:
    """Remove what `replace_file` left in `folder` when its process was killed; call it where nobody else writes."""
    for path in folder.glob(f".*{TEMPORARY}"):
        path.unlink(missing_ok=True)


@contextmanager
def locked(path: Path, refusal: str) -> Iterator[None]:
    """Hold the lock file `path`, which the system gives back however the process ends.

    Raises:
        UserError: another process holds it; `refusal` is the message.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(refusal) from error
        yield
    finally:
        os.close(descriptor)


def flush_folder(folder: Path) -> None:
    """Flush a folder itself: without that, a rename in it may be lost when the power fails."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(folder)) from error
    finally:
        os.close(handle)


def own_name(path: Path) -> str:
    """Return a folder's name, also where it is given as "." or ".."; a link has its own name."""
    return os.path.basename(os.path.abspath(path))


def walk(folder: Path) -> Iterator[Path]:
    """Yield all files and folders in `folder` and its subfolders, in order.

    Links to folders are followed, unlike by `Path.rglob`: large data sets are often put together from links. A folder
    that several ways lead to is entered once, so that a link to a folder above ends nowhere.
    """
    entered: set[str] = set()
    for root, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(root)
        if real in entered:
            folders.clear()
            continue
        entered.add(real)
        folders.sort()
        for name in sorted([*folders, *files]):
            yield Path(root, name)
