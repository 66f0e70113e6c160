"""Packed points to float points, on the device that holds them."""

from collections.abc import Collection

import torch
from torch import Tensor

from detection3d.data.packing import NO_LABEL_ZONE_BIT, SECOND_RETURN_BIT, STEP
from detection3d.errors import UserError
from detection3d.types.tensors import PackedPoints, Points, Sweeps


def unpack(points: PackedPoints, *, returns: Collection[int] = (1, 2), drop_no_label_zone: bool = False) -> Points:
    """Turn a batch's packed points into what the model takes.

    Args:
        points: N packed points of B samples; `detection3d.data.packing` fixes the format.
        returns: return numbers to keep, of 1 and 2. Leaving one out costs a wait for the device, as the number of
            points must then be known.
        drop_no_label_zone: leave out the points in no-label zones; likewise.

    Returns:
        float32 points (x, y, z, intensity, elongation) in the same order. Where samples have several sweeps, all are in
        the vehicle frame of the newest, and a sixth column has the seconds before it.

    Raises:
        UserError: `returns` names anything but 1 and 2, or nothing.
    """
    chosen = set(returns)
    if not chosen or not chosen <= {1, 2}:
        raise UserError(f"returns {sorted(chosen)}: choose 1, 2 or both")

    xyz = points.xyz.to(torch.float32) * STEP
    values = torch.cat((xyz, points.features.to(torch.float32)), dim=1)
    if points.sweeps is not None:
        values = _merge(values, points.sweeps)
    samples = torch.arange(len(points.counts), device=points.counts.device)
    # The output's size is known, so repeat_interleave needn't wait for the device to learn it.
    batch_index = torch.repeat_interleave(samples, points.counts, output_size=len(values))

    keep = None
    if len(chosen) == 1:
        is_second = (points.flags & SECOND_RETURN_BIT) != 0
        keep = is_second if 2 in chosen else ~is_second
    if drop_no_label_zone:
        outside = (points.flags & NO_LABEL_ZONE_BIT) == 0
        keep = outside if keep is None else keep & outside
    if keep is not None:
        values, batch_index = values[keep], batch_index[keep]
    return Points(values=values, batch_index=batch_index)


def _merge(values: Tensor, sweeps: Sweeps) -> Tensor:
    """Bring each point into its sample's newest vehicle frame, and append its age."""
    numbers = torch.arange(len(sweeps.counts), device=values.device)
    sweep = torch.repeat_interleave(numbers, sweeps.counts, output_size=len(values))
    rows = sweeps.to_newest[sweep]
    # Not a matrix product, which may round to TF32. The newest sweep's matrix is the identity, which changes no bit.
    moved = (rows[:, :, :3] * values[:, None, :3]).sum(-1) + rows[:, :, 3]
    return torch.cat((moved, values[:, 3:], sweeps.age[sweep, None]), dim=1)
