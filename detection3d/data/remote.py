"""Sources on a remote file system, named by URLs such as gs://bucket/folder: one segment at a time is fetched and read.

fsspec knows the file systems; each but the local one needs a package of its own, such as gcsfs for gs:// and s3fs for
s3://. Credentials are theirs, too.
"""

import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path, PurePosixPath
from typing import Any

from detection3d.data.preparation_task import OUTPUT_UNUSABLE, Source
from detection3d.data.store_manifest import SourceRecord, StoreSettings
from detection3d.errors import DataError, UserError, one_line
from detection3d.types.scene import Frame

_PREFIX = "detection3d-"

_CHANGED = ("mtime", "updated", "LastModified", "last_modified", "created")
"""What file systems call the time of a file's last change, the surest first."""


@dataclass(frozen=True)
class RemoteFile:
    """A file in a listing.

    Attributes:
        url: whole.
        name: relative to the folder that was listed.
        size: bytes; None where the file system doesn't say.
        changed_ns: time of the last change, nanoseconds; 0 where the file system doesn't say.
    """

    url: str
    name: str
    size: int | None
    changed_ns: int


@dataclass(frozen=True)
class RemoteSource(Source):
    """A segment whose files are fetched to a temporary folder (of TMPDIR) while it is read.

    `path` is the first file's name; `read` gets the path of the copy, with the others beside it as in the listing.

    Attributes:
        files: the segment's files.
        folders: folders that exist there, relative as the names; a reader may tell something by an empty one.
    """

    files: tuple[RemoteFile, ...] = ()
    folders: tuple[str, ...] = ()

    def fingerprint(self) -> SourceRecord:
        """Describe the files as the listing saw them."""
        return SourceRecord.of(self.name, [(file.name, file.size or 0, file.changed_ns) for file in self.files])

    def frames(self, settings: StoreSettings) -> Iterable[Frame]:
        """Fetch the files, yield the frames, and remove the copies.

        Raises:
            DataError: a file can't be fetched or read; it bears the file's own name, not the copy's.
        """
        _remove_orphans()
        with tempfile.TemporaryDirectory(prefix=f"{_PREFIX}{os.getpid()}-") as name:
            root = Path(name)
            for folder in self.folders:
                (root / folder).mkdir(parents=True, exist_ok=True)
            for file in self.files:
                _fetch(file, root / file.name)
            try:
                yield from self.read(root / self.path, settings)
            except DataError as error:
                inside = error.path.is_relative_to(root)
                path = error.path.relative_to(root) if inside else error.path
                raise DataError(path, error.reason.replace(f"{root}/", ""), error.record) from error


def list_remote(url: str) -> list[RemoteFile]:
    """List the files of a folder and its subfolders, by name; a file lists itself.

    Raises:
        UserError: fsspec or the file system's package is not installed, or the place can't be listed.
    """
    system, root = _file_system(url)
    try:
        found: dict[str, dict[str, Any]] = system.find(root, detail=True)
    except Exception as error:  # each file system has errors of its own
        raise UserError(f"{url}: it can't be listed ({one_line(error)}); check the URL and your access") from error
    files = []
    for path, entry in sorted(found.items()):
        name = PurePosixPath(path).name if path == root else path.removeprefix(root).lstrip("/")
        files.append(RemoteFile(system.unstrip_protocol(path), name, entry.get("size"), _changed(entry)))
    return files


def _file_system(url: str) -> tuple[Any, str]:
    try:
        from fsspec.core import url_to_fs
    except ModuleNotFoundError:
        raise UserError(f"{url}: URLs need fsspec: pip install 'detection3d[remote]'") from None
    try:
        return url_to_fs(url)
    except ImportError as error:  # it names the file system's package
        raise UserError(f"{url}: {one_line(error)}: pip install 'detection3d[remote]' for gs://") from error
    except Exception as error:
        raise UserError(f"{url}: it can't be reached ({one_line(error)}); check the URL and your access") from error


def _fetch(file: RemoteFile, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    system, place = _file_system(file.url)
    try:
        system.get_file(place, str(path))
    except Exception as error:
        if isinstance(error, OSError) and error.errno in OUTPUT_UNUSABLE:  # the next segment would meet it, too
            raise OSError(error.errno, error.strerror, f"{path.parent} (TMPDIR chooses another place)") from error
        raise DataError(
            file.name, f"it can't be fetched ({one_line(error)}); check your access, and try again"
        ) from error
    found = path.stat().st_size
    if file.size is not None and found != file.size:
        raise DataError(file.name, f"{found} of its {file.size} bytes came; run the same command again")


def _changed(entry: dict[str, Any]) -> int:
    for name in _CHANGED:
        value = entry.get(name)
        if isinstance(value, str):
            value = _as_time(value)
        if isinstance(value, datetime):
            value = (value if value.tzinfo else value.replace(tzinfo=UTC)).timestamp()
        if isinstance(value, int | float):
            return int(value * 1e9)
    return 0


def _as_time(text: str) -> datetime | None:
    """Read ISO 8601, or what HTTP headers hold."""
    for read in (datetime.fromisoformat, parsedate_to_datetime):
        try:
            return read(text)
        except (ValueError, TypeError):
            continue
    return None


def _remove_orphans() -> None:
    """Remove copies whose process is gone: one that is killed can't tidy up."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*-*"):
        process = folder.name.removeprefix(_PREFIX).split("-")[0]
        if process.isdecimal() and not _lives(int(process)):
            shutil.rmtree(folder, ignore_errors=True)


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's
        return True
    return True


def select(files: Sequence[RemoteFile], names: Iterable[str]) -> Iterator[RemoteFile]:
    """Yield the files of these names that are in the listing."""
    by_name = {file.name: file for file in files}
    yield from (by_name[name] for name in names if name in by_name)
