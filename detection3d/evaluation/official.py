"""Waymo's own metrics op behind the interface of ours, as the referee. It alone needs TensorFlow.

The op works in the evaluation environment (docker/evaluation_environment.sh), where this module is imported by the
interpreter of that environment. Preparation of the ground truth, no-label zones and the order of frames are the
caller's there, too, and are the same as for the native metrics.
"""

import os
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from detection3d.errors import UserError
from detection3d.evaluation.average_precision import PrecisionRecallCurve
from detection3d.evaluation.frame_block import FrameBlock
from detection3d.evaluation.ground_truth import GroundTruth
from detection3d.evaluation.inputs import pair_frames
from detection3d.evaluation.metric_config import MetricConfig
from detection3d.evaluation.metric_config_text import message_of_config
from detection3d.evaluation.metrics import Metrics, assemble, numbers_of_boxes
from detection3d.types.scene import Detections, ObjectType

_ADVICE = (
    "the official backend needs TensorFlow and Waymo's package, which need an environment of their own: build it with "
    "`make evaluation-env` and run this tool with .evaluation-env/bin/python, or use the image of "
    "docker/evaluate.Dockerfile; --backend native gives the same numbers here"
)


def evaluate_officially(
    predictions: Sequence[Detections], ground_truth: Sequence[GroundTruth], config: MetricConfig | None = None
) -> Metrics:
    """Measure detections against ground truth with Waymo's op.

    Args:
        predictions: at most one for each frame.
        ground_truth: likewise, from `prepare_ground_truth`.
        config: None takes the official configuration.

    Returns:
        As `evaluate` does. AP, APH, the curves and the counts in them are the op's; it gives counts as float32, which
        is exact up to 16,777,216.

    Raises:
        UserError: the op isn't installed, a frame occurs twice on one side or has numbers that can't be evaluated, or
            detections of type UNKNOWN or certain boxes that aren't finite take part, on which the op ends the process.
    """
    config = MetricConfig() if config is None else config
    pairs = pair_frames(predictions, ground_truth)
    block = FrameBlock.of(pairs)
    _refuse_what_ends_the_process(block, config)
    tensorflow, ops = _import_op()
    velocity = np.nan_to_num(block.truth_velocity[:, :2], nan=0.0)
    results = ops.detection_metrics(
        prediction_bbox=tensorflow.constant(block.prediction_boxes),
        prediction_type=tensorflow.constant(block.prediction_types),
        prediction_score=tensorflow.constant(block.scores),
        prediction_frame_id=tensorflow.constant(_frame_ids(block.prediction_ends)),
        prediction_overlap_nlz=tensorflow.constant(block.in_no_label_zone),
        ground_truth_bbox=tensorflow.constant(block.truth_boxes),
        ground_truth_type=tensorflow.constant(block.truth_types),
        ground_truth_frame_id=tensorflow.constant(_frame_ids(block.truth_ends)),
        ground_truth_difficulty=tensorflow.constant(block.truth_levels),
        ground_truth_speed=tensorflow.constant(velocity),
        config=message_of_config(config).SerializeToString(),
    )
    ap, aph, _, curves, heading_curves, *_ = (result.numpy() for result in results)
    cutoffs = config.cutoffs_for(block.scores)
    of_breakdowns: list[list[PrecisionRecallCurve]] = []
    row = 0
    for index, split in enumerate(config.breakdowns):
        count = len(split.shards) * len(config.levels_of(index))
        of_breakdowns.append([_curve(cutoffs, curves[k], heading_curves[k]) for k in range(row, row + count)])
        row += count
    numbers = [numbers_of_boxes(pairs, split) for split in config.breakdowns]
    return assemble(config, of_breakdowns, numbers, len(pairs), areas=list(zip(ap, aph, strict=True)))


def official_versions() -> dict[str, str]:
    """Return the versions of what the official backend computes with; raises UserError where it isn't installed."""
    from importlib.metadata import version

    tensorflow, _ = _import_op()
    return {"tensorflow": tensorflow.__version__, "waymo_open_dataset": version("waymo-open-dataset-tf-2-12-0")}


def _import_op() -> tuple[Any, ModuleType]:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # its greetings and warnings are no result
    try:
        import tensorflow  # pyright: ignore[reportMissingModuleSource]
        from waymo_open_dataset.metrics.ops import py_metrics_ops  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UserError(f"{error}; {_ADVICE}") from error
    except Exception as error:  # a shared object that doesn't fit raises TensorFlow's own kind
        raise UserError(f"Waymo's op can't be loaded ({type(error).__name__}: {error}); {_ADVICE}") from error
    return tensorflow, py_metrics_ops


def _refuse_what_ends_the_process(block: FrameBlock, config: MetricConfig) -> None:
    """Refuse what Waymo's program aborts on, such as detections of type UNKNOWN; no Python error could be caught."""
    unknown = np.flatnonzero(block.prediction_types == ObjectType.UNKNOWN)
    for split in config.breakdowns:
        if (block.prediction_pools(split)[unknown] >= 0).any():
            raise UserError(
                f"{len(unknown)} detections are of type UNKNOWN, and {split.name} puts them into a shard, on which "
                "the official program ends; give them a type or leave the breakdown out"
            )
    # Found by trying: of objects it takes single infinite numbers, but for the heading, and z with a detection's.
    detections, objects = block.prediction_boxes, block.truth_boxes
    infinite = np.isinf(objects)
    refused = np.isnan(objects).any(axis=1) | infinite[:, 6] | (infinite.sum(axis=1) > 1)
    if np.isinf(detections[:, 2]).any():
        refused |= infinite[:, 2]
    ending = int(np.isnan(detections[:, 2:6]).any(axis=1).sum()) + int(refused.sum())
    if ending:
        raise UserError(
            f"{ending} boxes hold NaN or infinite numbers on which the official program ends; leave them out, or use "
            "--backend native, for which they overlap nothing"
        )


def _frame_ids(ends: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    return np.repeat(np.arange(len(ends), dtype=np.int64), np.diff(ends, prepend=0))


def _curve(cutoffs: np.ndarray, curve: np.ndarray, heading_curve: np.ndarray) -> PrecisionRecallCurve:
    precision, recall, *counts = curve.T
    true_positives, false_positives, false_negatives = (values.astype(np.int64) for values in counts)
    return PrecisionRecallCurve(
        score_cutoffs=cutoffs,
        true_positives=true_positives,
        false_positives=false_positives,
        false_negatives=false_negatives,
        precision=precision.copy(),
        heading_precision=heading_curve[:, 0].copy(),
        recall=recall.copy(),
    )
