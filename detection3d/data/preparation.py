"""Fill a prepared store from many sources: resumable, in parallel, and telling what could not be used."""

import functools
import shutil
import time
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass
from pathlib import Path

from detection3d.data import store_manifest as layout
from detection3d.data.packing import PackingLosses
from detection3d.data.preparation_pool import available_cores, run_tasks
from detection3d.data.preparation_ray import run_on_ray
from detection3d.data.preparation_task import Source, prepare_source
from detection3d.data.store_manifest import LeftOut, Manifest, SegmentRecord, StoreSettings
from detection3d.errors import UserError
from detection3d.files import locked, remove_unfinished

__all__ = ["Outcome", "Progress", "Source", "prepare"]

_LOCK = ".lock"


@dataclass(frozen=True)
class Progress:
    """How far a preparation is.

    Attributes:
        done: sources dealt with in this run.
        total: sources to deal with in this run.
        frames: frames written in this run.
        seconds: time since the start.
    """

    done: int
    total: int
    frames: int
    seconds: float

    @property
    def frames_per_second(self) -> float:
        """Frames written per second since the start."""
        return self.frames / max(self.seconds, 1e-9)

    @property
    def seconds_left(self) -> float:
        """Time left if the remaining sources take as long as the ones before."""
        return self.seconds / max(self.done, 1) * (self.total - self.done)


@dataclass(frozen=True)
class Outcome:
    """What a preparation did.

    Attributes:
        prepared: segments written in this run.
        skipped: sources that an earlier run had finished.
        left_out: sources of this run that could not be used.
        manifest: the store as it is now.
        seconds: how long it took.
    """

    prepared: tuple[SegmentRecord, ...]
    skipped: int
    left_out: tuple[LeftOut, ...]
    manifest: Manifest
    seconds: float

    @property
    def losses(self) -> PackingLosses:
        """Points of the segments written in this run that could not be kept."""
        parts = (PackingLosses(**record.losses.model_dump()) for record in self.prepared)
        return sum(parts, PackingLosses())


Report = Callable[[Progress, SegmentRecord | LeftOut], None]


def prepare(
    sources: Sequence[Source],
    output: Path,
    *,
    settings: StoreSettings | None = None,
    workers: int | None = 1,
    ray: str | None = None,
    report: Report | None = None,
    start: Callable[[Sequence[Source], int], None] | None = None,
) -> Outcome:
    """Prepare every source that isn't in the store yet, or has changed since.

    A source becomes a segment whole or not at all, so this can be killed at any moment and run again. The manifest is
    written last: until then the store opens as it was before, or not at all if this is its first preparation or a
    changed source has come anew.

    Args:
        sources: what to prepare; names are unique.
        output: the store's folder; segments of other sources in it are kept.
        settings: the choices of the store, the same for all its segments.
        workers: number of processes; None: one for each core.
        ray: address of a Ray cluster to use instead of processes here, see `run_on_ray`.
        report: called after each source.
        start: called once with the sources to prepare and the number of those finished earlier.

    Returns:
        What was done and what was left out.

    Raises:
        UserError: the output is in use, isn't a folder, or was prepared with other settings; a worker was killed; or
            there is no such cluster.
        OSError: the output can't be written (permissions, disk full).
    """
    settings = settings or StoreSettings()
    began = time.monotonic()
    names = {source.name: source for source in sources}
    for source in sources:
        if names[source.name] is not source:
            raise UserError(
                f"{source.path} and {names[source.name].path} would both become the segment {source.name}; rename"
                " a folder, or prepare them into stores of their own"
            )
    if output.exists() and not output.is_dir():
        raise UserError(f"{output}: a file stands where the output folder should be; choose another folder")
    (output / layout.SEGMENTS).mkdir(parents=True, exist_ok=True)
    refusal = f"{output}: another preparation is writing into it; wait for it or choose another folder"
    with locked(output / _LOCK, refusal):
        _remove_unfinished(output)
        finished = _finished_sources(output, settings)
        pending = [source for source in sources if not _is_finished(source, finished)]
        if start is not None:
            start(pending, len(sources) - len(pending))
        earlier = _earlier_left_out(output, names.keys())
        if pending:
            _announce(output, settings, pending, earlier)

        prepared: list[SegmentRecord] = []
        left_out: list[LeftOut] = []
        task = functools.partial(prepare_source, root=output, settings=settings)
        if ray is None:
            results = run_tasks(task, pending, workers or available_cores())
        else:
            results = run_on_ray(task, pending, ray, workers)
        for result in results:
            if isinstance(result, SegmentRecord):
                prepared.append(result)
            else:
                left_out.append(result)
            if report is not None:
                frames = sum(record.frames for record in prepared)
                done = len(prepared) + len(left_out)
                report(Progress(done, len(pending), frames, time.monotonic() - began), result)
        left_out.sort(key=lambda entry: entry.name)
        manifest = layout.write_manifest(output, settings, left_out=(*earlier, *left_out))
        (output / layout.UNFINISHED).unlink(missing_ok=True)
    skipped = len(sources) - len(pending)
    return Outcome(tuple(prepared), skipped, tuple(left_out), manifest, time.monotonic() - began)


def _remove_unfinished(output: Path) -> None:
    """Remove what a killed preparation left: the lock says that nobody is at work on it."""
    for path in (output / layout.SEGMENTS).glob(".*"):
        shutil.rmtree(path, ignore_errors=True)
    remove_unfinished(output)


def _finished_sources(output: Path, settings: StoreSettings) -> dict[str, SegmentRecord]:
    """Return the sound segments of the store by the name of their source."""
    finished = {}
    for name, record in layout.finished_segments(output).items():
        if record.settings != settings:
            raise UserError(
                f"{output}: segment {name} was prepared with {record.settings.describe()}, now asked for:"
                f" {settings.describe()}; "
                "a store has the same settings throughout, so choose another folder"
            )
        if record.source is not None and _is_whole(output / layout.SEGMENTS / name, record):
            finished[record.source.name] = record
    return finished


def _is_whole(folder: Path, record: SegmentRecord) -> bool:
    try:
        return all((folder / name).stat().st_size == file.size for name, file in record.files.items())
    except OSError:
        return False


def _is_finished(source: Source, finished: dict[str, SegmentRecord]) -> bool:
    record = finished.get(source.name)
    if record is None:
        return False
    try:
        return record.source == source.fingerprint()
    except OSError:
        return False  # the task meets the same error, and reports it


def _earlier_left_out(output: Path, names: Set[str]) -> tuple[LeftOut, ...]:
    """Return what earlier preparations left out, or did not come to, without the sources that are tried again now."""
    for name in (layout.UNFINISHED, layout.MANIFEST):
        if (output / name).exists():
            manifest = layout.read_record(output / name, Manifest)
            done = {record.source.name for record in layout.finished_segments(output).values() if record.source}
            return tuple(entry for entry in manifest.left_out if entry.name not in names | done)
    return ()


def _announce(output: Path, settings: StoreSettings, pending: Sequence[Source], earlier: tuple[LeftOut, ...]) -> None:
    """Write down what is going to be prepared, so that a run over other sources can't forget it if this is killed."""
    reason = "its preparation was interrupted; run it again"
    planned = (LeftOut(name=source.name, record=None, reason=reason) for source in pending)
    announcement = Manifest(settings=settings, segments=(), left_out=(*earlier, *planned))
    layout.write_record(output / layout.UNFINISHED, announcement)
