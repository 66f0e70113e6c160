"""What heads say at cells, for tests."""

import torch

from detection3d.config import Config
from detection3d.model.boxes import boxes_at
from detection3d.model.layout import head_layout
from detection3d.types.tensors import HeadOutputs


def box_at(outputs: HeadOutputs, cells: torch.Tensor, config: Config) -> torch.Tensor:
    layout = head_layout(config)
    return boxes_at(layout.split(layout.at_cells(outputs, cells)), cells, config)
