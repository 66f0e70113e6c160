"""What the preparation tools share: options, progress, and the summary at the end."""

import argparse
import math
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from detection3d.cli.checking import check_and_report
from detection3d.errors import UserError

if TYPE_CHECKING:
    from detection3d.data.preparation import Outcome, Progress, Source
    from detection3d.data.store import LeftOut, SegmentRecord, StoreSettings


def add_options(parser: argparse.ArgumentParser, what: str, *, remote: bool = False) -> None:
    """Add the options of every preparation tool.

    Args:
        parser: the tool's.
        what: says what the input is.
        remote: whether it may be a URL, which then stays a string.
    """
    parser.add_argument("--input", type=_path_or_url if remote else _path, required=True, metavar="PATH", help=what)
    aim = parser.add_mutually_exclusive_group(required=True)
    aim.add_argument("--output", type=Path, metavar="DIR", help="folder of the prepared store")
    aim.add_argument(
        "--check",
        action="store_true",
        help="only read everything and say what is wrong; exits with 1 if there are errors, suspicions alone are 0",
    )
    parser.add_argument("--workers", type=positive, metavar="N", help="processes (default: one for each core)")
    parser.add_argument(
        "--ray",
        metavar="ADDRESS",
        help="run on a Ray cluster whose machines see the same files: auto, HOST:PORT, ray://HOST:PORT, or local",
    )
    parser.add_argument(
        "--every", type=positive, default=1, metavar="N", help="keep every Nth frame of each segment (default: all)"
    )
    parser.add_argument(
        "--range", type=metres, metavar="M", help="leave out points with |x| or |y| beyond M metres (default: none)"
    )
    parser.add_argument(
        "--verify", action="store_true", help="re-read the whole store against its checksums at the end"
    )


def prepare_and_report(
    sources: "Sequence[Source]", options: argparse.Namespace, returns: tuple[int, ...] = (1, 2)
) -> int:
    """Prepare the sources, show how it goes, and list what was left out; or check them alone.

    Args:
        sources: what to prepare.
        options: the values of `add_options`.
        returns: lidar returns to keep.

    Returns:
        The exit status: 1 if anything was left out or the store is damaged, or a check found errors.
    """
    from detection3d.data.preparation import prepare
    from detection3d.data.store import StoreSettings

    settings = StoreSettings(returns=returns, every=options.every, reach=options.range)
    if options.check:
        ignored = [name for name in ("ray", "verify") if getattr(options, name)]
        if ignored:
            raise UserError(
                f"--{ignored[0]} can't be used with --check, which reads in local processes and writes nothing"
            )
        return check_and_report(sources, settings, options.workers)
    with _Display(sys.stdout.isatty(), options.output, settings) as display:
        outcome = prepare(
            sources,
            options.output,
            settings=settings,
            workers=options.workers,
            ray=options.ray,
            report=display.report,
            start=display.start,
        )
    _print_summary(outcome, options.output)
    sound = _verify(options.output) if options.verify and outcome.manifest.segments else True
    return 0 if sound and not outcome.left_out else 1


class _Display:
    """A progress bar on a terminal, a line for each source in a file."""

    def __init__(self, is_terminal: bool, output: Path, settings: "StoreSettings") -> None:
        self._output, self._settings = output, settings
        self._progress = None
        if is_terminal:
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (TextColumn("segments"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"))
            self._progress = Progress(*columns, TimeRemainingColumn())

    def __enter__(self) -> "_Display":
        if self._progress is not None:
            self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._progress is not None:
            self._progress.stop()

    def start(self, pending: "Sequence[Source]", finished: int) -> None:
        self._print(f"{len(pending)} segments to prepare, {finished} finished earlier")
        if pending:
            self._foretell(pending)
        if self._progress is not None and pending:
            self._task = self._progress.add_task("segments", total=len(pending), rate="")

    def _foretell(self, pending: "Sequence[Source]") -> None:
        from detection3d.data.preparation_estimate import estimate

        expected = estimate(pending, self._settings)
        if expected is None:
            return
        free = shutil.disk_usage(self._output).free
        self._print(
            f"about {expected.frames:,} frames, {expected.size / 1e9:.3g} GB (each segment taken to be as dense as the"
            f" first); {free / 1e9:.3g} GB are free"
        )
        if expected.size > free:
            print(f"note: {self._output} may become full; what is finished then is kept", file=sys.stderr)

    def report(self, progress: "Progress", result: "SegmentRecord | LeftOut") -> None:
        from detection3d.data.store import LeftOut

        rate = f"{progress.frames_per_second:.1f} frames/s"
        if isinstance(result, LeftOut):
            self._print(f"left out {_describe(result)}")
        elif self._progress is None:
            speed = f"{rate}, {_duration(progress.seconds_left)} left"
            self._print(f"{progress.done} of {progress.total}: {result.context_name}, {result.frames} frames; {speed}")
        if self._progress is not None:
            self._progress.update(self._task, completed=progress.done, rate=rate)

    def _print(self, line: str) -> None:
        if self._progress is None:
            print(line, flush=True)
        else:
            self._progress.console.print(line, markup=False, highlight=False)


def _print_summary(outcome: "Outcome", output: Path) -> None:
    frames = sum(record.frames for record in outcome.prepared)
    points = sum(record.points for record in outcome.prepared)
    losses = outcome.losses
    if not outcome.prepared and not outcome.left_out:
        print(f"nothing to do: all {outcome.skipped} sources are in {output}")
    if outcome.prepared:
        rate = frames / max(outcome.seconds, 1e-9)
        print(f"prepared {len(outcome.prepared)} segments, {frames} frames, {points} points at {rate:.1f} frames/s")
    if losses.out_of_range or losses.not_finite:
        print(f"points left out: {losses.out_of_range} beyond 255.99 m, {losses.not_finite} not finite")
    if losses.clipped:
        print(f"points with intensity or elongation clipped to +-65504: {losses.clipped}")
    segments = outcome.manifest.segments
    size = sum(file.size for record in segments for file in record.files.values())
    total = sum(record.frames for record in segments)
    print(f"{output}: {len(segments)} segments, {total} frames, {size / 1e9:.3f} GB")
    still_missing = len(outcome.manifest.left_out) - len(outcome.left_out)
    if still_missing:
        print(f"{still_missing} sources of earlier runs are still missing, see its manifest.json", file=sys.stderr)
    if outcome.left_out:
        print(f"{len(outcome.left_out)} sources could not be used:", file=sys.stderr)
        for entry in outcome.left_out:
            print(f"  {_describe(entry)}", file=sys.stderr)


def _verify(output: Path) -> bool:
    from detection3d.data.store import verify

    problems = verify(output)
    for problem in problems:
        print(f"damaged: {problem}", file=sys.stderr)
    print(f"verified: {len(problems)} damaged files" if problems else "verified: every file matches its checksum")
    return not problems


def _describe(entry: "LeftOut") -> str:
    record = "" if entry.record is None else f", record {entry.record}"
    return f"{entry.name}{record}: {entry.reason}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min {rest} s"


def _path_or_url(text: str) -> Path | str:
    if text.startswith("file://"):
        return Path(text.removeprefix("file://"))
    return text if _is_url(text) else Path(text)


def _is_url(text: str) -> bool:
    return "://" in text


def _path(text: str) -> Path:
    if _is_url(text):
        raise argparse.ArgumentTypeError(f"{text!r}: this tool reads no URLs; copy the folder first")
    return Path(text)


def metres(text: str) -> float:
    """Read a distance above 0 from the command line."""
    try:
        metres = float(text)
    except ValueError:
        metres = 0.0
    if not 0 < metres < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r}: give a distance above 0 in metres")
    return metres


def positive(text: str) -> int:
    """Read a whole number of at least 1 from the command line."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: give a whole number of at least 1")
    return int(text)
