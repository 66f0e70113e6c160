"""One run of a comparison, from its first step to its scores; what a worker process does again and again."""

import functools
import gc
import hashlib
import json
import os
import shutil
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from detection3d.config import Config
from detection3d.data.preparation_pool import available_cores
from detection3d.data.store import Store
from detection3d.errors import DataError, UserError
from detection3d.evaluation import GroundTruth, evaluate
from detection3d.evaluation.comparison import ClassScores, RunScores, Scores, score
from detection3d.evaluation.files.metrics_json import write_metrics_json
from detection3d.files import replace_file
from detection3d.training.checkpoint import NAME, list_checkpoints
from detection3d.training.comparison_plan import Trial
from detection3d.training.evaluation import read_store_ground_truth
from detection3d.training.inference import detect_store, load_detector
from detection3d.training.loop import train
from detection3d.training.run_folder import RunFolder, describe_environment
from detection3d.training.state import build_detector

RESULT = "result.json"
LOG = "log.txt"
RUN = "run"
SCHEMA = 1
_FORK = "fork."  # the prefix of the fork's state in a detector's, where methods keep what they learn


@dataclass(frozen=True)
class Job:
    """A run and how to do it.

    Attributes:
        trial: the run.
        devices: of the whole pool; a worker takes the one of its turn.
        processes: that share the cores.
        keep_checkpoints: leave the weights where they are when the run is finished.
    """

    trial: Trial
    devices: tuple[str, ...]
    processes: int
    keep_checkpoints: bool


def do_job(job: Job, worker: int) -> RunScores:
    """Train and evaluate one run, or go on with it; write its result last, so that it says the run is finished.

    Args:
        job: the run.
        worker: number of this process in the pool.

    Raises:
        UserError: the run can't be done, or a loss is not finite.
        Interrupted: asked to stop; a checkpoint was written.
    """
    trial, device = job.trial, torch.device(job.devices[worker % len(job.devices)])
    threads = max(1, available_cores() // job.processes)
    torch.set_num_threads(threads)  # numba sets it anew when it starts its own
    trial.folder.mkdir(parents=True, exist_ok=True)
    with _log_to(trial.folder / LOG):
        started = time.perf_counter()
        run = trial.folder / RUN
        train(trial.config, run, device)
        seconds = time.perf_counter() - started
        early = None if trial.early is None else _evaluate(trial, trial.early, device, threads)
        final = _evaluate(trial, trial.config.training.steps, device, threads)
        weights = initial_weights(trial.config, device)
        scores = RunScores(trial.seed, trial.learning_rate, final, early, seconds, weights)
        write_result(trial, scores, describe_environment(device))
        if not job.keep_checkpoints:
            shutil.rmtree(RunFolder(run).checkpoints)
        sys.stdout.write(f"mean AP {100 * final.mean('ap'):.2f} %, trained in {seconds:.0f} s\n")
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()  # other processes share the device
    return scores


def initial_weights(config: Config, device: torch.device) -> str:
    """Return a digest of the weights and statistics before the first step, without the method's own state."""
    digest = hashlib.sha256()
    for name, value in build_detector(config, device).state_dict().items():
        if not name.startswith(_FORK):
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def write_result(trial: Trial, scores: RunScores, environment: dict[str, Any]) -> None:
    """Write the result of a finished run."""
    content = {
        "schema_version": SCHEMA,
        "fingerprint": trial.fingerprint,
        "scores": asdict(scores),
        "environment": environment,
    }
    replace_file(trial.folder / RESULT, (json.dumps(content, indent=2, allow_nan=False) + "\n").encode())


def read_result(trial: Trial) -> tuple[RunScores, dict[str, Any]] | None:
    """Return scores and environment of a run that is finished; None where it is not.

    Raises:
        DataError: the result is damaged, or of another version.
        UserError: the result is of other settings.
    """
    path = trial.folder / RESULT
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["schema_version"] != SCHEMA:
            raise DataError(path, f"schema_version is {content['schema_version']!r}, this program reads {SCHEMA}")
        fingerprint, scores, environment = content["fingerprint"], _scores(content["scores"]), content["environment"]
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, UserError):
            raise
        raise DataError(path, f"not the result of a run ({error}); delete it to do the run again") from error
    if fingerprint != trial.fingerprint:
        raise UserError(
            f"{path}: the result of a run with other settings; compare into another folder (--output), or delete it"
        )
    return scores, environment


def _scores(tree: dict[str, Any]) -> RunScores:
    def one(item: dict[str, Any]) -> Scores:
        return Scores(item["step"], tuple(ClassScores(**values) for values in item["classes"]))

    early = None if tree["early"] is None else one(tree["early"])
    return RunScores(**{**tree, "final": one(tree["final"]), "early": early})


def _evaluate(trial: Trial, step: int, device: torch.device, threads: int) -> Scores:
    """Evaluate the checkpoint of a step on the validation data, and write its metrics.json."""
    config, run = trial.config, trial.folder / RUN
    checkpoints = {int(NAME.fullmatch(path.name)[1]): path for path in list_checkpoints(run / "checkpoints")}  # pyright: ignore[reportOptionalSubscript]
    if step not in checkpoints:
        raise UserError(
            f"{run}: no checkpoint of step {step}; found {sorted(checkpoints)}. Delete the run to do it again"
        )
    assert config.data.validation is not None
    store, truth = _validation(config.data.validation)
    detector, _ = load_detector(config, checkpoints[step], device)
    metrics = evaluate(list(detect_store(detector, store, config, device)), truth, workers=threads)
    folder = run / "evaluation" / f"{step:08d}"
    folder.mkdir(parents=True, exist_ok=True)
    provenance = {"run": trial.title, "step": step, "method": trial.method, "seed": trial.seed}
    write_metrics_json(folder, metrics, {**provenance, "data": str(config.data.validation), "frames": len(store)})
    try:
        return score(metrics, step)
    except ValueError as error:
        raise UserError(f"{config.data.validation}: {error}") from error


@functools.lru_cache(maxsize=1)  # the same for all runs of a comparison
def _validation(path: Path) -> tuple[Store, list[GroundTruth]]:
    store = Store.open(path)
    return store, read_store_ground_truth(store)


@contextmanager
def _log_to(path: Path) -> Iterator[None]:
    """Send what this process prints to a file, libraries' own output too; an error's traceback comes last."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = os.dup(1), os.dup(2)
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        os.dup2(file, 1)
        os.dup2(file, 2)
        try:
            yield
        except UserError as error:
            sys.stderr.write(f"error: {error}\n")
            raise
        except BaseException:
            traceback.print_exc()
            raise
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
    finally:
        for number, descriptor in zip((1, 2), kept, strict=True):
            os.dup2(descriptor, number)
            os.close(descriptor)
        os.close(file)
