"""A comparison as `comparison.json`: every run, every difference and every setting behind them."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from detection3d.errors import DataError
from detection3d.evaluation.comparison import CONVERGED, LEVEL, METRICS, Comparison, MethodRuns
from detection3d.evaluation.paired import ALPHA
from detection3d.files import replace_file

SCHEMA_VERSION = 1
FILE_NAME = "comparison.json"


def comparison_to_json(comparison: Comparison, config: Mapping[str, Any], provenance: Mapping[str, Any]) -> str:
    """Return the text of `comparison.json`.

    Metrics are in [0, 1], differences are method minus baseline.

    Args:
        comparison: what was found.
        config: the runs' common config, plain values.
        provenance: commit, versions, hardware; JSON values.
    """
    content = {
        "schema_version": SCHEMA_VERSION,
        "baseline": comparison.baseline,
        "complete": comparison.complete,
        "level": LEVEL,
        "alpha": ALPHA,
        "converged_below": CONVERGED,
        "seeds": comparison.seeds,
        "grid_seeds": comparison.grid_seeds,
        "validation_frames": comparison.frames,
        "methods": [_method(item) for item in comparison.methods],
        "differences": {
            metric: {
                name: {**asdict(found), "by_seed": comparison.paired(name, metric)}
                for name, found in comparison.differences(metric).items()
            }
            for metric in METRICS
        },
        "config": dict(config),
        "provenance": dict(provenance),
    }
    return json.dumps(content, indent=2, allow_nan=False) + "\n"


def write_comparison_json(
    folder: Path, comparison: Comparison, config: Mapping[str, Any], provenance: Mapping[str, Any]
) -> Path:
    """Write `comparison.json` into an existing folder and return its path; arguments as in `comparison_to_json`."""
    path = folder / FILE_NAME
    replace_file(path, comparison_to_json(comparison, config, provenance).encode())
    return path


def read_comparison_json(path: Path) -> dict[str, Any]:
    """Read `comparison.json`.

    Raises:
        DataError: it isn't such a file, or of another version.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(path, f"not JSON ({error}); run the comparison again") from error
    version = content.get("schema_version") if isinstance(content, dict) else None
    if version != SCHEMA_VERSION:
        raise DataError(path, f"schema_version is {version!r}, this program reads {SCHEMA_VERSION}")
    return content


def _method(method: MethodRuns) -> dict[str, Any]:
    values = {metric: method.values(metric) for metric in METRICS}
    return {
        **asdict(method),
        "means": {metric: sum(found) / len(found) if found else None for metric, found in values.items()},
        "convergence": None if method.convergence is None else asdict(method.convergence),
    }
