"""Whether a score means what it says: of the detections with score 0.7, 70 % should have found an object.

The expected calibration error follows Guo et al., ICML 2017 (arXiv 1706.04599), equation 3, with ten bins of equal
width; what is right is decided by the metrics' matching of all detections.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from detection3d.types.scene import BoolArray, Float32Array, Float64Array

BINS = 10


@dataclass(frozen=True)
class Calibration:
    """Scores against what became of them, in K bins of equal width; bin k holds scores in [k / K, (k + 1) / K).

    Attributes:
        counts: int64 [K], detections; a score of 1 belongs to the last bin.
        scores: float64 [K], their mean score; NaN in an empty bin.
        matched: float64 [K], the share of them that found an object; NaN likewise.
    """

    counts: npt.NDArray[np.int64]
    scores: Float64Array
    matched: Float64Array

    @property
    def error(self) -> float | None:
        """Expected calibration error: mean of |score - matched| over the bins, by count. None without detections."""
        total = self.counts.sum()
        if total == 0:
            return None
        filled = self.counts > 0
        return float((self.counts * np.abs(self.scores - self.matched))[filled].sum() / total)

    def to_json(self) -> dict[str, Any]:
        """Return plain values; null in empty bins."""
        return {
            "expected_calibration_error": self.error,
            "bins": [
                {"detections": int(count), "mean_score": float(score), "matched_share": float(share)}
                if count
                else {"detections": 0, "mean_score": None, "matched_share": None}
                for count, score, share in zip(self.counts, self.scores, self.matched, strict=True)
            ],
        }


def calibrate(scores: Float32Array, matched: BoolArray, bins: int = BINS) -> Calibration:
    """Sort detections into bins by score.

    Args:
        scores: float32 [D], in [0, 1]. Detections that aren't judged (unmatched in a no-label zone) are left out by the
            caller.
        matched: bool [D], which of them found an object.
        bins: their number, K.
    """
    # In float32, as the cutoffs are: 0.7 in float32 is below 0.7 in float64, and would fall a bin too low.
    edges = (np.arange(1, bins) / bins).astype(np.float32)
    place = np.searchsorted(edges, scores.astype(np.float32), side="right")
    counts = np.bincount(place, minlength=bins).astype(np.int64)
    with np.errstate(invalid="ignore"):
        mean_score = np.bincount(place, scores.astype(np.float64), bins) / counts
        share = np.bincount(place, matched.astype(np.float64), bins) / counts
    return Calibration(counts, mean_score, share)
