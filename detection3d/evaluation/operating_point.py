"""The score at which a person would use the detector, for what needs one score and not a hundred."""

import numpy as np

from detection3d.evaluation.files.metrics_json import MEAN_TYPES
from detection3d.evaluation.metrics import Metrics

DEFAULT_CUTOFF = 0.3  # where there is no ground truth to choose one by


def best_cutoff(metrics: Metrics) -> float:
    """Return the score cutoff with the best F1 over vehicles, pedestrians and cyclists at the hardest level.

    Args:
        metrics: the result of `evaluate`, with the OBJECT_TYPE breakdown.

    Returns:
        The lowest such cutoff; 0.3 where nothing was found.
    """
    found = _best_f1(metrics)
    return DEFAULT_CUTOFF if found is None else found


def is_best_known(metrics: Metrics) -> bool:
    """Return whether anything was found, so that some cutoff has the best F1."""
    return _best_f1(metrics) is not None


def _best_f1(metrics: Metrics) -> float | None:
    rows = [row for row in metrics.rows if row.breakdown == "OBJECT_TYPE" and row.shard.object_type in MEAN_TYPES]
    hardest = max((row.level for row in rows), default=0)
    curves = [row.curve for row in rows if row.level == hardest and row.ground_truth]
    if not curves:
        return None
    found = np.sum([curve.true_positives for curve in curves], axis=0)
    wrong = np.sum([curve.false_positives + curve.false_negatives for curve in curves], axis=0)
    if not found.any():
        return None
    best = np.argmax(2 * found / np.maximum(2 * found + wrong, 1))
    return float(curves[0].score_cutoffs[best])
