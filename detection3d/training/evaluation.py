"""Evaluation of a run: detections to parquet, Waymo metrics, metrics.json and report.html."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress

from detection3d.config import Config
from detection3d.data.store import Store
from detection3d.errors import UserError
from detection3d.evaluation import GroundTruth, Metrics, evaluate, prepare_ground_truth
from detection3d.evaluation.analysis import analyse
from detection3d.evaluation.files.metrics_json import write_metrics_json
from detection3d.evaluation.files.objects import write_detections, write_ground_truth
from detection3d.evaluation.ground_truth import no_ground_truth
from detection3d.evaluation.reporting.conflict_figures import PurityHistory
from detection3d.evaluation.reporting.figures import Curve
from detection3d.evaluation.reporting.report import write_report
from detection3d.evaluation.reporting.scenes import Scene, scene_of_frame
from detection3d.model.heads import TASKS
from detection3d.training.conflict_files import last_conflict
from detection3d.training.evaluated_data import config_hash, data_facts, data_hash
from detection3d.training.inference import detect_store, load_detector
from detection3d.training.recorder import read_metrics
from detection3d.training.run_folder import RunFolder, describe_environment
from detection3d.types.scene import Detections


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation wrote.

    Attributes:
        metrics: the result.
        folder: holds detections.parquet, ground_truth.parquet, metrics.json and report.html.
        report: the HTML file.
    """

    metrics: Metrics
    folder: Path
    report: Path


def evaluate_run(run: Path, config: Config, checkpoint: Path, output: Path | None, device: torch.device) -> Evaluation:
    """Evaluate a checkpoint on the config's validation data.

    Args:
        run: the run's folder, for the charts of its training.
        config: the run's, as it may have been overridden.
        checkpoint: whose weights to use.
        output: where to write; None takes `evaluation/<step>` in the run.
        device: where to compute.

    Raises:
        UserError: there is no validation data, or the checkpoint can't be used.
    """
    if config.data.validation is None:
        raise UserError("data.validation is not set: give the folder of a prepared store (data.validation=FOLDER)")
    store = Store.open(config.data.validation)
    truth = read_store_ground_truth(store)  # first, since frames without labels would waste the detection
    detector, step = load_detector(config, checkpoint, device)
    folder = output or run / "evaluation" / f"{step:08d}"
    with _progress(len(store)) as progress:
        detections = list(detect_store(detector, store, config, device, progress))
    evaluated = EvaluatedFrames(store, range(len(store)), truth)
    return write_evaluation(run, config, evaluated, detections, folder, checkpoint.name, step, device)


@dataclass(frozen=True)
class EvaluatedFrames:
    """Frames of a store, with their ground truth.

    Attributes:
        store: the data.
        frames: their numbers, ascending.
        truth: of each of them.
    """

    store: Store
    frames: Sequence[int]
    truth: list[GroundTruth]


def write_evaluation(
    run: Path,
    config: Config,
    evaluated: EvaluatedFrames,
    detections: Sequence[Detections],
    folder: Path,
    checkpoint: str,
    step: int,
    device: torch.device,
) -> Evaluation:
    """Evaluate detections and write everything that an evaluation leaves.

    Args:
        run: the run's folder, for the charts of its training.
        config: of the evaluation.
        evaluated: the frames.
        detections: in each of them, in their order.
        folder: where to write.
        checkpoint: name of the checkpoint whose weights were used.
        step: of the checkpoint.
        device: where the detections were computed.
    """
    store, truth = evaluated.store, evaluated.truth
    folder.mkdir(parents=True, exist_ok=True)
    # Before anything is replaced, so that a stop leaves the earlier results alone.
    metrics = evaluate(detections, truth)
    write_detections(folder / "detections.parquet", detections)
    write_ground_truth(folder / "ground_truth.parquet", truth)
    environment = describe_environment(device)
    analysis = analyse(detections, truth, metrics)
    provenance = {
        "run": str(run),
        "checkpoint": checkpoint,
        "step": step,
        "method": config.multitask.method.kind,
        "seed": config.seed,
        "config_sha256": config_hash(config),
        "data": str(config.data.validation),
        "data_sha256": data_hash(store),
        "frames": len(truth),
        "frames_of_data": len(store),
        **environment,
    }
    write_metrics_json(folder, metrics, provenance, analysis.to_json())
    facts = data_facts(store, config, truth)
    if len(truth) < len(store):
        facts = {"Share of the data": f"{len(truth):,} of {len(store):,} frames, evenly spaced", **facts}
    report = write_report(
        folder / "report.html",
        metrics,
        _scenes(evaluated, detections, analysis.shown),
        title=f"{run.resolve().name}, step {step}",
        provenance={name: _plain(value) for name, value in provenance.items()},
        training_charts=training_charts(RunFolder(run).metrics),
        conflict=last_conflict(RunFolder(run).conflict, step),
        analysis=analysis,
        facts=facts,
    )
    return Evaluation(metrics, folder, report)


def read_store_ground_truth(store: Store, frames: Sequence[int] | None = None) -> list[GroundTruth]:
    """Return every frame's ground truth, prepared by Waymo's rules; frames without labels are an error.

    Args:
        store: the data.
        frames: numbers of the wanted ones; None takes all.

    Raises:
        UserError: a frame has no labels.
    """
    truth = []
    for index in range(len(store)) if frames is None else frames:
        labels = store.labels(index)
        name, timestamp = store.key(index)
        if labels is None:
            raise UserError(
                f"{store.root}: frame {name} at {timestamp} has no labels, so nothing can be evaluated on it"
            )
        truth.append(prepare_ground_truth(labels, name, timestamp) if len(labels) else no_ground_truth(name, timestamp))
    return truth


def training_charts(path: Path) -> list[Curve | PurityHistory]:
    """Return the charts of a run's metrics.jsonl: losses, and what the fork saw of the tasks' gradients."""
    rows = read_metrics(path)
    if not rows:
        return []
    pairs = [f"{first}/{second}" for i, first in enumerate(TASKS) for second in TASKS[i + 1 :]]
    charts = [
        ("Losses", "loss", {task: f"loss/{task}" for task in TASKS}),
        ("Gradient norms at the fork", "L2 norm", {task: f"fork/gradient_norm/{task}" for task in TASKS}),
        (
            "Cosine of the tasks' gradients",
            "cosine",
            {pair.replace("/", ", "): f"fork/cosine/{pair}" for pair in pairs},
        ),
        ("Positions in conflict", "share", {"in conflict": "fork/conflict_share", "active": "fork/active_share"}),
        ("Gradient that the method lets through", "share", {task: f"fork/kept_mass/{task}" for task in TASKS}),
        ("Noise of GradDrop's draw", "deviation / norm of the mean", {"expected": "fork/expected_noise"}),
    ]
    curves: list[Curve | PurityHistory] = []
    for title, label, names in charts:
        series = {name: _series(rows, key) for name, key in names.items() if any(key in row for row in rows)}
        if series:
            curves.append(Curve(title=title, x_label="step", y_label=label, series=series))
    purity = {row["step"]: row["fork/purity"] for row in rows if _is_complete(row.get("fork/purity"))}
    if purity:
        curves.append(PurityHistory(list(purity), np.array(list(purity.values()), np.float64)))
    return curves


def _is_complete(shares: list[float | None] | None) -> bool:
    """Whether a histogram was logged, and the step did not overflow."""
    return shares is not None and None not in shares


def _series(rows: Sequence[dict[str, Any]], key: str) -> tuple[list[float], list[float]]:
    points = [(float(row["step"]), float(row[key])) for row in rows if row.get(key) is not None]
    return [x for x, _ in points], [y for _, y in points]


def _scenes(
    evaluated: EvaluatedFrames, detections: Sequence[Detections], keys: Sequence[tuple[str, int]]
) -> list[Scene]:
    index = {item.key: place for place, item in enumerate(detections)}
    places = [index[key] for key in keys]
    return [scene_of_frame(evaluated.store.frame(evaluated.frames[place]), detections[place]) for place in places]


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {item}" for name, item in value.items() if item is not None)
    return str(value)


@contextmanager
def _progress(total: int) -> Iterator[Any]:
    console = Console()
    if not console.is_terminal:
        yield lambda _: None
        return
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("detecting", total=total)
        yield lambda done: progress.update(task, completed=done)
