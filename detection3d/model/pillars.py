"""Points to pillars: a small net on every point, and the maximum over the points of each column.

PointPillars (Lang et al., CVPR 2019) with dynamic pillars (Zhou et al., CoRL 2019): no point and no pillar is dropped.
Points are sorted by pillar, so that all sums and maxima run over them in one order, on every device and in every run.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detection3d.config import ModelConfig, PillarBackboneConfig
from detection3d.model.norm import BatchNorm
from detection3d.model.voxelize import FEATURES, point_scale
from detection3d.types.tensors import Points

OFFSETS = 5
"""Features that a point gets beside its own: x, y, z from the mean of its pillar's points; x, y from its middle."""


@dataclass(frozen=True)
class PillarPoints:
    """Points inside the range, sorted by the pillar that they are in.

    Attributes:
        features: [N, C].
        pillar: int64 [N], ascending: the place of a point's pillar among the P that have points.
        counts: int64 [P], points of each pillar, at least 1.
        cells: int64 [P], ascending: (sample * H + row) * W + column of each pillar.
        shape: B, H, W.
    """

    features: Tensor
    pillar: Tensor
    counts: Tensor
    cells: Tensor
    shape: tuple[int, int, int]

    def with_features(self, features: Tensor) -> "PillarPoints":
        """Return the same points with other features, [N, C']."""
        return replace(self, features=features)

    def reduce(self, how: str) -> Tensor:
        """Return the "mean" or "max" over the points of each pillar, [P, C]."""
        return torch.segment_reduce(self.features, how, lengths=self.counts, unsafe=True)


class PillarSorter(nn.Module):
    """Sort points into pillars and describe each by its place among its pillar's points.

    Args:
        config: the range and the size of the pillars, metres in the vehicle frame.
        features: columns of a point: `FEATURES`, and one more where it carries its age in seconds.
    """

    low: Tensor
    size: Tensor
    cells: Tensor
    feature_scale: Tensor

    def __init__(self, config: ModelConfig, features: int = FEATURES) -> None:
        super().__init__()
        _, self.height, self.width = config.grid_size
        self.features = features + OFFSETS
        self.register_buffer("low", torch.tensor(config.point_range[:3]), persistent=False)
        self.register_buffer("size", torch.tensor(config.voxel_size), persistent=False)
        self.register_buffer("cells", torch.tensor([self.width, self.height, 1]), persistent=False)
        self.register_buffer("feature_scale", point_scale(config.point_range, features), persistent=False)

    @torch.no_grad()
    def forward(self, points: Points, batch_size: int) -> PillarPoints:
        """Sort, and leave out what lies outside the range.

        Args:
            points: N points, [N, features].
            batch_size: samples, B.

        Returns:
            Features: those of the points, scaled as for voxels; then the offsets, x and y in pillars, z in metres.
        """
        place = (points.values[:, :3] - self.low) / self.size
        cell = torch.floor(place).to(torch.int64)
        inside = ((cell >= 0) & (cell < self.cells)).all(dim=1)
        kept = inside.nonzero().flatten()  # once: a mask would be counted for each of the four
        values, place, cell, batch = points.values[kept], place[kept], cell[kept], points.batch_index[kept]
        of_points, order = ((batch * self.height + cell[:, 1]) * self.width + cell[:, 0]).sort(stable=True)
        values, middle = values[order], (place - cell - 0.5)[order, :2]
        cells, pillar, counts = of_points.unique_consecutive(return_inverse=True, return_counts=True)
        shape = (batch_size, self.height, self.width)
        # About the pillar's own middle, so that the mean loses no digits to the distance from the vehicle.
        about = torch.cat([middle, values[:, 2:3]], dim=1)
        mean = PillarPoints(about, pillar, counts, cells, shape).reduce("mean")
        own = torch.cat([values[:, :3], torch.tanh(values[:, 3:FEATURES]), values[:, FEATURES:]], dim=1)
        features = torch.cat([own * self.feature_scale, about - mean[pillar], middle], dim=1)
        return PillarPoints(features, pillar, counts, cells, shape)


class PillarBackbone(nn.Module):
    """From points in pillars to a dense [B, channels, H, W].

    Args:
        config: widths of the layers.
        features: of a point.
    """

    backend = "none"  # of sparse convolutions

    def __init__(self, config: PillarBackboneConfig, features: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        for width in config.channels:
            self.layers.append(_Layer(features, width))
            features = 2 * width  # its own and its pillar's
        self.out_channels = config.channels[-1]

    def forward(self, points: PillarPoints) -> Tensor:
        """Return the bird's-eye view, 0 where no point is, in the points' type, or autocast's where it is on."""
        device = points.features.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else points.features.dtype
        # Coordinates reach 75 m and matter to the centimetre, which bfloat16 does not have.
        with torch.autocast(device, enabled=False):
            view = None
            for layer in self.layers:
                points = points.with_features(layer(points, view))
                view = points.reduce("max")
            assert view is not None
            samples, height, width = points.shape
            everywhere = torch.zeros(samples * height * width, view.shape[1], dtype=dtype, device=view.device)
            everywhere.index_copy_(0, points.cells, view.to(dtype))
            return everywhere.view(samples, height, width, -1).permute(0, 3, 1, 2)


class _Layer(nn.Module):
    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(in_channels, out_channels, bias=False)
        self.norm = BatchNorm(out_channels, relu=True)

    def forward(self, points: PillarPoints, view: Tensor | None) -> Tensor:
        """Return features of the points from theirs and, where there are some, those of their pillars, [P, C]."""
        if view is None:
            return self.norm(self.linear(points.features))
        # The product with both side by side, but each pillar's share of it once, and not for each point.
        own, of_pillar = self.linear.weight.split([points.features.shape[1], view.shape[1]], dim=1)
        shared = _Spread.apply(F.linear(view, of_pillar), points.pillar, points.counts)
        return self.norm(F.linear(points.features, own) + shared)


class _Spread(torch.autograd.Function):
    """Give each point its pillar's values; backward sums over the points in their order, and not as atomics come."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, pillar: Tensor, counts: Tensor) -> Tensor:
        ctx.save_for_backward(counts)
        return values[pillar]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (counts,) = ctx.saved_tensors
        return torch.segment_reduce(gradient, "sum", lengths=counts, unsafe=True, initial=0.0), None, None
