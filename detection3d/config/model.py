"""The detector's network: range and cells, backbone, neck, heads."""

import math
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from detection3d.config.heads import HeadsConfig
from detection3d.config.section import NonNegativeInt, Positive, PositiveInt, Section


class VoxelBackboneConfig(Section):
    """Sparse residual backbone of stride 8 (SECOND's layout with residual blocks)."""

    kind: Literal["voxel"] = "voxel"
    channels: Annotated[tuple[PositiveInt, ...], Field(min_length=4, max_length=4)]  # stages at stride 1, 2, 4, 8
    blocks: Annotated[tuple[NonNegativeInt, ...], Field(min_length=4, max_length=4)]  # residual, by stage
    out_channels: PositiveInt  # after the last reduction of z
    backend: Literal["auto", "torch", "spconv"] = "auto"  # auto: spconv on CUDA where installed, else torch
    precision: Literal["float32", "tf32", "float16"] = "float32"  # of spconv's products; sums are float32

    @property
    def stride(self) -> int:
        """Voxels along each side of a cell of the bird's-eye view."""
        return 8


class PillarBackboneConfig(Section):
    """Columns of points, each a vector that its points vote for (PointPillars, with any number of points)."""

    kind: Literal["pillar"] = "pillar"
    channels: Annotated[tuple[PositiveInt, ...], Field(min_length=1)]  # of each layer on the points; last: of the view

    @property
    def stride(self) -> int:
        """Pillars along each side of a cell of the bird's-eye view."""
        return 1

    @property
    def precision(self) -> Literal["float32"]:
        """Of the layers on the points: their coordinates need it."""
        return "float32"

    @property
    def backend(self) -> Literal["none"]:
        """Of sparse convolutions, which pillars have none of."""
        return "none"


def _voxel_unless_told(value: Any) -> Any:
    return {"kind": "voxel", **value} if isinstance(value, dict) else value


Backbone = Annotated[
    VoxelBackboneConfig | PillarBackboneConfig, Field(discriminator="kind"), BeforeValidator(_voxel_unless_told)
]


class NeckConfig(Section):
    """Two-dimensional network on the bird's-eye view: stages, each brought back to the first one's resolution."""

    layers: Annotated[tuple[PositiveInt, ...], Field(min_length=1)]  # 3x3 convolutions of each stage after its first
    strides: tuple[PositiveInt, ...]
    channels: tuple[PositiveInt, ...]
    upsampled_channels: tuple[PositiveInt, ...]

    @model_validator(mode="after")
    def _same_number_of_stages(self) -> "NeckConfig":
        lengths = {len(self.layers), len(self.strides), len(self.channels), len(self.upsampled_channels)}
        if len(lengths) != 1:
            raise ValueError("layers, strides, channels and upsampled_channels need one entry for each stage")
        if self.strides[0] != 1:
            raise ValueError("the first stage keeps the resolution of the backbone: strides[0] must be 1")
        return self


class ModelConfig(Section):
    """The detector's network."""

    point_range: tuple[float, float, float, float, float, float]  # x, y, z from; x, y, z to, metres, vehicle frame
    voxel_size: tuple[Positive, Positive, Positive]  # x, y, z, metres; x and y alike; a pillar is as high as the range
    backbone: Backbone
    neck: NeckConfig
    shared_channels: PositiveInt  # of the feature that the heads share, where the fork stands
    head_channels: PositiveInt
    heads: HeadsConfig = HeadsConfig()
    fork_after_relu: bool = False  # the fork stands before the shared feature's ReLU unless told

    @model_validator(mode="after")
    def _range_is_whole_cells(self) -> "ModelConfig":
        if self.voxel_size[0] != self.voxel_size[1]:
            x, y, _ = self.voxel_size
            raise ValueError(
                f"voxel_size is {x} m along x and {y} m along y; cells are square, so give one number twice"
            )
        cells = [self._whole_cells(axis) for axis in range(3)]
        for axis, count in zip("xy", cells[:2], strict=True):
            if count % self.stride:
                raise ValueError(
                    f"point_range holds {count} voxels along {axis}; it must be a multiple of {self.stride}"
                )
        match self.backbone:
            case VoxelBackboneConfig():
                if cells[2] % 16 != 8 or cells[2] == 8:
                    # other depths lose their top plane in a strided convolution without padding
                    raise ValueError(
                        f"point_range holds {cells[2]} voxels along z; it must be 24, 40, 56, ... (8 + 16 n)"
                    )
            case PillarBackboneConfig():
                if cells[2] != 1:
                    low, high = self.point_range[2], self.point_range[5]
                    raise ValueError(
                        f"point_range holds {cells[2]} voxels along z; a pillar is as high as the range, so make"
                        f" voxel_size {high - low:g} m high"
                    )
        height, width = self.bev_size
        reduction = math.prod(self.neck.strides)
        if height % reduction or width % reduction:
            raise ValueError(
                f"the backbone leaves {height} x {width} cells, which the neck's strides can't divide by"
                f" {reduction}; change point_range, voxel_size or neck.strides"
            )
        return self

    def _whole_cells(self, axis: int) -> int:
        name, low, high = "xyz"[axis], self.point_range[axis], self.point_range[axis + 3]
        if low >= high:
            raise ValueError(f"point_range is empty along {name}: {low} to {high} m")
        cells = (high - low) / self.voxel_size[axis]
        if abs(cells - round(cells)) >= 1e-6 * cells:
            rule = f"a multiple of {self.stride}" if axis < 2 and self.stride > 1 else "a whole number"
            if axis == 2 and isinstance(self.backbone, VoxelBackboneConfig):
                rule = "24, 40, 56, ... (8 + 16 n)"
            raise ValueError(f"point_range holds {cells:g} voxels along {name}; it must be {rule}")
        return round(cells)

    @property
    def grid_size(self) -> tuple[int, int, int]:
        """Voxels along (z, y, x)."""
        low, high = self.point_range[:3], self.point_range[3:]
        x, y, z = (round((b - a) / s) for a, b, s in zip(low, high, self.voxel_size, strict=True))
        return z, y, x

    @property
    def stride(self) -> int:
        """Voxels along each side of a cell of the heads' maps; the neck's first stage keeps the backbone's."""
        return self.backbone.stride

    @property
    def bev_size(self) -> tuple[int, int]:
        """Cells of the heads' maps along (y, x)."""
        _, height, width = self.grid_size
        return height // self.stride, width // self.stride
