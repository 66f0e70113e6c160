"""A trained detector as a folder to hand on: weights without code, the config, and a card that says what it is."""

import json
import statistics
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save

from detection3d.config import Config
from detection3d.config_file import dump_config
from detection3d.data.store import Store
from detection3d.errors import DataError, UserError
from detection3d.evaluation.files.metrics_json import read_metrics_json
from detection3d.files import replace_file
from detection3d.training.checkpoint import EXPORTED
from detection3d.training.evaluated_data import config_hash, data_hash
from detection3d.training.recorder import read_metrics
from detection3d.training.run_folder import RunFolder
from detection3d.training.weights import Weights, read_weights

CARD = "model_card.md"

_LIMITS = """\
- It knows sensor, mounting and places of its training data; other lidars, heights or countries are untested.
- Objects outside `model.point_range` are not found, nor types that `classes` does not name.
- Scores are not calibrated probabilities; the evaluation's report shows what they mean.
- It is not made or tested for use in a vehicle.
"""

_LICENCE = """\
The code is under Apache-2.0. Weights take on the terms of the data that they were trained on: Weights trained on the
Waymo Open Dataset may be used under its licence alone (https://waymo.com/open/terms), which is non-commercial and asks
for its notice to be passed on. Argoverse 2 and KITTI have terms of their own, for non-commercial use as well. Weights
trained on this project's synthetic data alone are bound by none of these.
"""


@dataclass(frozen=True)
class Export:
    """What an export wrote.

    Attributes:
        folder: holds model.safetensors, config.yaml and model_card.md.
        weights: the detector's.
        metrics: whether the card has those of an evaluation of this step.
    """

    folder: Path
    weights: Weights
    metrics: bool


def export(run: Path, config: Config, checkpoint: Path, output: Path) -> Export:
    """Write a detector's folder, which tools/evaluate.py takes in the place of a run.

    Args:
        run: the run's folder, for what is known of its training.
        config: the run's.
        checkpoint: whose weights to take, the averaged ones where the run keeps them.
        output: the folder to write; another model in it is replaced.

    Raises:
        UserError: the checkpoint can't be used, or the folder holds something else.
    """
    if output.is_dir() and any(output.iterdir()) and not (output / EXPORTED).is_file():
        raise UserError(f"{output}: not empty, and not an exported model; choose another folder with --output")
    weights = read_weights(checkpoint)
    metrics = _metrics(RunFolder(run), weights.step)
    facts = {"format": "pt", "step": str(weights.step), "averaged": str(weights.averaged).lower()}
    tensors = {name: value.contiguous().clone() for name, value in weights.tensors.items()}
    output.mkdir(parents=True, exist_ok=True)
    # The weights last: what has them is complete.
    replace_file(output / "config.yaml", dump_config(config).encode())
    card = "\n".join(_card(run, config, weights, checkpoint, metrics))
    replace_file(output / CARD, card.encode())
    replace_file(output / EXPORTED, save(tensors, facts))
    return Export(output, weights, metrics is not None)


def _card(
    run: Path, config: Config, weights: Weights, checkpoint: Path, metrics: dict[str, Any] | None
) -> Iterator[str]:
    training, method = config.training, config.multitask.method.model_dump(mode="json")
    count = sum(value.numel() for value in weights.tensors.values())
    low, high = config.model.point_range[:3], config.model.point_range[3:]
    yield f"# {run.resolve().name}, step {weights.step}\n"
    yield "## Task\n"
    yield (
        "3D object detection in lidar scans: boxes with heading, type and score. Types: "
        + ", ".join(f"{item.name} ({', '.join(kind.name for kind in item.types)})" for item in config.classes)
        + f". Range: {low} to {high} m in the vehicle frame, voxels of {config.model.voxel_size} m,"
        f" {config.data.sweeps} sweep(s), returns {list(config.data.returns)}.\n"
    )
    yield "## Weights\n"
    yield (
        f"`{EXPORTED}`: {count / 1e6:.2f} M numbers, {'averaged' if weights.averaged else 'not averaged'}, from"
        f" {checkpoint.name}. `config.yaml` is the run's config, SHA-256 {config_hash(config)}.\n"
    )
    yield "## Data\n"
    yield f"- training: {_data(config.data.train)}"
    yield f"- validation: {_data(config.data.validation)}\n"
    yield "## Training\n"
    yield f"- {weights.step} of {training.steps} steps of {training.batch_size} samples, seed {config.seed}"
    rate, decay = training.learning_rate, training.weight_decay
    yield f"- AdamW, one-cycle peak {rate:g}, weight decay {decay:g}, {training.precision}"
    yield f"- gradients of the tasks combined by: {json.dumps(method)}, sync {config.multitask.sync}"
    if training.freeze:
        yield f"- frozen: {', '.join(training.freeze)}"
    yield from _beginning(RunFolder(run))
    yield from _cost(RunFolder(run))
    yield "\n## Metrics\n"
    yield from _metric_lines(metrics, weights.step, {kind.name for item in config.classes for kind in item.types})
    yield "\n## Environment\n"
    yield from _environment(RunFolder(run))
    yield "\n## Limits\n"
    yield _LIMITS
    yield "## Licence\n"
    yield _LICENCE
    yield "## Use\n"
    yield "```\npython tools/evaluate.py FOLDER data.validation=STORE\n```\n"


def _data(place: Path | None) -> str:
    if place is None:
        return "none"
    try:
        store = Store.open(place)
    except (UserError, OSError):
        return f"{place} (not at hand when this was written)"
    return f"{place}, {len(store):,} frames, SHA-256 of its contents {data_hash(store)}"


def _beginning(folder: RunFolder) -> Iterator[str]:
    if folder.initialized.is_file():
        content = json.loads(folder.initialized.read_text())
        yield f"- began with weights of {content['source']}, step {content['step']}"


def _cost(folder: RunFolder) -> Iterator[str]:
    """Say what the training took, by its log: every logged step holds the mean time of those since the one before."""
    rows = [row for row in read_metrics(folder.metrics) if "time/step" in row and "memory/GB" in row]
    if not rows:
        return
    steps = [row["step"] for row in rows]
    seconds = sum(
        (step - before) * row["time/step"] for before, step, row in zip([0, *steps], steps, rows, strict=False)
    )
    speed = statistics.median(row["time/samples_per_second"] for row in rows)
    memory = max(row["memory/GB"] for row in rows)
    yield (
        f"- took {seconds / 60:.1f} min in its steps, {speed:.1f} samples a second; peak memory of the first rank"
        f" {memory:.1f} GB"
    )


def _metrics(folder: RunFolder, step: int) -> dict[str, Any] | None:
    """Return the metrics of this step's evaluation, None where it was not evaluated."""
    path = folder.evaluation / f"{step:08d}" / "metrics.json"
    return read_metrics_json(path) if path.is_file() else None


def _metric_lines(metrics: dict[str, Any] | None, step: int, found: Collection[str]) -> Iterator[str]:
    if metrics is None:
        yield f"Step {step} was not evaluated."
        return
    yield f"Waymo's 3D metrics on {metrics['frames']:,} frames of {metrics['provenance']['data']}:\n"
    yield "| | AP % | APH % |\n|---|---|---|"
    for name, mean in metrics["means"].items():
        if mean["AP"] is not None:
            yield f"| mean {name} | {100 * mean['AP']:.2f} | {100 * mean['APH']:.2f} |"
    for name, row in metrics["breakdowns"].items():
        label = name.removeprefix("OBJECT_TYPE_TYPE_")
        # Data may hold types that the detector does not look for, such as signs.
        if label != name and label.partition("_")[0] in found and row["counts"]["ground_truth"]:
            yield f"| {label} | {100 * row['AP']:.2f} | {100 * row['APH']:.2f} |"


def _environment(folder: RunFolder) -> Iterator[str]:
    if not folder.provenance.is_file():
        yield "Not known."
        return
    try:
        starts = json.loads(folder.provenance.read_text())
    except ValueError as error:
        raise DataError(folder.provenance, f"not JSON ({error}); delete it to export without it") from error
    for start in starts:
        packages = ", ".join(f"{name} {version}" for name, version in start["packages"].items() if version)
        yield (
            f"- from step {start['step']}: {start['ranks']} rank(s), {start['device']}, Python {start['python']},"
            f" {packages}, commit {start['commit'] or 'unknown'}"
        )
        for change in start.get("changes", ()):
            yield f"  - changed: {change}"
