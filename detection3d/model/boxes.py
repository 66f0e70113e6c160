"""Boxes from what the heads say at cells."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from detection3d.config import Config
from detection3d.model.targets import BevGrid

LARGEST_LOG_SIZE = 5.0  # e^5 = 148 m: an untrained head must not overflow


def boxes_at(values: Mapping[str, Tensor], cells: Tensor, config: Config) -> Tensor:
    """Return the boxes that the heads describe at cells, float32 [B, M, 7].

    Args:
        values: what they say there, by output, [B, M, C]; see `HeadLayout.at_cells`.
        cells: int64 [B, M], y * W + x.
        config: the grid.
    """
    grid = BevGrid(config)
    corner = torch.stack([cells % grid.width, torch.div(cells, grid.width, rounding_mode="floor")], dim=-1)
    return box_of(values, grid.to_metres(corner + 0.5 + values["offset"]))


def box_of(values: Mapping[str, Tensor], centre: Tensor) -> Tensor:
    """Put a box together.

    Args:
        values: `height`, `size` and `heading` as in `HeadOutputs`, [..., C] each.
        centre: x and y, metres, [..., 2].

    Returns:
        [..., 7].
    """
    size = torch.exp(values["size"].clamp(max=LARGEST_LOG_SIZE))
    sine, cosine = values["heading"].unbind(-1)
    heading = torch.atan2(sine, cosine).unsqueeze(-1)
    heading = torch.where(heading >= math.pi, -math.pi, heading)  # atan2 gives both ends, headings have one
    return torch.cat([centre, values["height"], size, heading], dim=-1)
