"""The native metrics against Waymo's op, and on a set of the validation set's size: time and memory."""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detection3d.benchmark.metrics_frames import random_frames
from detection3d.errors import UserError
from detection3d.evaluation.files.objects import write_detections, write_ground_truth

BACKENDS = ("native", "official")
_ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Files:
    """Files to evaluate.

    Attributes:
        predictions: detections.
        ground_truth: labels.
    """

    predictions: Path
    ground_truth: Path


@dataclass(frozen=True)
class Turn:
    """One evaluation in a process of its own.

    Attributes:
        whole: seconds from the process's start to its end.
        read: seconds of reading the files.
        evaluate: seconds of evaluating what they hold.
        peak_bytes: the process's peak memory.
        areas: AP and APH by row.
        versions: of the backend's packages.
    """

    whole: float
    read: float
    evaluate: float
    peak_bytes: int
    areas: Mapping[str, Sequence[float]]
    versions: Mapping[str, str]


def write_frames(folder: Path, frames: int, suffix: str = ".parquet") -> Files:
    """Write synthetic frames.

    Args:
        folder: where to.
        frames: how many.
        suffix: .parquet or .bin.

    Returns:
        The files.
    """
    files = Files(folder / f"predictions_{frames}{suffix}", folder / f"ground_truth_{frames}{suffix}")
    predictions, truth = random_frames(frames)
    write_detections(files.predictions, predictions)
    write_ground_truth(files.ground_truth, truth)
    return files


def take_turn(python: Path, backend: str, files: Files, cache: Path | None = None) -> Turn:
    """Evaluate in a new process.

    Args:
        python: its interpreter.
        backend: native or official.
        files: what to evaluate.
        cache: folder for compiled code; None takes the usual one.

    Returns:
        The figures.

    Raises:
        UserError: the process can't be started, or fails; in its own words.
    """
    environment = {**os.environ, "PYTHONPATH": str(_ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}
    if cache is not None:
        environment["NUMBA_CACHE_DIR"] = str(cache)
    command = [str(python), "-m", "detection3d.benchmark.metrics_turn", backend, files.predictions, files.ground_truth]
    begin = time.perf_counter()
    try:
        ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    except OSError as error:
        raise UserError(f"{python} can't be run ({error.strerror}); give the interpreter of an environment") from error
    whole = time.perf_counter() - begin
    if ended.returncode:
        said = ended.stderr.strip().splitlines() or [f"status {ended.returncode}"]
        raise UserError(f"the {backend} backend failed under {python}: {said[-1]}")
    figures: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return Turn(
        whole=whole,
        read=figures["read_s"],
        evaluate=figures["evaluate_s"],
        peak_bytes=figures["peak_bytes"],
        areas=figures["areas"],
        versions=figures["versions"],
    )


def compare(files: Files, official: Path | None, rounds: int) -> Iterator[tuple[str, Turn]]:
    """Evaluate by each backend in turns.

    Args:
        files: what to evaluate.
        official: interpreter of the evaluation environment; None leaves Waymo's op out.
        rounds: how many turns each backend has.

    Yields:
        Backend and turn.

    Raises:
        UserError: a process fails, or the backends' numbers differ.
    """
    pythons = {"native": Path(sys.executable), "official": official}
    take_turn(pythons["native"], "native", files)  # fills the cache of compiled code, whose cost is told apart
    areas: Mapping[str, Sequence[float]] | None = None
    for _ in range(rounds):
        for backend in BACKENDS:
            python = pythons[backend]
            if python is None:
                continue
            turn = take_turn(python, backend, files)
            if areas is not None and turn.areas != areas:
                raise UserError(f"the backends' numbers differ on {files.predictions}; please report it with the files")
            areas = turn.areas
            yield backend, turn


def medians(turns: Sequence[Turn]) -> dict[str, float]:
    """Return the median of each time, and the greatest peak memory."""
    return {
        "whole_s": statistics.median(turn.whole for turn in turns),
        "read_and_evaluate_s": statistics.median(turn.read + turn.evaluate for turn in turns),
        "evaluate_s": statistics.median(turn.evaluate for turn in turns),
        "peak_gb": max(turn.peak_bytes for turn in turns) / 1e9,
    }
