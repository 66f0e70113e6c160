"""From the heads' maps to boxes: the best cells of each frame, then rotated non-maximum suppression by class."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from detection3d.config import Config
from detection3d.geometry.device.nms import rotated_nms
from detection3d.model.boxes import boxes_at
from detection3d.model.layout import head_layout
from detection3d.types.scene import Detections
from detection3d.types.tensors import HeadOutputs


@dataclass(frozen=True)
class Decoded:
    """Boxes of a batch, D in all, on the device.

    Attributes:
        boxes: float32 [D, 7], vehicle frame.
        scores: float32 [D], in descending order within a sample; where the config says so, made of the class score and
            the quality.
        classes: int64 [D], index into the config's classes.
        samples: int64 [D], index into the batch, ascending.
    """

    boxes: Tensor
    scores: Tensor
    classes: Tensor
    samples: Tensor


@torch.no_grad()
def decode(outputs: HeadOutputs, config: Config) -> Decoded:
    """Turn the maps into boxes.

    Args:
        outputs: maps of [B, *, H, W].
        config: thresholds, classes and the grid.
    """
    heatmap = head_layout(config).map_of(outputs, "heatmap")
    scores, classes, cells = _best_cells(heatmap, config.decode.max_peaks)
    boxes = boxes_at(outputs, cells, config)
    samples = torch.arange(len(scores), device=scores.device).unsqueeze(1).expand_as(scores)
    # A score that isn't a number passes, so that whoever takes the boxes meets it; the frame would look empty else.
    chosen = ~(scores < config.decode.score_threshold)
    scores = _rectified(scores, classes, cells, outputs, config)
    boxes, scores, classes, samples = boxes[chosen], scores[chosen], classes[chosen], samples[chosen]
    kept = [
        index[rotated_nms(boxes[index], scores[index], item.nms_iou, groups=samples[index])]
        for number, item in enumerate(config.classes)
        for index in [(classes == number).nonzero().squeeze(1)]
    ]
    order = _best_of_each_sample(torch.cat(kept), scores, samples, config.decode.max_detections)
    return Decoded(boxes[order], scores[order], classes[order], samples[order])


def to_detections(decoded: Decoded, keys: tuple[tuple[str, int], ...], config: Config) -> list[Detections]:
    """Copy to the host, one `Detections` a frame; the no-label-zone flag is left false for the caller to set."""
    boxes = decoded.boxes.cpu().numpy().astype(np.float32)
    scores = decoded.scores.cpu().numpy().astype(np.float32)
    samples = decoded.samples.cpu().numpy()
    types = np.array([item.types[0] for item in config.classes], np.uint8)[decoded.classes.cpu().numpy()]
    found = []
    for sample, (context_name, timestamp) in enumerate(keys):
        mine = samples == sample
        found.append(
            Detections(
                context_name=context_name,
                timestamp_micros=timestamp,
                boxes=boxes[mine],
                types=types[mine],
                scores=scores[mine],
                overlaps_no_label_zone=np.zeros(int(mine.sum()), np.bool_),
            )
        )
    return found


def _best_cells(heatmap: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return scores, classes and cells of the best (class, cell) pairs of each sample, each [B, count]."""
    cells = heatmap.shape[2] * heatmap.shape[3]
    scores = torch.sigmoid(heatmap.float()).flatten(1)
    best, index = scores.topk(min(count, scores.shape[1]), dim=1)
    return best, torch.div(index, cells, rounding_mode="floor"), index % cells


def _rectified(scores: Tensor, classes: Tensor, cells: Tensor, outputs: HeadOutputs, config: Config) -> Tensor:
    """Return score^(1 - a) * IoU^a with the IoU that the cell's quality tells and the a of the class, [B, D] each.

    A box that overlaps its object badly is no detection whatever its class score, so that the order of the boxes, in
    suppression and in the metric, should know both (CIA-SSD: Zheng et al., AAAI 2021).
    """
    exponents = [item.quality_exponent for item in config.classes]
    if not any(exponents):
        return scores
    layout = head_layout(config)
    quality = layout.split(layout.at_cells(outputs, cells))["quality"].squeeze(-1)
    overlap = ((quality + 1) / 2).clamp(0, 1)
    exponent = torch.tensor(exponents, device=scores.device)[classes]
    return scores ** (1 - exponent) * overlap**exponent


def _best_of_each_sample(kept: Tensor, scores: Tensor, samples: Tensor, limit: int) -> Tensor:
    """Order by sample, then score; keep the first `limit` of each sample."""
    kept = kept[scores[kept].argsort(descending=True, stable=True)]
    kept = kept[samples[kept].argsort(stable=True)]
    owner = samples[kept]
    first = torch.searchsorted(owner, owner)  # where each row's sample begins
    rank = torch.arange(len(kept), device=kept.device) - first
    return kept[rank < limit]
