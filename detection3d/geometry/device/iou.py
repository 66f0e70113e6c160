"""Overlap of upright rotated boxes as tensor operations on any device, without a loop over boxes.

By Green's theorem the area common to two convex shapes is half the integral of x dy - y dx along its border. That
border is made of the parts of A's edges inside B and the parts of B's edges inside A. An edge's part inside a rectangle
is an interval, found by two slab tests in the rectangle's own frame. No vertices are collected or sorted.

Edges of A and B that coincide would count twice or not at all, as rounding has it. So B is grown by a hair first, far
more than the rounding of float64, in which all of this is done whatever the type of the boxes, and less than matters.
"""

import torch
from torch import Tensor

from detection3d.geometry.device.boxes import rotate

_HAIR = 1.1e-8  # metres; the error in area is at most the perimeter times this
_MIN_UNION = 1e-6  # square or cubic metres; the overlap is 0 where the union is at most this, as in geometry.host
_PAIRS_AT_ONCE = 1 << 18  # bounds the memory: about 0.5 kB a pair


def bev_iou(a: Tensor, b: Tensor) -> Tensor:
    """Return the bird's-eye-view IoU of every box of a with every box of b.

    Args:
        a: boxes [M, 7], finite, any heading, floating type.
        b: boxes [N, 7].

    Returns:
        [M, N] in [0, 1], in the type of `a`; 0 where both boxes have no area.

    Raises:
        ValueError: the shapes aren't [*, 7].
    """
    return _matrix(a, b, volumes=False)


def iou_3d(a: Tensor, b: Tensor) -> Tensor:
    """Return the 3D IoU of every box of a [M, 7] with every box of b [N, 7]; otherwise as `bev_iou`."""
    return _matrix(a, b, volumes=True)


def bev_iou_pairs(a: Tensor, b: Tensor) -> Tensor:
    """Return the bird's-eye-view IoU of box a[i] with box b[i].

    Args:
        a: boxes [P, 7].
        b: boxes [P, 7].

    Returns:
        [P] in [0, 1], in the type of `a`.

    Raises:
        ValueError: the shapes aren't [P, 7] with the same P.
    """
    _check(a, b)
    if len(a) != len(b):
        raise ValueError(f"pairs need as many boxes on both sides, got {len(a)} and {len(b)}")
    return _pairs(a, b, volumes=False)


def touching(a: Tensor, b: Tensor) -> Tensor:
    """Tell which pairs of boxes [..., 7] come close enough to overlap at all: the circles around them meet."""
    reach = torch.linalg.vector_norm(a[..., 3:5], dim=-1) + torch.linalg.vector_norm(b[..., 3:5], dim=-1)
    distance = torch.linalg.vector_norm(a[..., :2] - b[..., :2], dim=-1)
    return distance <= 0.5 * reach * (1 + 1e-5)  # rounding must not lose a pair


def _matrix(a: Tensor, b: Tensor, volumes: bool) -> Tensor:
    _check(a, b)
    result = a.new_zeros(len(a), len(b))
    row, column = touching(a[:, None], b[None, :]).nonzero(as_tuple=True)
    return result.index_put((row, column), _pairs(a[row], b[column], volumes))


def _check(a: Tensor, b: Tensor) -> None:
    for boxes in (a, b):
        if boxes.ndim != 2 or boxes.shape[1] != 7:
            raise ValueError(
                f"boxes must be [M, 7] (x, y, z, length, width, height, heading), got shape {tuple(boxes.shape)}"
            )


def _pairs(a: Tensor, b: Tensor, volumes: bool) -> Tensor:
    chunks = zip(a.split(_PAIRS_AT_ONCE), b.split(_PAIRS_AT_ONCE), strict=True)
    return torch.cat([_iou(left.double(), right.double(), volumes) for left, right in chunks]).to(a.dtype)


def _iou(a: Tensor, b: Tensor, volumes: bool) -> Tensor:
    intersection = _intersection_area(a, b)
    size_a, size_b = a[:, 3] * a[:, 4], b[:, 3] * b[:, 4]
    if volumes:
        top = torch.minimum(a[:, 2] + 0.5 * a[:, 5], b[:, 2] + 0.5 * b[:, 5])
        bottom = torch.maximum(a[:, 2] - 0.5 * a[:, 5], b[:, 2] - 0.5 * b[:, 5])
        intersection = intersection * (top - bottom).clamp(min=0)
        size_a, size_b = size_a * a[:, 5], size_b * b[:, 5]
    union = size_a + size_b - intersection
    ratio = intersection / union.clamp(min=_MIN_UNION)
    return torch.where(union <= _MIN_UNION, 0.0, ratio.clamp(0, 1))


def _intersection_area(a: Tensor, b: Tensor) -> Tensor:
    """Area common to the footprints of boxes a[i] and b[i], float64 [P, 7] each; returns [P]."""
    # Everything happens in A's frame: near its own centre, coordinates lose no digits to the distance from the origin.
    turn = (b[:, 6] - a[:, 6])[:, None]
    centre = rotate(b[:, :2] - a[:, :2], -a[:, 6])[:, None]
    half_a, half_b = 0.5 * a[:, None, 3:5], 0.5 * b[:, None, 3:5] + _HAIR

    start_a, along_a = _edges(half_a)
    start_b, along_b = _edges(half_b)
    share_a = _share_inside(rotate(start_a - centre, -turn), rotate(along_a, -turn), half_b)
    start_b, along_b = rotate(start_b, turn) + centre, rotate(along_b, turn)
    share_b = _share_inside(start_b, along_b, half_a)

    # The integral along a part of an edge: with the origin it spans that share of the whole edge's triangle.
    twice_area = (share_a * _cross(start_a, along_a) + share_b * _cross(start_b, along_b)).sum(1)
    area = 0.5 * twice_area
    smaller = torch.minimum(a[:, 3] * a[:, 4], b[:, 3] * b[:, 4])
    return torch.minimum(area.clamp(min=0), smaller)


def _edges(half_size: Tensor) -> tuple[Tensor, Tensor]:
    """Start and direction of the four edges of boxes at the origin, counter-clockwise; [P, 1, 2] to two [P, 4, 2]."""
    x, y = half_size.unbind(-1)
    start = torch.stack((torch.cat((x, -x, -x, x), 1), torch.cat((y, y, -y, -y), 1)), dim=-1)
    return start, start.roll(-1, dims=1) - start


def _share_inside(start: Tensor, along: Tensor, half_size: Tensor) -> Tensor:
    """Share of each edge that lies in the axis-aligned window of `half_size` about the origin; [P, 4]."""
    # An edge parallel to a slab has no crossing: a tiny slope puts both crossings far out, on the right sides.
    slope = torch.where(along.abs() < 1e-30, 1e-30, along)
    first, second = (-half_size - start) / slope, (half_size - start) / slope
    enter = torch.minimum(first, second).amax(-1).clamp(min=0)
    leave = torch.maximum(first, second).amin(-1).clamp(max=1)
    return (leave - enter).clamp(min=0)


def _cross(a: Tensor, b: Tensor) -> Tensor:
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]
