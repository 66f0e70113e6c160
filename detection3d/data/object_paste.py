"""Objects of other frames put into a batch's samples, on the device that holds them.

After the sampling of SECOND (Yan et al., Sensors 2018): each object keeps the place, relative to the vehicle, at which
it was seen, so that its points suit its distance. One that would overlap another object is left out, and the scene's
own points inside the others are replaced.
"""

import itertools
from dataclasses import fields, replace

import torch
from torch import Tensor

from detection3d.geometry.device.boxes import points_in_boxes
from detection3d.geometry.device.iou import bev_iou_pairs
from detection3d.types.tensors import BoxLabels, Points

_REACH = 256.0  # metres, of a store's points
_CELL = 1.0  # metres


def paste_objects(
    points: Points, labels: BoxLabels, objects: Points, object_labels: BoxLabels, min_points: int = 1
) -> tuple[Points, BoxLabels]:
    """Add the candidates that find room to their samples.

    Waits for the device, as the number of points must be known afterwards.

    Args:
        points: N points of B samples.
        labels: [B, M], all their labelled objects.
        objects: points of the candidates; `batch_index` is the candidate's number, b * K + k.
        object_labels: [B, K], the candidates; of two that overlap, the earlier stays.
        min_points: candidates with fewer points are left out: points of a return that isn't wanted, say, are missing.

    Returns:
        New points, ascending by sample, and labels [B, M + K]; candidates without room have become padding.
    """
    counts = torch.bincount(objects.batch_index, minlength=object_labels.types.numel()).view_as(object_labels.types)
    types = torch.where(counts >= max(min_points, 1), object_labels.types, 0)
    object_labels = replace(object_labels, types=types, num_points=counts)
    kept = find_room(labels, object_labels)
    candidates = kept.shape[1]
    free = ~_inside_any(points, torch.where(kept[..., None], object_labels.boxes, 0.0))  # without size: holds no point
    wanted = kept.flatten()[objects.batch_index]
    values = torch.cat((points.values[free], objects.values[wanted]))
    sample = torch.cat((points.batch_index[free], objects.batch_index[wanted] // candidates))
    order = sample.argsort(stable=True)
    added = replace(object_labels, types=torch.where(kept, object_labels.types, 0))
    together = {
        field.name: torch.cat((getattr(labels, field.name), getattr(added, field.name)), dim=1)
        for field in fields(BoxLabels)
    }
    return Points(values=values[order], batch_index=sample[order]), BoxLabels(**together)


def find_room(labels: BoxLabels, candidates: BoxLabels) -> Tensor:
    """Tell which candidates overlap no object of their sample, and none that comes before them and stays.

    Args:
        labels: [B, M].
        candidates: [B, K].

    Returns:
        bool [B, K]; false for padding.
    """
    size, count = candidates.types.shape
    others = torch.cat((labels.boxes, candidates.boxes), dim=1)
    pairs = (size, count, others.shape[1], 7)
    first, second = candidates.boxes[:, :, None].expand(pairs), others[:, None].expand(pairs)
    # Padding has no area, so it overlaps nothing.
    overlap = bev_iou_pairs(first.reshape(-1, 7), second.reshape(-1, 7)).reshape(pairs[:3]) > 0
    with_labels, with_candidates = overlap.split((labels.types.shape[1], count), dim=2)
    kept = (candidates.types > 0) & ~with_labels.any(2)
    for number in range(1, count):
        blocked = (with_candidates[:, number, :number] & kept[:, :number]).any(1)
        kept[:, number] &= ~blocked
    return kept


def _inside_any(points: Points, boxes: Tensor) -> Tensor:
    """Tell which points lie in a box of their own sample, bool [N], given boxes [B, K, 7].

    Few points are near a box: a grid seen from above, whose cells say whether a box may reach into them, spares the
    others the comparison with every box.
    """
    edges = torch.arange(-_REACH, _REACH, _CELL, device=boxes.device)
    around = 0.5 * boxes[..., 3:5].norm(dim=-1) + 0.01 * _CELL  # the box's circle, and a hair for rounding
    low, high = boxes[..., :2] - around[..., None], boxes[..., :2] + around[..., None]
    reached = (edges + _CELL > low[..., None]) & (edges < high[..., None])  # [B, K, 2, cells]
    covered = torch.einsum("bkx,bky->bxy", reached[:, :, 0].float(), reached[:, :, 1].float()) > 0
    cell = torch.floor((points.values[:, :2] + _REACH) / _CELL).long()
    on_grid = ((cell >= 0) & (cell < len(edges))).all(1)
    x, y = cell.clamp(0, len(edges) - 1).unbind(1)
    near = (~on_grid | covered[points.batch_index, x, y]).nonzero()[:, 0]
    samples = torch.arange(len(boxes) + 1, device=boxes.device, dtype=points.batch_index.dtype)
    limits = torch.searchsorted(points.batch_index[near], samples).tolist()
    inside = torch.zeros(len(points.values), dtype=torch.bool, device=boxes.device)
    for sample, (start, end) in enumerate(itertools.pairwise(limits)):
        rows = near[start:end]
        inside[rows] = points_in_boxes(points.values[rows], boxes[sample]).any(1)
    return inside
