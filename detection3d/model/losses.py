"""One loss for each task: pure functions of outputs and targets, normalised by the number of objects everywhere."""

from functools import reduce
from operator import add

import torch
from torch import Tensor
from torch.nn import functional as F

from detection3d.config import Config
from detection3d.model.layout import head_layout
from detection3d.types.tensors import HeadOutputs, Targets, TaskLosses

FOCAL_POWER = 2  # alpha and beta of CornerNet's focal loss, as in CenterPoint
PENALTY_POWER = 4
DESCRIBING = ("offset", "height", "size", "heading")  # outputs that make up the box, learnt with L1


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
    found = layout.at_cells(outputs, targets.cell)

    def of_task(task: str) -> Tensor:
        names, terms = layout.outputs[task], []
        if "heatmap" in names:
            terms.append(focal_loss(layout.map_of(outputs, "heatmap"), targets.heatmap) / targets.global_count)
        describing = [name for name in names if name in DESCRIBING]
        if describing:
            wanted = torch.cat([getattr(targets, name) for name in describing], dim=-1)
            terms.append(_l1(torch.cat([found[name] for name in describing], dim=-1), wanted, targets))
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


def _l1(found: Tensor, wanted: Tensor, targets: Targets) -> Tensor:
    return _mean((found - wanted).abs().sum(dim=-1), targets)


def _mean(values: Tensor, targets: Targets) -> Tensor:
    """Sum over the objects [B, M], divided by their number over all ranks."""
    return torch.where(targets.valid, values, 0.0).sum() / targets.global_count
