"""From the name of a function to what a preparation reads: one's own data set as sources.

Worker processes get the function's name and not its results, so a recording needn't be picklable.
"""

import functools
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType, ModuleType

from detection3d.data.preparation_task import Source
from detection3d.data.recording import Recording, ScanRecording, describe_failure, read_recording
from detection3d.data.store_manifest import StoreSettings
from detection3d.data.store_writer import is_segment_name
from detection3d.errors import DataError, UserError, one_line
from detection3d.types.scene import Frame


@dataclass(frozen=True)
class Listing:
    """A function that lists recordings, and the folder it is called with.

    Attributes:
        reference: `module:function` or `path/to/file.py:function`.
        folder: of the data set.
    """

    reference: str
    folder: Path


def find_sources(listing: Listing) -> list[Source]:
    """List one's recordings as sources.

    Raises:
        UserError: there is no such function or folder, the function failed, or what it returned can't be used.
    """
    _recordings.cache_clear()  # the folder may have changed since
    return [_source(listing, name, recording) for name, recording in _recordings(listing).items()]


def _source(listing: Listing, name: str, recording: Recording) -> Source:
    try:
        listed = recording.files
        if isinstance(listed, str | bytes):
            raise TypeError(f"it is the text {listed!r}, not a list of paths")
        # Absolute, as one folder must be above them all.
        files = [Path(file).absolute() for file in listed]
    except Exception as error:
        raise UserError(f"recording {name!r}: its files can't be used: {describe_failure(error)}") from error
    if not files:
        raise UserError(f"recording {name!r} names no files; list what it is read from, so that changes are noticed")
    read = functools.partial(_read, listing=listing, name=name)
    count = functools.partial(_count, count=len(recording.scans)) if isinstance(recording, ScanRecording) else None
    return Source(name, files[0], read, tuple(files[1:]), count)


def _count(_: Path, count: int) -> int:
    return count


def _read(_: Path, settings: StoreSettings, listing: Listing, name: str) -> Iterable[Frame]:
    recording = _recordings(listing).get(name)
    if recording is None:
        raise DataError(name, f"{listing.reference} doesn't return it any more; it must return the same every time")
    return read_recording(recording, settings.every)


@functools.lru_cache(maxsize=1)
def _recordings(listing: Listing) -> dict[str, Recording]:
    """Call the function once in each process, and check what it returns."""
    if not listing.folder.is_dir():
        raise UserError(f"{listing.folder}: there is no such folder; give the data set's")
    try:
        recordings = _function(listing.reference)(listing.folder)
        recordings = list(recordings) if isinstance(recordings, Iterable) else recordings
    except (UserError, OSError):
        raise
    except Exception as error:
        raise UserError(f"{listing.reference} failed: {describe_failure(error)}") from error
    if not isinstance(recordings, Sequence):
        raise UserError(f"{listing.reference} returned {type(recordings).__name__}; return a list of recordings")
    if not recordings:
        raise UserError(f"{listing.reference} found no recordings in {listing.folder}; give the data set's folder")
    named: dict[str, Recording] = {}
    for recording in recordings:
        missing = [part for part in ("name", "files", "frames") if not _has(recording, part)]
        if missing:
            kind = type(recording).__name__
            advice = "return detection3d.data.recording.ScanRecording, or the like"
            raise UserError(f"{listing.reference} returned a {kind} without {', '.join(missing)}; {advice}")
        if not is_segment_name(recording.name):
            advice = "it becomes a folder: give characters, no slash, no dot in front"
            raise UserError(f"{listing.reference} returned a recording named {recording.name!r}; {advice}")
        if recording.name in named:
            raise UserError(f"{listing.reference} returned two recordings named {recording.name!r}; names are unique")
        named[recording.name] = recording
    return named


def _has(recording: object, part: str) -> bool:
    try:
        return hasattr(recording, part)
    except Exception as error:
        raise UserError(f"{type(recording).__name__}.{part} failed: {describe_failure(error)}") from error


def _function(reference: str) -> Callable[[Path], object]:
    place, _, name = reference.rpartition(":")
    if not place or not name.isidentifier():
        raise UserError(f"{reference!r}: give MODULE:FUNCTION or FILE.py:FUNCTION, as my_data.py:recordings")
    module = _load(Path(place)) if place.endswith(".py") else _import(place)
    function = getattr(module, name, None)
    if not callable(function):
        functions = sorted(key for key, value in vars(module).items() if isinstance(value, FunctionType))
        raise UserError(f"{place} has no function {name}; it has {', '.join(functions) or 'none'}")
    return function


def _load(file: Path) -> ModuleType:
    # Under a name of its own: a file named types.py or random.py mustn't take that module's place.
    spec = importlib.util.spec_from_file_location(f"_own_data_{file.stem}", file)
    if spec is None or spec.loader is None or not file.is_file():
        raise UserError(f"{file}: there is no such file; give the one with your function")
    _search(file.parent)  # for what lies beside it, as if it were run
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise UserError(f"{file} can't be loaded: {describe_failure(error)}") from error
    return module


def _import(name: str) -> ModuleType:
    _search(Path())
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        advice = "give a file as FILE.py:FUNCTION, or run where the module is found"
        raise UserError(f"module {name} can't be imported ({one_line(error)}); {advice}") from error
    except Exception as error:
        raise UserError(f"module {name} can't be imported: {describe_failure(error)}") from error


def _search(folder: Path) -> None:
    place = str(folder.absolute())
    if place not in sys.path:
        sys.path.append(place)
