"""How well the boxes at the objects' cells fit their objects: the IoU that quality is about, and the DIoU loss.

Both boxes stand relative to the middle of the object's cell, so that no digits go to the distance from the vehicle.
Nothing here waits for the device: all objects are taken, padding too.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from detection3d.geometry.device.iou import centre_penalty, iou_3d_pairs
from detection3d.model.boxes import box_of
from detection3d.types.tensors import Targets

PARTS = ("offset", "height", "size", "heading")
SHAPE = ("offset", "height", "size")
"""What an IoU loss may change: the heading comes from a head of its own, whose loss this is not."""


@dataclass(frozen=True)
class Overlap:
    """Of the box at each object's cell with the object; what isn't valid is as good as can be.

    Attributes:
        iou: float32 [B, M], in 3D.
        distance_iou: float32 [B, M], IoU less the penalty on the distance of the centres.
    """

    iou: Tensor
    distance_iou: Tensor


def measure_overlap(
    found: Mapping[str, Tensor], targets: Targets, cell: float, learning: Collection[str] = ()
) -> Overlap:
    """Compare the boxes.

    Args:
        found: what the heads say at the objects' cells, by output, [B, M, C].
        targets: of the same objects.
        cell: edge of a cell, metres.
        learning: outputs that gradients may flow into; all others are detached.
    """
    values = {name: found[name] if name in learning else found[name].detach() for name in PARTS}
    ours = _boxes(values, targets.valid, cell)
    theirs = _boxes({name: getattr(targets, name) for name in PARTS}, targets.valid, cell)
    iou = iou_3d_pairs(ours, theirs)
    shape = targets.valid.shape
    return Overlap(iou.view(shape), (iou - centre_penalty(ours, theirs)).view(shape))


def _boxes(values: Mapping[str, Tensor], valid: Tensor, cell: float) -> Tensor:
    """Return the boxes [B * M, 7]; in the place of what isn't valid, one that always is a box."""
    boxes = box_of(values, values["offset"] * cell)
    return torch.where(valid.unsqueeze(-1), boxes, 1.0).flatten(0, 1)
