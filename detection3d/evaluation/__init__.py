"""Waymo's detection metrics, the files they are read from and written to, and the report.

It needs neither torch nor TensorFlow. `detection3d.evaluation.reporting` is imported on its own: it loads matplotlib.
"""

from detection3d.evaluation.ground_truth import GroundTruth, ground_truth_of_frames, prepare_ground_truth
from detection3d.evaluation.metrics import MetricConfig, MetricRow, Metrics, evaluate
from detection3d.evaluation.no_label_zone import overlaps_no_label_zone, overlaps_zone_outline

__all__ = [
    "GroundTruth",
    "MetricConfig",
    "MetricRow",
    "Metrics",
    "evaluate",
    "ground_truth_of_frames",
    "overlaps_no_label_zone",
    "overlaps_zone_outline",
    "prepare_ground_truth",
]
