"""From the heads' maps to boxes: the best cells of each frame, then rotated non-maximum suppression by class."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import max_pool2d

from detection3d.config import Config, DecodeConfig
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
        velocity: float32 [D, 2], m/s, vehicle-frame axes; None where no head predicts it.
    """

    boxes: Tensor
    scores: Tensor
    classes: Tensor
    samples: Tensor
    velocity: Tensor | None = None

    def at(self, index: Tensor) -> "Decoded":
        """Return the boxes at an index, or where a mask is true."""
        velocity = None if self.velocity is None else self.velocity[index]
        return Decoded(self.boxes[index], self.scores[index], self.classes[index], self.samples[index], velocity)


@torch.no_grad()
def decode(outputs: HeadOutputs, config: Config) -> Decoded:
    """Turn the maps into boxes.

    Args:
        outputs: maps of [B, *, H, W].
        config: thresholds, classes and the grid.
    """
    found = _candidates(outputs, config)
    kept = [
        index[rotated_nms(found.boxes[index], found.scores[index], item.nms_iou, groups=found.samples[index])]
        for number, item in enumerate(config.classes)
        for index in [(found.classes == number).nonzero().squeeze(1)]
    ]
    return found.at(_best_of_each_sample(torch.cat(kept), found.scores, found.samples, config.decode.max_detections))


def _candidates(outputs: HeadOutputs, config: Config) -> Decoded:
    """Return the boxes of the best (class, cell) pairs of each sample that reach the threshold."""
    layout = head_layout(config)
    class_scores, classes, cells = _best_cells(layout.map_of(outputs, "heatmap"), config.decode)
    values = layout.split(layout.at_cells(outputs, cells))
    samples = torch.arange(len(cells), device=cells.device).unsqueeze(1).expand_as(cells)
    scores = _rectified(class_scores, classes, values, config)
    # A score that isn't a number passes, so that whoever takes the boxes meets it; the frame would look empty else.
    chosen = ~(class_scores < config.decode.score_threshold)
    return Decoded(boxes_at(values, cells, config), scores, classes, samples, values.get("velocity")).at(chosen)


def to_detections(decoded: Decoded, keys: tuple[tuple[str, int], ...], config: Config) -> list[Detections]:
    """Copy to the host, one `Detections` a frame; the no-label-zone flag is left false for the caller to set."""
    boxes = decoded.boxes.cpu().numpy().astype(np.float32)
    scores = decoded.scores.cpu().numpy().astype(np.float32)
    samples = decoded.samples.cpu().numpy()
    velocity = None if decoded.velocity is None else decoded.velocity.cpu().numpy().astype(np.float32)
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
                velocity=None if velocity is None else velocity[mine],
            )
        )
    return found


def _best_cells(heatmap: Tensor, config: DecodeConfig) -> tuple[Tensor, Tensor, Tensor]:
    """Return scores, classes and cells of the best (class, cell) pairs of each sample, each [B, max_peaks]."""
    cells = heatmap.shape[2] * heatmap.shape[3]
    scores = torch.sigmoid(heatmap.float())
    if config.local_maxima:
        surpassed = max_pool2d(scores, 3, stride=1, padding=1) > scores  # never true of what isn't a number
        scores = torch.where(surpassed, 0.0, scores)
    scores = scores.flatten(1)
    best, index = scores.topk(min(config.max_peaks, scores.shape[1]), dim=1)
    return best, torch.div(index, cells, rounding_mode="floor"), index % cells


def _rectified(scores: Tensor, classes: Tensor, values: Mapping[str, Tensor], config: Config) -> Tensor:
    """Return score^(1 - a) * IoU^a with the IoU that the cell's quality tells and the a of the class, [B, D] each.

    A box that overlaps its object badly is no detection whatever its class score, so that the order of the boxes, in
    suppression and in the metric, should know both (CIA-SSD: Zheng et al., AAAI 2021).
    """
    exponents = [item.quality_exponent for item in config.classes]
    if not any(exponents):
        return scores
    overlap = ((values["quality"].squeeze(-1) + 1) / 2).clamp(0, 1)
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
