"""One loss for each task: pure functions of outputs and targets, normalised by the number of objects everywhere."""

import torch
from torch import Tensor
from torch.nn import functional as F

from detection3d.config import LossConfig
from detection3d.types.tensors import HeadOutputs, Targets, TaskLosses

FOCAL_POWER = 2  # alpha and beta of CornerNet's focal loss, as in CenterPoint
PENALTY_POWER = 4


def compute_losses(outputs: HeadOutputs, targets: Targets, config: LossConfig) -> TaskLosses:
    """Compare the heads with the targets.

    Args:
        outputs: maps of [B, *, H, W], any floating dtype.
        targets: on the same device.
        config: weights of the tasks.

    Returns:
        Three float32 scalars; each depends on its own head's map alone.
    """
    return TaskLosses(
        classification=config.classification_weight
        * (focal_loss(outputs.heatmap, targets.heatmap) / targets.global_count),
        box=config.box_weight * _l1(outputs.box, targets.box, targets),
        orientation=config.orientation_weight * _l1(outputs.orientation, targets.orientation, targets),
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


def _l1(output: Tensor, target: Tensor, targets: Targets) -> Tensor:
    difference = (gather_cells(output.float(), targets.cell) - target).abs().sum(dim=-1)
    return torch.where(targets.valid, difference, 0.0).sum() / targets.global_count


def gather_cells(values: Tensor, cell: Tensor) -> Tensor:
    """Pick the cells of objects: [B, C, H, W] and int64 [B, M] to [B, M, C]."""
    index = cell.unsqueeze(1).expand(-1, values.shape[1], -1)
    return values.flatten(2).gather(2, index).transpose(1, 2)
