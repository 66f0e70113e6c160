"""One loss for each task: pure functions of outputs and targets, normalised by the number of objects everywhere."""

from collections.abc import Mapping
from functools import reduce
from itertools import groupby
from operator import add

import torch
from torch import Tensor
from torch.nn import functional as F

from detection3d.config import Config
from detection3d.model.layout import head_layout
from detection3d.model.overlap import PARTS, SHAPE, Overlap, measure_overlap
from detection3d.model.targets import BevGrid
from detection3d.types.tensors import HeadOutputs, Targets, TaskLosses

FOCAL_POWER = 2  # alpha and beta of CornerNet's focal loss, as in CenterPoint
PENALTY_POWER = 4


def compute_losses(outputs: HeadOutputs, targets: Targets, config: Config) -> TaskLosses:
    """Compare the heads with the targets.

    Args:
        outputs: maps of [B, *, H, W], any floating dtype.
        targets: on the same device.
        config: which head predicts what, and the weights.

    Returns:
        Three float32 scalars; each depends on its own head's map alone.
    """
    layout = head_layout(config)
    values = layout.at_cells(outputs, targets.cell)
    found = layout.split(values)
    overlap = _overlap_if_used(found, targets, config)

    def of_task(task: str) -> Tensor:
        names, terms = layout.outputs[task], []
        if "heatmap" in names:
            terms.append(focal_loss(layout.map_of(outputs, "heatmap"), targets.heatmap) / targets.global_count)
        for is_part, run in groupby(names, PARTS.__contains__):
            if is_part:  # those side by side among the channels are compared as one
                parts = tuple(run)
                together = slice(layout.channels[parts[0]].start, layout.channels[parts[-1]].stop)
                wanted = torch.cat([getattr(targets, name) for name in parts], dim=-1)
                terms.append(_l1(values[task][..., together], wanted, targets))
        if "velocity" in names:
            terms.append(config.loss.velocity_weight * _l1(found["velocity"], targets.velocity, targets))
        if overlap is not None and "quality" in names:
            wanted = 2 * overlap.iou.detach().unsqueeze(-1) - 1
            terms.append(config.loss.quality_weight * _l1(found["quality"], wanted, targets))
        if overlap is not None and task == "box" and config.loss.iou_weight > 0:
            terms.append(config.loss.iou_weight * _mean(1 - overlap.distance_iou, targets))
        return reduce(add, terms)

    weights = config.loss
    return TaskLosses(
        classification=weights.classification_weight * of_task("classification"),
        box=weights.box_weight * of_task("box"),
        orientation=weights.orientation_weight * of_task("orientation"),
    )


def focal_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Return the penalty-reduced focal loss, summed (Law and Deng, ECCV 2018, eq. 1).

    From logits and in float32: a clamped sigmoid reaches exactly 1 in half precision, and its logarithm is not finite.

    Args:
        logits: any shape.
        target: as large, in [0, 1]; 1 exactly at object centres.
    """
    logits = logits.float()
    probability = torch.sigmoid(logits)
    positive = (1 - probability) ** FOCAL_POWER * F.logsigmoid(logits)
    negative = (1 - target) ** PENALTY_POWER * probability**FOCAL_POWER * F.logsigmoid(-logits)
    return -torch.where(target == 1, positive, negative).sum()


def _overlap_if_used(found: Mapping[str, Tensor], targets: Targets, config: Config) -> Overlap | None:
    heads, weights = config.model.heads, config.loss
    learning = set(SHAPE) & set(heads.box) if weights.iou_weight > 0 else set()
    if not learning and not heads.predict("quality"):
        return None
    return measure_overlap(found, targets, BevGrid(config).cell, learning)


def _l1(found: Tensor, wanted: Tensor, targets: Targets) -> Tensor:
    return _mean((found - wanted).abs().sum(dim=-1), targets)


def _mean(values: Tensor, targets: Targets) -> Tensor:
    """Sum over the objects [B, M], divided by their number over all ranks."""
    return torch.where(targets.valid, values, 0.0).sum() / targets.global_count
