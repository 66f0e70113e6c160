"""A folder that an evaluation wrote, with the boxes that its metrics were computed from."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from detection3d.errors import DataError
from detection3d.evaluation.files.metrics_json import FILE_NAME, read_metrics_json
from detection3d.evaluation.files.objects import read_detections, read_ground_truth
from detection3d.evaluation.ground_truth import GroundTruth
from detection3d.evaluation.metrics import Metrics
from detection3d.types.scene import Detections

DETECTIONS = "detections.parquet"
GROUND_TRUTH = "ground_truth.parquet"


@dataclass(frozen=True)
class EvaluatedFolder:
    """What an evaluation wrote.

    Attributes:
        path: as it was given.
        content: of metrics.json.
        predictions: the detections.
        ground_truth: what they were measured against.
    """

    path: Path
    content: dict[str, Any]
    predictions: tuple[Detections, ...]
    ground_truth: tuple[GroundTruth, ...]


def read_evaluated_folder(folder: Path) -> EvaluatedFolder:
    """Read the folder of tools/evaluate.py or tools/waymo_metrics.py.

    The boxes lie beside metrics.json, or in the files that its provenance names.

    Raises:
        DataError: the folder holds no metrics.json, or one of another configuration; or the boxes are not to be found
            or are damaged.
    """
    path = folder / FILE_NAME
    if not path.is_file():
        raise DataError(
            folder, f"there is no {FILE_NAME}; give a folder that tools/evaluate.py or tools/waymo_metrics.py wrote"
        )
    content = read_metrics_json(path)
    configuration = content.get("provenance", {}).get("configuration", "official")
    if configuration != "official":
        raise DataError(
            path, f"it was measured with the configuration {configuration}; only official metrics can be compared here"
        )
    return EvaluatedFolder(
        path=folder,
        content=content,
        predictions=read_detections(_find(folder, content, DETECTIONS, "predictions")),
        ground_truth=read_ground_truth(_find(folder, content, GROUND_TRUTH, "ground_truth")),
    )


def check_unchanged(folder: EvaluatedFolder, metrics: Metrics) -> None:
    """Make sure that the boxes are still the ones that the folder's metrics.json is about.

    Args:
        folder: the evaluation.
        metrics: of its boxes, computed now.

    Raises:
        DataError: a metric differs.
    """
    said = folder.content.get("breakdowns", {})
    for row in metrics.rows:
        entry = said.get(row.name)
        if entry is None:
            continue
        before, now = (np.float32(entry["AP"]), np.float32(entry["APH"])), (row.ap, row.aph)
        if before != now:
            raise DataError(
                folder.path / FILE_NAME,
                f"{row.name} has AP {before[0]} and APH {before[1]} there, but the boxes give {now[0]} and {now[1]}: "
                "the files have changed since, or other settings were used; run the evaluation again",
            )


def short_labels(paths: Sequence[Path]) -> list[str]:
    """Return what tells folders apart: their paths without the parts that all begin or end with.

    Args:
        paths: of the folders, each once.

    Returns:
        A label for each, in the same order; all differ.
    """
    if len(paths) == 1:
        return [paths[0].resolve().name]
    parts = [list(path.resolve().parts) for path in paths]
    shared = _shared_beginning(parts)
    parts = [item[shared:] for item in parts]
    ending = _shared_beginning([item[::-1] for item in parts])
    labels = ["/".join(item[: len(item) - ending]) for item in parts]
    return labels if all(labels) else ["/".join(item) or "." for item in parts]


def _shared_beginning(parts: Sequence[Sequence[str]]) -> int:
    return sum(1 for _ in itertools.takewhile(lambda level: len(set(level)) == 1, zip(*parts, strict=False)))


def _find(folder: Path, content: dict[str, Any], name: str, key: str) -> Path:
    beside = folder / name
    if beside.is_file():
        return beside
    named = content.get("provenance", {}).get(key)
    if not isinstance(named, str):
        raise DataError(folder, f"it holds no {name}, and its {FILE_NAME} names no file of {key}; evaluate again")
    for path in (Path(named), folder / named):
        if path.exists():
            return path
    raise DataError(
        folder, f"it holds no {name}, and {named}, which its {FILE_NAME} names, is gone; put it back or evaluate again"
    )
