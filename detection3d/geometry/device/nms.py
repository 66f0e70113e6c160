"""Non-maximum suppression of rotated boxes on the device: the exact greedy result, without a loop over boxes."""

import torch
from torch import Tensor

from detection3d.geometry.device.iou import bev_iou_pairs, touching

_PAIRS_AT_ONCE = 1 << 20  # bounds the memory of the search for neighbours


def rotated_nms(boxes: Tensor, scores: Tensor, iou_threshold: float, groups: Tensor | None = None) -> Tensor:
    """Keep each box unless a better one that is kept overlaps it, seen from above, by more than `iou_threshold`.

    The time goes with the number of pairs within a group: take the best few hundred to 4096 boxes of each group before.

    Args:
        boxes: [M, 7].
        scores: [M], finite; of equal scores the lower index is better.
        iou_threshold: in [0, 1].
        groups: int64 [M], such as sample times classes plus class; boxes of different groups never suppress each other.
            None is one group.

    Returns:
        int64 indices of the kept boxes, in descending order of score over all groups.

    Raises:
        ValueError: the lengths differ, or the threshold lies outside [0, 1].
    """
    if not (len(boxes) == len(scores) and (groups is None or len(groups) == len(boxes))):
        sizes = f"{len(boxes)} boxes, {len(scores)} scores" + ("" if groups is None else f", {len(groups)} groups")
        raise ValueError(f"each box needs one score and one group, got {sizes}")
    if not 0.0 <= iou_threshold <= 1.0:
        raise ValueError(f"iou_threshold is {iou_threshold}; it must lie in [0, 1]")
    by_score = scores.sort(descending=True, stable=True).indices
    if groups is None:
        groups = torch.zeros_like(by_score)
    by_group = by_score[groups[by_score].sort(stable=True).indices]
    ordered = boxes[by_group].detach()
    better, worse = _overlapping_pairs(ordered, groups[by_group], iou_threshold)
    kept = torch.empty_like(by_group, dtype=torch.bool)
    kept[by_group] = _greedy(len(boxes), better, worse)
    return by_score[kept[by_score]]


def _overlapping_pairs(boxes: Tensor, groups: Tensor, iou_threshold: float) -> tuple[Tensor, Tensor]:
    """Return the pairs (i, j), i < j, of one group that overlap by more than the threshold.

    Args:
        boxes: [M, 7], sorted by group and then by descending score.
        groups: [M], ascending.
        iou_threshold: as above.
    """
    index = torch.arange(len(boxes), device=boxes.device)
    followers = torch.searchsorted(groups, groups, right=True) - index - 1  # those behind each box in its group
    ends = followers.cumsum(0)
    total = int(ends[-1]) if len(boxes) else 0
    found = [index.new_zeros(2, 0)]
    for begin in range(0, total, _PAIRS_AT_ONCE):
        # The pairs are numbered row by row; pair p belongs to the first row whose pairs end beyond p.
        pair = torch.arange(begin, min(begin + _PAIRS_AT_ONCE, total), device=boxes.device)
        first = torch.searchsorted(ends, pair, right=True)
        second = first + 1 + pair - (ends[first] - followers[first])
        close = touching(boxes[first, :5], boxes[second, :5])
        first, second = first[close], second[close]
        over = bev_iou_pairs(boxes[first], boxes[second]) > iou_threshold
        found.append(torch.stack((first[over], second[over])))
    better, worse = torch.cat(found, dim=1)
    return better, worse


def _greedy(count: int, better: Tensor, worse: Tensor) -> Tensor:
    """Return which boxes the greedy rule keeps, bool [count].

    "A box is kept if no kept better box overlaps it" has exactly one solution, since it refers to better boxes only.
    Applied over and over it settles from the best box down, in at most as many rounds as the longest chain of overlaps.
    """
    kept = torch.ones(count, dtype=torch.bool, device=better.device)
    while True:
        suppressors = torch.zeros(count, dtype=torch.int32, device=better.device)
        suppressors.index_add_(0, worse, kept[better].to(torch.int32))
        updated = suppressors == 0
        if torch.equal(updated, kept):
            return kept
        kept = updated
