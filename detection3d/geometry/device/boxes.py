"""Upright boxes as tensors: corners, points in boxes, angles. The box layout is fixed in `detection3d`'s docstring."""

import math

import torch
from torch import Tensor


def wrap_angle(angle: Tensor) -> Tensor:
    """Wrap angles to [-pi, pi).

    Args:
        angle: radians, any shape.

    Returns:
        The same shape and type; -pi stands for both ends.
    """
    wrapped = torch.remainder(angle + math.pi, 2 * math.pi) - math.pi
    # For an angle a hair below -pi the sum rounds to 2 pi itself, which must wrap too.
    return torch.where(wrapped >= math.pi, -math.pi, wrapped)


def corners_bev(boxes: Tensor) -> Tensor:
    """Return the four corners of each box seen from above.

    Args:
        boxes: [..., 7].

    Returns:
        [..., 4, 2], x and y in metres, counter-clockwise from the front left corner.
    """
    x, y = (0.5 * boxes[..., 3:5]).unbind(-1)
    offset = torch.stack((torch.stack((x, -x, -x, x), dim=-1), torch.stack((y, y, -y, -y), dim=-1)), dim=-1)
    return boxes[..., None, :2] + rotate(offset, boxes[..., None, 6])


def corners_3d(boxes: Tensor) -> Tensor:
    """Return the eight corners of each box: the four of `corners_bev` at the bottom, then the same at the top.

    Args:
        boxes: [..., 7].

    Returns:
        [..., 8, 3], metres.
    """
    around = corners_bev(boxes)
    levels = []
    for side in (-0.5, 0.5):
        z = boxes[..., None, 2] + side * boxes[..., None, 5]
        levels.append(torch.cat((around, z.expand(around.shape[:-1])[..., None]), dim=-1))
    return torch.cat(levels, dim=-2)


def points_in_boxes(points: Tensor, boxes: Tensor) -> Tensor:
    """Tell which points lie in which boxes; a point on the surface lies inside.

    Takes a few temporaries of the result's shape in the points' type: split the points where that is too much.

    Args:
        points: [..., N, 3 or more], of which the first three are x, y, z in the frame of the boxes.
        boxes: [..., M, 7]; the leading dims broadcast against those of the points. A box with a size of 0, as padding
            has, holds no point.

    Returns:
        bool [..., N, M].
    """
    offset = points[..., :, None, :2] - boxes[..., None, :, :2]
    height = (points[..., :, None, 2] - boxes[..., None, :, 2]).abs()
    along_across = rotate(offset, -boxes[..., None, :, 6]).abs()
    half_size = 0.5 * boxes[..., None, :, 3:6]
    inside = (along_across <= half_size[..., :2]).all(-1) & (height <= half_size[..., 2])
    return inside & (boxes[..., None, :, 3:6] > 0).all(-1)


def rotate(vectors: Tensor, angle: Tensor) -> Tensor:
    """Turn vectors [..., 2] counter-clockwise by angles [...], in radians."""
    cosine, sine = angle.cos(), angle.sin()
    x, y = vectors[..., 0], vectors[..., 1]
    return torch.stack((cosine * x - sine * y, sine * x + cosine * y), dim=-1)
