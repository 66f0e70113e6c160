"""What an evaluation on a prepared store was given, as far as counts of boxes don't tell, in words for the report."""

import hashlib
import json
from collections.abc import Sequence

import numpy as np

from detection3d.config import Config
from detection3d.config_file import dump_config
from detection3d.data import store_manifest
from detection3d.data.store import Store, read_manifest
from detection3d.evaluation.ground_truth import GroundTruth
from detection3d.types.scene import ObjectType


def data_facts(store: Store, config: Config, truth: Sequence[GroundTruth]) -> dict[str, str]:
    """Say which data were evaluated, what was left out of them, and what the detector saw.

    Args:
        store: the evaluated frames.
        config: of the evaluation.
        truth: the frames' ground truth.
    """
    settings = store.settings
    left_out = len(read_manifest(store.root).left_out)
    return {
        "Data": str(store.root),
        "Prepared with": settings.describe().replace("--", ""),
        "Sources left out at preparation": f"{left_out}" + (": see manifest.json of the data" if left_out else ""),
        "Labels left out for lack of lidar points": _counted(_without_points(store)),
        "Objects outside the model's range": _outside(truth, config),
        "Lidar returns used": ", ".join(map(str, config.data.returns)),
        "Sweeps merged": str(config.data.sweeps),
        "Points in no-label zones": "left out" if config.data.drop_no_label_zone_points else "kept",
        "Detections kept": f"score of at least {config.decode.score_threshold:g},"
        f" at most {config.decode.max_detections} a frame",
    }


def config_hash(config: Config) -> str:
    """Return the SHA-256 of the resolved config."""
    return hashlib.sha256(dump_config(config).encode()).hexdigest()


def data_hash(store: Store) -> str:
    """Return the SHA-256 of what the store's manifest says of its contents, the checksums of all its files among it.

    Whence they came is left out: frames that were made or downloaded again have other times, and are the same.
    """
    manifest = json.loads((store.root / store_manifest.MANIFEST).read_bytes())
    for segment in manifest["segments"]:
        segment.pop("source")
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _without_points(store: Store) -> np.ndarray:
    counts = np.zeros(len(ObjectType), np.int64)
    for index in range(len(store)):
        labels = store.labels(index)
        if labels is not None:
            counts += np.bincount(labels.types[labels.num_points <= 0], minlength=len(ObjectType))
    return counts


def _outside(truth: Sequence[GroundTruth], config: Config) -> str:
    low, high = np.array(config.model.point_range, np.float32).reshape(2, 3)[:, :2]
    counts = np.zeros(len(ObjectType), np.int64)
    for item in truth:
        centres = item.boxes[:, :2]
        outside = ((centres < low) | (centres >= high)).any(axis=1)
        counts += np.bincount(item.types[outside], minlength=len(ObjectType))
    span = f"x {low[0]:g} to {high[0]:g} m, y {low[1]:g} to {high[1]:g} m"
    return f"{_counted(counts)}; the range is {span}" + (
        ". The metrics expect them all the same" if counts.any() else ""
    )


def _counted(counts: np.ndarray) -> str:
    named = [f"{counts[kind]:,} {kind.name.lower()}" for kind in ObjectType if counts[kind]]
    return ", ".join(named) if named else "none"
