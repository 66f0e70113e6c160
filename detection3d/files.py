"""Writing files so that a reader sees the old content or the new one, never a part; and finding them."""

import errno
import fcntl
import os
import socket
import sys
import time
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
def locked(path: Path, refusal: str, patience: float = 0.0) -> Iterator[None]:
    """Hold the lock file `path`, which the system gives back however the process ends.

    Where the file system has no locks, a warning on stderr says so, and the caller goes on without.

    Args:
        path: holds the name of the holder's machine and its process number.
        refusal: the message, should another process hold it.
        patience: seconds to wait for a holder on another machine: one that has died there holds a lock on a network
            file system until the server notices.

    Raises:
        UserError: another process holds it.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        if _lock(descriptor, path, refusal, patience):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{socket.gethostname()} {os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, path: Path, refusal: str, patience: float) -> bool:
    deadline, told = time.monotonic() + patience, False
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError as error:
            host, _, process = os.pread(descriptor, 1000, 0).decode(errors="replace").strip().rpartition(" ")
            elsewhere = host not in ("", socket.gethostname())
            if not elsewhere or time.monotonic() >= deadline:
                raise UserError(f"{refusal} (process {process} on {host} holds {path})" if host else refusal) from error
            if not told:
                _warn(f"{path} is held by process {process} on {host}; waiting up to {patience:g} s, should it be dead")
                told = True
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            _warn(f"{path}: this file system has no locks ({error.strerror}); see that no other process works there")
            return False
        time.sleep(min(1.0, max(0.0, deadline - time.monotonic())))


_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


def _warn(message: str) -> None:
    sys.stderr.write(f"warning: {message}\n")


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
