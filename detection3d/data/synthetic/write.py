"""Write synthetic segments as TFRecords, several at once, and go on where an earlier run stopped."""

import json
import multiprocessing
import time as clock
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from pathlib import Path

from detection3d.data.preparation_pool import WORKER_KILLED, asked_to_stop, available_cores, start_worker
from detection3d.data.synthetic.generate import FrameReport, context_name, record_segment
from detection3d.data.synthetic.noise import derive_key
from detection3d.data.synthetic.rigs import RigConfig
from detection3d.data.synthetic.scene import SceneConfig
from detection3d.data.waymo.records import RecordWriter, index_records
from detection3d.errors import DataError, UserError
from detection3d.files import locked, replace_file
from detection3d.types.segment_names import SYNTHETIC_PREFIX

SETTINGS_FILE = "synthetic.json"
_LOCK = ".lock"


@dataclass(frozen=True)
class SegmentReport:
    """What became of one segment.

    Attributes:
        path: the file.
        frames: of each frame, in order; empty where the file was there already.
        seconds: spent on it, writing included.
    """

    path: Path
    frames: tuple[FrameReport, ...]
    seconds: float

    @property
    def skipped(self) -> bool:
        """Whether the file was there already."""
        return not self.frames


@dataclass(frozen=True)
class _Job:
    path: Path
    seed: int
    frames: int
    rig: RigConfig
    scene: SceneConfig
    interval: float


def write_segments(
    output: Path,
    segments: int,
    frames: int,
    seed: int,
    rig: RigConfig,
    scene: SceneConfig | None = None,
    interval: float = 0.1,
    workers: int | None = None,
    on_segment: Callable[[SegmentReport], None] = lambda report: None,
) -> list[SegmentReport]:
    """Write `segment-<context>_with_camera_labels.tfrecord` files.

    The bytes follow from the settings alone, whatever the number of workers. A file appears when it is complete;
    whole files that are there are left as they are, and what a killed run left half-written is removed.

    Args:
        output: folder, made if need be.
        segments: how many.
        frames: in each segment.
        seed: of the data set; different seeds give different segments.
        rig: the lidars.
        scene: how busy the streets are; None takes the usual.
        interval: seconds between frames.
        workers: processes; None takes one for each core, but no more than there are segments.
        on_segment: called with each report as it comes.

    Returns:
        The reports, in the order of the segments.

    Raises:
        UserError: a number is out of range, the folder holds segments of other settings, another run writes into it,
            or a worker was killed.
    """
    scene = scene or SceneConfig()
    _check(segments, frames, seed, interval, workers)
    output.mkdir(parents=True, exist_ok=True)
    jobs = []
    for index in range(segments):
        own = derive_key(seed, index)
        path = output / f"segment-{context_name(own)}_with_camera_labels.tfrecord"
        jobs.append(_Job(path, own, frames, rig, scene, interval))
    settings = {"seed": seed, "frames": frames, "interval": interval, "rig": rig.name, "scene": asdict(scene)}
    # So that a folder from before the mark is refused: its segments would be written again beside the old ones.
    settings["name_prefix"] = SYNTHETIC_PREFIX
    refusal = f"{output}: another run is writing segments into it; wait for it or choose another folder"
    with locked(output / _LOCK, refusal):
        _claim(output, settings)
        for partial in output.glob("segment-*.partial"):
            partial.unlink()
        return _write_missing(jobs, workers, on_segment)


def _write_missing(
    jobs: list[_Job], workers: int | None, on_segment: Callable[[SegmentReport], None]
) -> list[SegmentReport]:
    reports: dict[Path, SegmentReport] = {}

    def note(report: SegmentReport) -> None:
        reports[report.path] = report
        on_segment(report)

    open_jobs = []
    for job in jobs:
        if _is_whole(job):
            note(SegmentReport(job.path, (), 0.0))
        else:
            open_jobs.append(job)
    cores = available_cores()
    workers = min(workers or cores, len(open_jobs))
    if workers <= 1:
        for job in open_jobs:
            note(_write(job))
    else:
        _write_side_by_side(open_jobs, workers, max(1, cores // workers), note)
    return [reports[job.path] for job in jobs]


def _is_whole(job: _Job) -> bool:
    try:
        return job.path.exists() and len(index_records(job.path)) == job.frames
    except DataError:
        return False  # cut short by a copy or a failing disk; the settings give the same bytes again


def _write(job: _Job) -> SegmentReport:
    begin = clock.perf_counter()
    reports = []
    with RecordWriter(job.path) as writer:
        for frame, report in record_segment(job.seed, job.frames, job.rig, job.scene, job.interval):
            if asked_to_stop():
                raise KeyboardInterrupt
            start = clock.perf_counter()
            writer.write(frame.SerializeToString())
            spent = report.encode_seconds + clock.perf_counter() - start
            reports.append(FrameReport(report.points, report.objects, report.cast_seconds, spent))
    return SegmentReport(job.path, tuple(reports), clock.perf_counter() - begin)


def _write_side_by_side(jobs: list[_Job], workers: int, threads: int, note: Callable[[SegmentReport], None]) -> None:
    # Numba's threads don't survive a fork, so the workers start afresh.
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    with ProcessPoolExecutor(workers, context, start_worker, (threads, stop)) as pool:
        try:
            for future in as_completed([pool.submit(_write, job) for job in jobs]):
                note(future.result())
        except BrokenProcessPool as error:
            raise UserError(WORKER_KILLED) from error
        except BaseException:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _check(segments: int, frames: int, seed: int, interval: float, workers: int | None) -> None:
    for name, value, least in (("segments", segments, 1), ("frames", frames, 1), ("seed", seed, 0)):
        if value < least:
            raise UserError(f"{name} is {value}; give {least} or more")
    if not 0.0 < interval <= 60.0:
        raise UserError(f"interval is {interval} seconds; give a number above 0 and up to 60")
    if workers is not None and workers < 1:
        raise UserError(f"workers is {workers}; give 1 or more")


def _claim(output: Path, settings: dict[str, object]) -> None:
    """Note the settings in the folder, or make sure that they are the ones it holds."""
    path = output / SETTINGS_FILE
    text = json.dumps(settings, indent=2, sort_keys=True) + "\n"
    if not path.exists():
        replace_file(path, text.encode())
    elif path.read_text() != text:
        raise UserError(
            f"{output} holds segments of other settings ({path.name} there says which); choose another folder, or "
            "remove this one"
        )
