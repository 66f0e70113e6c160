"""One source, such as a TFRecord file, becomes one segment of the store."""

import errno
import itertools
import os
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from detection3d.data import store_manifest as layout
from detection3d.data.store_manifest import LeftOut, SegmentRecord, SourceRecord, StoreSettings
from detection3d.data.store_writer import SegmentWriter
from detection3d.errors import DataError, UserError
from detection3d.files import walk
from detection3d.types.scene import Frame

OUTPUT_UNUSABLE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG})
"""Errors of the output, not of the source: every later source would meet them too."""


@dataclass(frozen=True)
class Source:
    """Something that holds the frames of one segment.

    Attributes:
        name: what to call it in messages and in the store; unique, the same in every run.
        path: the file or folder.
        read: yields those frames of `path` that the settings want, in order; points that they don't want are passed
            over later. It must be picklable: a function of a module.
        companions: other files, or folders, that `read` reads, given `path`.
        count: returns the number of frames of `path` without decoding them; None where that can't be told.
    """

    name: str
    path: Path
    read: Callable[[Path, StoreSettings], Iterable[Frame]]
    companions: tuple[Path, ...] = ()
    count: Callable[[Path], int] | None = None

    def frames(self, settings: StoreSettings) -> Iterable[Frame]:
        """Yield the frames that the settings want.

        Raises:
            DataError: they can't be read.
        """
        return self.read(self.path, settings)

    def fingerprint(self) -> SourceRecord:
        """Describe the present state of the file and its companions; of a folder, that of all files in it.

        Raises:
            OSError: it can't be looked at.
        """
        paths = [file for path in (self.path, *self.companions) for file in _files(path)]
        states = [(path, path.stat()) for path in paths]
        top = os.path.commonpath([self.path, *self.companions])  # so that the same data elsewhere are the same
        files = [(os.path.relpath(path, top), state.st_size, state.st_mtime_ns) for path, state in states]
        return SourceRecord.of(self.name, files)


def _files(path: Path) -> list[Path]:
    return [file for file in walk(path) if file.is_file()] if path.is_dir() else [path]


def prepare_source(source: Source, root: Path, settings: StoreSettings) -> SegmentRecord | LeftOut:
    """Read a source and publish it as a segment, or say why it can't be used.

    Args:
        source: the source.
        root: the store's folder.
        settings: the choices of the store.

    Returns:
        The segment's record, or the reason why there is none. What was there before is then untouched.

    Raises:
        OSError: the output can take no more (disk full and the like), which stops the whole preparation.
    """
    try:
        return _write_segment(source, root, settings)
    except DataError as error:
        if error.path in (source.path, Path(source.name)):
            return LeftOut(name=source.name, record=error.record, reason=error.reason)
        return LeftOut(name=source.name, record=None, reason=str(error))  # the record is one of that other file
    except UserError as error:
        return LeftOut(name=source.name, record=None, reason=str(error))
    except OSError as error:
        if error.errno in OUTPUT_UNUSABLE:
            raise OSError(error.errno, error.strerror, error.filename or str(root)) from error
        return LeftOut(name=source.name, record=None, reason=f"can't be read ({error}); check the file")
    # One strange file among hundreds must not end a run of hours, and it is reported, not forgiven.
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(place.filename).name}:{place.lineno}"
        reason = f"unexpected {type(error).__name__} at {where}: {error}; please report it with the file"
        return LeftOut(name=source.name, record=None, reason=reason)


def _write_segment(source: Source, root: Path, settings: StoreSettings) -> SegmentRecord:
    fingerprint = source.fingerprint()
    frames = iter(source.frames(settings))
    first = next(frames, None)
    if first is None:
        raise DataError(source.path, "it holds no frames")
    name = first.context_name
    writer = SegmentWriter(root, name, fingerprint, settings, replace=_is_own(root, name, source.name))
    with writer:
        for frame in itertools.chain((first,), frames):
            writer.add(frame)
        if writer.points == 0:
            lost = writer.losses.out_of_range + writer.losses.not_finite
            why = f"{lost} were beyond 255.99 m or not finite" if lost else "there is nothing to train on"
            if settings.reach is not None or len(settings.returns) == 1:
                why += ", or none of it within --range or of the --returns asked for"
            reason = f"no lidar points in any of its {writer.frames} frames ({why}); remove it from the input"
            raise DataError(source.path, reason)
    return layout.read_record(root / layout.SEGMENTS / name / layout.SEGMENT_RECORD, SegmentRecord)


def _is_own(root: Path, context_name: str, source_name: str) -> bool:
    """Whether the segment of this name, if there is one, came from this very source and may be replaced."""
    try:
        record = layout.read_record(root / layout.SEGMENTS / context_name / layout.SEGMENT_RECORD, SegmentRecord)
    except OSError:
        return False
    return record.source is not None and record.source.name == source_name
