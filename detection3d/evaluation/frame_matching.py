"""Which detection of a frame found which object, by the metrics' own matcher.

The metrics match anew at a hundred score cutoffs and keep counts alone. What looks at single boxes, such as pictures
and errors, needs the pairs at one cutoff.
"""

import numpy as np

from detection3d.evaluation.breakdowns import EVALUATED_TYPES
from detection3d.evaluation.ground_truth import GroundTruth
from detection3d.evaluation.matching import IndexArray, match_subset
from detection3d.evaluation.metrics import MetricConfig
from detection3d.types.scene import Detections, Float32Array


def match_frame(
    detections: Detections, truth: GroundTruth, overlaps: Float32Array, config: MetricConfig, cutoff: float = 0.0
) -> IndexArray:
    """Match the detections of a frame that have at least a score.

    Args:
        detections: D of them.
        truth: the objects of the same frame, M of them.
        overlaps: float32 [D, M], from `type_overlaps`.
        config: for the least overlap of a match.
        cutoff: the least score.

    Returns:
        int64 [D]: the object that each detection found, -1 for none. The same pairs as the breakdown OBJECT_TYPE
        counts at this cutoff; objects of every level take part.
    """
    found = np.full(len(detections.boxes), -1, np.int64)
    taking_part = detections.scores >= np.float32(cutoff)
    for kind in map(int, EVALUATED_TYPES):  # comparing an array with a member of an enum takes five times as long
        rows = np.flatnonzero(taking_part & (detections.types == kind))
        columns = np.flatnonzero(truth.types == kind)
        if len(rows) and len(columns):
            partners = match_subset(overlaps, rows, columns, np.float32(config.iou_thresholds[kind]))
            matched = partners >= 0
            found[rows[matched]] = columns[partners[matched]]
    return found
