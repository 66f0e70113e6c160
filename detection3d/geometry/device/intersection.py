"""Area common to two rotated rectangles, with its exact gradient.

By Green's theorem the area common to two convex shapes is half the integral of x dy - y dx along its border. That
border is made of the parts of A's edges inside B and the parts of B's edges inside A. An edge's part inside a rectangle
is an interval, found by two slab tests in the rectangle's own frame. No vertices are collected or sorted.

Edges of A and B that coincide would count twice or not at all, as rounding has it. So B is grown by a hair first, far
more than the rounding of float64, in which all of this is done whatever the type of the boxes, and less than matters.

The same intervals give the gradient. When A's border moves, the common area grows by what its parts inside B sweep over
(Reynolds' transport theorem): their lengths for a shift and a growth, their moments about A's centre for a turn. No
division is left in it, so it is finite for every pair, and never larger than A's perimeter times the speed.
"""

from typing import Any

import torch
from torch import Tensor

from detection3d.geometry.device.boxes import rotate

_HAIR = 1.1e-8  # metres; the error in area is at most the perimeter times this


def intersection_area(a: Tensor, b: Tensor) -> Tensor:
    """Return the area common to the footprints of box a[i] and box b[i], which can be differentiated, twice as well.

    Where edges coincide the area has a kink; the gradient is that of one side.

    Args:
        a: float64 [P, 7].
        b: float64 [P, 7].

    Returns:
        float64 [P], square metres.
    """
    area = _Intersection.apply(a, b)
    assert isinstance(area, Tensor)
    return area


class _Intersection(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        starts, directions, enter, leave = _edges_inside(a, b)
        ctx.save_for_backward(a, b, enter, leave)
        # The integral along a part of an edge: with the origin it spans that share of the whole edge's triangle.
        share = (leave - enter).clamp(min=0)
        of_a, of_b = share * _cross(starts, directions)
        area = 0.5 * (of_a + of_b).sum(1)
        smaller = torch.minimum(a[:, 3] * a[:, 4], b[:, 3] * b[:, 4])
        return torch.minimum(area.clamp(min=0), smaller)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        a, b, enter, leave = ctx.saved_tensors
        if torch.is_grad_enabled():  # a second derivative is to come, which must know how the intervals depend on them
            _, _, enter, leave = _edges_inside(a, b)
        share, middle = (leave - enter).clamp(min=0), enter + leave
        both = torch.stack((a, b))
        long, wide = both[..., 3:4], both[..., 4:5]
        edge = torch.cat((long, wide, long, wide), dim=-1)  # lengths of the edges: left, rear, right, front
        inside = edge * share
        left, rear, right, front = inside.unbind(-1)
        shift = rotate(torch.stack((front - rear, left - right), dim=-1), both[..., 6])
        # A point of an edge moves outward in a turn by how far it stands from the edge's middle, towards its start.
        turn = (0.5 * inside * edge * (1 - middle)).sum(-1)
        still = torch.zeros_like(turn)
        speeds = (*shift.unbind(-1), still, 0.5 * (front + rear), 0.5 * (left + right), still, turn)
        to_a, to_b = (gradient[:, None] * torch.stack(speeds, dim=-1)).unbind(0)
        return to_a, to_b


def _edges_inside(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the edges of both boxes in A's frame, and the interval of each inside the other box.

    Returns:
        Starts and directions [2, P, 4, 2], first those of A; enter and leave [2, P, 4], shares of the edge, empty where
        enter is not below leave.
    """
    # Everything happens in A's frame: near its own centre, coordinates lose no digits to the distance from the origin.
    turn = (b[:, 6] - a[:, 6])[:, None]
    centre = rotate(b[:, :2] - a[:, :2], -a[:, 6])[:, None]
    half_a, half_b = 0.5 * a[:, None, 3:5], 0.5 * b[:, None, 3:5] + _HAIR
    start_a, along_a = _edges(half_a)
    start_b, along_b = _edges(half_b)
    seen_start, seen_along = rotate(start_a - centre, -turn), rotate(along_a, -turn)  # A's edges in B's frame
    start_b, along_b = rotate(start_b, turn) + centre, rotate(along_b, turn)
    enter, leave = _interval(
        torch.stack((seen_start, start_b)), torch.stack((seen_along, along_b)), torch.stack((half_b, half_a))
    )
    return torch.stack((start_a, start_b)), torch.stack((along_a, along_b)), enter, leave


def _edges(half_size: Tensor) -> tuple[Tensor, Tensor]:
    """Start and direction of the four edges of boxes at the origin, counter-clockwise; [P, 1, 2] to two [P, 4, 2]."""
    x, y = half_size.unbind(-1)
    start = torch.stack((torch.cat((x, -x, -x, x), 1), torch.cat((y, y, -y, -y), 1)), dim=-1)
    return start, start.roll(-1, dims=1) - start


def _interval(start: Tensor, along: Tensor, half_size: Tensor) -> tuple[Tensor, Tensor]:
    """Return where each edge enters and leaves the window of `half_size` about the origin, shares of the edge."""
    # An edge parallel to a slab has no crossing: a tiny slope puts both crossings far out, on the right sides.
    slope = torch.where(along.abs() < 1e-30, 1e-30, along)
    first, second = (-half_size - start) / slope, (half_size - start) / slope
    enter = torch.minimum(first, second).amax(-1).clamp(min=0)
    leave = torch.maximum(first, second).amin(-1).clamp(max=1)
    return enter, leave


def _cross(a: Tensor, b: Tensor) -> Tensor:
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]
