"""What the heads should say: Gaussians at object centres, and each object's box at its cell.

Targets of CenterPoint (Yin et al., CVPR 2021), drawn for all objects of a batch at once on the device.
"""

from functools import lru_cache

import torch
from torch import Tensor

from detection3d.config import ClassConfig, Config
from detection3d.types.scene import ObjectType
from detection3d.types.tensors import BoxLabels, Targets

LARGEST_RADIUS = 12  # cells; the window that each Gaussian is drawn in
MIN_SIZE = 0.01  # metres, below which a labelled size has no logarithm worth learning


def build_targets(labels: BoxLabels, config: Config) -> Targets:
    """Turn labelled boxes into targets.

    Args:
        labels: M boxes of each of B samples, vehicle frame.
        config: classes, range, voxel size and the shape of the Gaussians.

    Returns:
        Targets on the device of the labels. `global_count` counts this process's objects.
    """
    grid = BevGrid(config)
    classes = class_of_type(config.classes, labels.types.device)[labels.types]
    position = grid.to_cells(labels.boxes[..., :2])
    cell = torch.floor(position)
    column, row = cell.unbind(-1)
    inside = (column >= 0) & (column < grid.width) & (row >= 0) & (row < grid.height)
    valid = (classes >= 0) & inside & (labels.num_points >= config.loss.min_points)
    column, row = torch.where(valid.unsqueeze(-1), cell, 0.0).to(torch.int64).unbind(-1)

    size = labels.boxes[..., 3:6].clamp(min=MIN_SIZE)
    heading = labels.boxes[..., 6]
    radius = gaussian_radius(size[..., 0] / grid.cell, size[..., 1] / grid.cell, config.loss.min_overlap)
    radius = torch.floor(radius).clamp(min=config.loss.min_radius, max=LARGEST_RADIUS)
    heatmap = draw_gaussians(column, row, radius, classes, valid, shape=(len(config.classes), grid.height, grid.width))

    def masked(values: Tensor) -> Tensor:
        return torch.where(valid.unsqueeze(-1), values, 0.0)

    return Targets(
        heatmap=heatmap,
        cell=row * grid.width + column,
        valid=valid,
        offset=masked(position - cell - 0.5),
        height=masked(labels.boxes[..., 2:3]),
        size=masked(torch.log(size)),
        heading=masked(torch.stack([torch.sin(heading), torch.cos(heading)], dim=-1)),
        velocity=masked(labels.velocity),
        global_count=valid.sum().clamp(min=1).to(torch.float32),
    )


class BevGrid:
    """The heads' grid on the ground.

    Attributes:
        height: rows H, along y.
        width: columns W, along x.
        cell: edge of a cell, metres; cells are square.
        low: x and y of the grid's corner, metres, vehicle frame.
    """

    def __init__(self, config: Config) -> None:
        model = config.model
        self.height, self.width = model.bev_size
        self.cell = model.voxel_size[0] * model.stride
        self.low = model.point_range[:2]

    def to_cells(self, xy: Tensor) -> Tensor:
        """Metres [..., 2] (x, y) to cells; the whole part is the column or row."""
        # Number by number: a tensor of them would have to be copied to the device, and the step would wait for it.
        x, y = xy.unbind(-1)
        return torch.stack([x - self.low[0], y - self.low[1]], dim=-1) / self.cell

    def to_metres(self, position: Tensor) -> Tensor:
        """Undo `to_cells`."""
        x, y = (position * self.cell).unbind(-1)
        return torch.stack([x + self.low[0], y + self.low[1]], dim=-1)


@lru_cache(maxsize=16)
def class_of_type(classes: tuple[ClassConfig, ...], device: torch.device) -> Tensor:
    """Return int64 [5]: the class of each `ObjectType`, -1 for types that the detector does not find.

    Kept from one call to the next, so that no step waits for the copy to the device.
    """
    numbers = [-1] * len(ObjectType)
    for index, item in enumerate(classes):
        for object_type in item.types:
            numbers[object_type] = index
    return torch.tensor(numbers, device=device)


def gaussian_radius(length: Tensor, width: Tensor, min_overlap: float) -> Tensor:
    """Return how far a box may move, in cells, and still overlap its old place by `min_overlap`.

    CenterPoint's rule, inherited from CornerNet (Law and Deng, ECCV 2018): the smallest of three cases, each the root
    as CornerNet's first code took it, (b + sqrt(b^2 - 4ac)) / 2 without the factor a. Detectors are tuned to it.

    Args:
        length: cells, any shape.
        width: cells, likewise.
        min_overlap: IoU, between 0 and 1.
    """
    total, area = length + width, length * width
    roots = []
    for a, b, c in (
        (1.0, total, area * (1 - min_overlap) / (1 + min_overlap)),
        (4.0, 2 * total, area * (1 - min_overlap)),
        (4.0 * min_overlap, -2 * min_overlap * total, -area * (1 - min_overlap)),
    ):
        roots.append((b + torch.sqrt((b * b - 4 * a * c).clamp(min=0))) / 2)
    return torch.stack(roots).amin(dim=0)


def draw_gaussians(
    column: Tensor, row: Tensor, radius: Tensor, classes: Tensor, valid: Tensor, shape: tuple[int, int, int]
) -> Tensor:
    """Draw a Gaussian of peak 1 at every valid object; where several meet, the largest value stands.

    Args:
        column: int64 [B, M].
        row: int64 [B, M].
        radius: float [B, M], cells; sigma is a sixth of the diameter, and nothing is drawn beyond the radius.
        classes: int64 [B, M].
        valid: bool [B, M].
        shape: classes, H, W.

    Returns:
        float32 [B, classes, H, W].
    """
    channels, height, width = shape
    batch = column.shape[0]
    reach = torch.arange(-LARGEST_RADIUS, LARGEST_RADIUS + 1, device=column.device)
    dy, dx = torch.meshgrid(reach, reach, indexing="ij")  # the window, [R, R]
    sigma = ((2 * radius + 1) / 6)[..., None, None]
    value = torch.exp(-(dx * dx + dy * dy) / (2 * sigma * sigma))
    y, x = row[..., None, None] + dy, column[..., None, None] + dx
    drawn = valid[..., None, None] & (torch.maximum(dx.abs(), dy.abs()) <= radius[..., None, None])
    drawn = drawn & (y >= 0) & (y < height) & (x >= 0) & (x < width)
    sample = torch.arange(batch, device=column.device)[:, None, None, None]
    index = ((sample * channels + classes[..., None, None]) * height + y) * width + x
    heatmap = torch.zeros(batch * channels * height * width, device=column.device)
    heatmap.scatter_reduce_(0, torch.where(drawn, index, 0).flatten(), torch.where(drawn, value, 0.0).flatten(), "amax")
    return heatmap.view(batch, channels, height, width)
