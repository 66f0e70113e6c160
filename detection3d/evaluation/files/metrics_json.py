"""The metrics as `metrics.json`.

`{"schema_version": 1, "frames": n, "breakdowns": {official name: {"AP", "APH", "counts"}}, "means": {level: ...},
"provenance": {...}}`, and the sections of `Analysis.to_json` ("evaluated", "head_errors", "calibration",
"frames_shown") where the boxes were looked at. A new section does not change the version; a changed one does. A float32
is written with the digits that bring back the same float32.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from detection3d.errors import DataError
from detection3d.evaluation.metrics import MetricRow, Metrics
from detection3d.files import replace_file
from detection3d.types.scene import ObjectType

SCHEMA_VERSION = 1
FILE_NAME = "metrics.json"

MEAN_TYPES = (ObjectType.VEHICLE, ObjectType.PEDESTRIAN, ObjectType.CYCLIST)
"""The leaderboard's mean, ALL_NS, is over these: all but signs."""


@dataclass(frozen=True)
class MeanMetric:
    """Mean of the OBJECT_TYPE rows of one level over vehicles, pedestrians and cyclists.

    Attributes:
        ap: mean over the types that have ground truth; None where none has.
        aph: likewise.
        over: names of the types that have ground truth.
        without_ground_truth: names of those that have none and are left out.
    """

    ap: float | None
    aph: float | None
    over: tuple[str, ...]
    without_ground_truth: tuple[str, ...]


def mean_metrics(metrics: Metrics) -> dict[int, MeanMetric]:
    """Return the mean of each level that has OBJECT_TYPE rows, by level."""
    by_level: dict[int, list[MetricRow]] = {}
    for row in metrics.rows:
        if row.breakdown == "OBJECT_TYPE" and row.shard.object_type in MEAN_TYPES:
            by_level.setdefault(row.level, []).append(row)
    return {level: _mean(rows) for level, rows in by_level.items()}


def metrics_to_json(metrics: Metrics, provenance: Mapping[str, Any], sections: Mapping[str, Any] | None = None) -> str:
    """Return the text of `metrics.json`.

    Args:
        metrics: the result of `evaluate`.
        provenance: whatever says where the numbers come from: checkpoint, commit, versions. JSON values.
        sections: more of them, such as `Analysis.to_json()`.

    Returns:
        JSON, indented, with a newline at the end.
    """
    content = {
        "schema_version": SCHEMA_VERSION,
        "frames": metrics.frames,
        "breakdowns": {
            row.name: {
                "AP": _shortest(row.ap),
                "APH": _shortest(row.aph),
                "counts": {
                    "ground_truth": row.ground_truth,
                    "predictions": row.predictions,
                    "true_positives": row.true_positives,
                    "false_positives": row.false_positives,
                    "false_negatives": row.false_negatives,
                },
            }
            for row in metrics.rows
        },
        "means": {
            f"LEVEL_{level}": {
                "AP": mean.ap,
                "APH": mean.aph,
                "over": list(mean.over),
                "without_ground_truth": list(mean.without_ground_truth),
            }
            for level, mean in mean_metrics(metrics).items()
        },
        **(sections or {}),
        "provenance": dict(provenance),
    }
    return json.dumps(content, indent=2, allow_nan=False) + "\n"


def write_metrics_json(
    folder: Path | str, metrics: Metrics, provenance: Mapping[str, Any], sections: Mapping[str, Any] | None = None
) -> Path:
    """Write `metrics.json` into an existing folder and return its path; arguments as in `metrics_to_json`."""
    path = Path(folder) / FILE_NAME
    replace_file(path, metrics_to_json(metrics, provenance, sections).encode())
    return path


def read_metrics_json(path: Path | str) -> dict[str, Any]:
    """Read `metrics.json`.

    Args:
        path: the file.

    Returns:
        Its content.

    Raises:
        DataError: it isn't such a file, or of another version.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(path, f"not JSON ({error}); run the evaluation again") from error
    version = content.get("schema_version") if isinstance(content, dict) else None
    if version != SCHEMA_VERSION:
        raise DataError(path, f"schema_version is {version!r}, this program reads {SCHEMA_VERSION}")
    for name in ("breakdowns", "provenance"):
        if not isinstance(content.get(name), dict):
            raise DataError(path, f"{name} is {content.get(name)!r} and not an object; run the evaluation again")
    return content


def _mean(rows: list[MetricRow]) -> MeanMetric:
    present = [row for row in rows if row.ground_truth]
    return MeanMetric(
        ap=float(np.mean([float(row.ap) for row in present])) if present else None,
        aph=float(np.mean([float(row.aph) for row in present])) if present else None,
        over=tuple(row.shard.object_type.name for row in present),
        without_ground_truth=tuple(row.shard.object_type.name for row in rows if not row.ground_truth),
    )


def _shortest(value: np.float32) -> float:
    """Return the float64 with the shortest decimals that round to this float32."""
    return float(str(value))
