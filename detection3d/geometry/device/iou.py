"""Overlap of upright rotated boxes as tensor operations on any device, without a loop over boxes.

All of it can be differentiated, with gradients that are finite for any finite boxes; see `intersection`.
"""

import torch
from torch import Tensor

from detection3d.geometry.device.boxes import rotate
from detection3d.geometry.device.intersection import intersection_area

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
    return _checked_pairs(a, b, volumes=False)


def iou_3d_pairs(a: Tensor, b: Tensor) -> Tensor:
    """Return the 3D IoU of box a[i] with box b[i]; otherwise as `bev_iou_pairs`. Nothing waits for the device."""
    return _checked_pairs(a, b, volumes=True)


def centre_penalty(a: Tensor, b: Tensor) -> Tensor:
    """Return how far apart the centres of box a[i] and box b[i] are: what DIoU takes off the IoU.

    Squared distance over the squared diagonal of what encloses both (Zheng et al., "Distance-IoU Loss", AAAI 2020). The
    enclosing box stands along the axes of b, so that turning both boxes changes nothing.

    Args:
        a: boxes [P, 7].
        b: boxes [P, 7].

    Returns:
        [P] in [0, 1).
    """
    offset = torch.cat((rotate(a[:, :2] - b[:, :2], -b[:, 6]), a[:, 2:3] - b[:, 2:3]), dim=1)
    turn = a[:, 6] - b[:, 6]
    along, across = turn.cos().abs(), turn.sin().abs()
    length, width = along * a[:, 3] + across * a[:, 4], across * a[:, 3] + along * a[:, 4]
    half_a, half_b = 0.5 * torch.stack((length, width, a[:, 5]), dim=1), 0.5 * b[:, 3:6]
    sides = torch.maximum(offset + half_a, half_b) - torch.minimum(offset - half_a, -half_b)
    return offset.square().sum(1) / sides.square().sum(1).clamp(min=_MIN_UNION)


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


def _checked_pairs(a: Tensor, b: Tensor, volumes: bool) -> Tensor:
    _check(a, b)
    if len(a) != len(b):
        raise ValueError(f"pairs need as many boxes on both sides, got {len(a)} and {len(b)}")
    return _pairs(a, b, volumes)


def _pairs(a: Tensor, b: Tensor, volumes: bool) -> Tensor:
    chunks = zip(a.split(_PAIRS_AT_ONCE), b.split(_PAIRS_AT_ONCE), strict=True)
    return torch.cat([_iou(left.double(), right.double(), volumes) for left, right in chunks]).to(a.dtype)


def _iou(a: Tensor, b: Tensor, volumes: bool) -> Tensor:
    intersection = intersection_area(a, b)
    size_a, size_b = a[:, 3] * a[:, 4], b[:, 3] * b[:, 4]
    if volumes:
        top = torch.minimum(a[:, 2] + 0.5 * a[:, 5], b[:, 2] + 0.5 * b[:, 5])
        bottom = torch.maximum(a[:, 2] - 0.5 * a[:, 5], b[:, 2] - 0.5 * b[:, 5])
        intersection = intersection * (top - bottom).clamp(min=0)
        size_a, size_b = size_a * a[:, 5], size_b * b[:, 5]
    union = size_a + size_b - intersection
    ratio = intersection / union.clamp(min=_MIN_UNION)
    return torch.where(union <= _MIN_UNION, 0.0, ratio.clamp(0, 1))
