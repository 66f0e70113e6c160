"""A point in 11 bytes: how the prepared store keeps a frame's points.

- x, y, z: int16 in steps of 2^-7 m, rounded to nearest. Both the scaling (a power of two) and the rounding are exact in
  float32, so the error is at most 2^-8 m = 3.90625 mm, with nothing added by arithmetic.
- intensity, elongation: float16, rounded to nearest; what lies beyond its range becomes +-65504 and is counted.
- flags: one byte. Bits 0 to 2 hold the lidar's number, bit 3 is set for the second return, bit 4 for a point in a
  no-label zone, bits 5 to 7 are zero.

Points outside +-32767 steps (+-255.992 m) on any axis, or with a value that isn't finite, can't be kept; they are left
out and counted.

Numpy only: preparation and evaluation run without torch. `detection3d.data.unpack` is the way back on the device.
"""

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from detection3d.errors import UserError
from detection3d.types.scene import BoolArray, Float32Array, Frame, UInt8Array

STEP = 2.0**-7
"""Metres in one step of a packed coordinate."""

BYTES_PER_POINT = 11
LIDAR_BITS = 0b0000_0111
SECOND_RETURN_BIT = 0b0000_1000
NO_LABEL_ZONE_BIT = 0b0001_0000

_MOST_STEPS = 32767
_LARGEST_FLOAT16 = 65504.0


@dataclass(frozen=True)
class PackedArrays:
    """Packed points of one frame.

    Attributes:
        xyz: int16 [N, 3], vehicle frame, steps of `STEP` metres.
        features: float16 [N, 2], raw intensity and elongation.
        flags: uint8 [N], the bits of the module's docstring.
    """

    xyz: npt.NDArray[np.int16]
    features: npt.NDArray[np.float16]
    flags: UInt8Array

    def __len__(self) -> int:
        """Number of points, N."""
        return len(self.flags)


@dataclass(frozen=True)
class PackingLosses:
    """What packing could not keep; points that a setting excludes are not losses.

    Attributes:
        out_of_range: points left out because a coordinate is beyond +-255.992 m.
        not_finite: points left out because a value is NaN or infinite.
        clipped: points kept whose intensity or elongation was clipped to float16's range.
    """

    out_of_range: int = 0
    not_finite: int = 0
    clipped: int = 0

    def __add__(self, other: "PackingLosses") -> "PackingLosses":
        return PackingLosses(
            self.out_of_range + other.out_of_range, self.not_finite + other.not_finite, self.clipped + other.clipped
        )


def pack(
    frame: Frame, returns: Collection[int] = (1, 2), reach: float | None = None
) -> tuple[PackedArrays, PackingLosses]:
    """Pack the points of a frame, in their order.

    Args:
        frame: the frame.
        returns: the return numbers to keep.
        reach: metres; points with |x| or |y| beyond it are not kept. None keeps them.

    Returns:
        The packed points and the count of what was lost.

    Raises:
        UserError: the arrays' shapes disagree, or a lidar or return number doesn't fit its bits.
    """
    _check(frame)
    finite = np.isfinite(frame.points).all(axis=1)
    wanted = np.isin(frame.return_number, list(returns))
    if reach is not None:
        far = (np.abs(frame.points[:, :2]) > reach).any(axis=1)
        wanted &= ~(far & finite)  # what isn't finite is a loss, wherever it would lie
    with np.errstate(over="ignore", invalid="ignore"):
        steps = np.rint(frame.points[:, :3] * np.float32(1 / STEP))
        in_range = (np.abs(steps) <= _MOST_STEPS).all(axis=1)
    keep = wanted & finite & in_range

    features = frame.points[keep, 3:5]
    clipped = np.clip(features, -_LARGEST_FLOAT16, _LARGEST_FLOAT16)
    flags = frame.lidar[keep].astype(np.uint8)
    flags |= np.where(frame.return_number[keep] == 2, SECOND_RETURN_BIT, 0).astype(np.uint8)
    flags |= np.where(frame.in_no_label_zone[keep], NO_LABEL_ZONE_BIT, 0).astype(np.uint8)
    packed = PackedArrays(xyz=steps[keep].astype(np.int16), features=clipped.astype(np.float16), flags=flags)
    losses = PackingLosses(
        out_of_range=int((wanted & finite & ~in_range).sum()),
        not_finite=int((wanted & ~finite).sum()),
        clipped=int((clipped != features).any(axis=1).sum()),
    )
    return packed, losses


def unpack_arrays(packed: PackedArrays) -> tuple[Float32Array, UInt8Array, UInt8Array, BoolArray]:
    """Turn packed points back into the arrays of a `Frame`.

    Args:
        packed: N packed points.

    Returns:
        points float32 [N, 5], lidar uint8 [N], return number uint8 [N], in-no-label-zone bool [N].
    """
    points = np.empty((len(packed), 5), np.float32)
    points[:, :3] = packed.xyz
    points[:, :3] *= np.float32(STEP)
    points[:, 3:] = packed.features
    lidar = packed.flags & np.uint8(LIDAR_BITS)
    return_number = np.where(packed.flags & SECOND_RETURN_BIT, 2, 1).astype(np.uint8)
    return points, lidar, return_number, (packed.flags & NO_LABEL_ZONE_BIT).astype(bool)


def _check(frame: Frame) -> None:
    count = len(frame.points)
    if frame.points.shape != (count, 5):
        raise UserError(f"points have the shape {frame.points.shape}; expected [N, 5]")
    for name in ("lidar", "return_number", "in_no_label_zone"):
        shape = getattr(frame, name).shape
        if shape != (count,):
            raise UserError(f"{name} has the shape {shape}; expected ({count},), one value for each point")
    if (frame.lidar > LIDAR_BITS).any():
        raise UserError(f"lidar number {int(frame.lidar.max())}: the store has room for 0 to {LIDAR_BITS}")
    if not np.isin(frame.return_number, (1, 2)).all():
        found = sorted({int(number) for number in np.unique(frame.return_number)} - {1, 2})
        raise UserError(f"return numbers {found}: a point belongs to return 1 or 2")
