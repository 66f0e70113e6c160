"""Rigid poses on the host, float64 [..., 4, 4], and Waymo's roll, pitch and yaw.

The angles follow Waymo's `transform_utils.get_rotation_matrix`: R = Rz(yaw) Ry(pitch) Rx(roll).
"""

import numpy as np
import numpy.typing as npt

from detection3d.types.scene import Float64Array


def invert_pose(pose: npt.NDArray[np.floating]) -> Float64Array:
    """Invert rigid poses.

    Args:
        pose: [..., 4, 4], a rotation and a translation.

    Returns:
        float64 [..., 4, 4].
    """
    pose = np.asarray(pose, np.float64)
    inverse = np.zeros_like(pose)
    rotation = np.swapaxes(pose[..., :3, :3], -1, -2)
    inverse[..., :3, :3] = rotation
    inverse[..., :3, 3] = -np.einsum("...ij,...j->...i", rotation, pose[..., :3, 3])
    inverse[..., 3, 3] = 1.0
    return inverse


def is_rigid(pose: npt.NDArray[np.floating]) -> bool:
    """Tell whether a finite [4, 4] matrix is a rotation and a translation, up to what float32 makes of its numbers."""
    rotation = np.asarray(pose, np.float64)[:3, :3]
    # Bounded first, since a damaged number's square may overflow. Generous: a transposed or scaled one is far off.
    near = (np.abs(rotation) < 2).all() and np.allclose(rotation @ rotation.T, np.eye(3), rtol=0, atol=1e-3)
    return bool(near and np.linalg.det(rotation) > 0 and np.array_equal(pose[3], (0, 0, 0, 1)))


def rotation_from_angles(roll: npt.ArrayLike, pitch: npt.ArrayLike, yaw: npt.ArrayLike) -> Float64Array:
    """Return R = Rz(yaw) Ry(pitch) Rx(roll).

    Args:
        roll: radians about x, any shape.
        pitch: radians about y, likewise; positive lowers the x axis.
        yaw: radians about z, likewise.

    Returns:
        float64 [..., 3, 3].
    """
    roll, pitch, yaw = np.broadcast_arrays(*(np.asarray(angle, np.float64) for angle in (roll, pitch, yaw)))
    cr, sr, cp, sp, cy, sy = np.cos(roll), np.sin(roll), np.cos(pitch), np.sin(pitch), np.cos(yaw), np.sin(yaw)
    rows = (
        (cy * cp, cy * sp * sr - sy * cr, cy * sp * cr + sy * sr),
        (sy * cp, sy * sp * sr + cy * cr, sy * sp * cr - cy * sr),
        (-sp, cp * sr, cp * cr),
    )
    return np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)


def angles_from_rotation(rotation: npt.NDArray[np.floating]) -> Float64Array:
    """Return roll, pitch and yaw, the inverse of `rotation_from_angles` for |pitch| < pi / 2.

    Args:
        rotation: [..., 3, 3].

    Returns:
        float64 [..., 3]: roll, pitch, yaw in radians.
    """
    rotation = np.asarray(rotation, np.float64)
    roll = np.arctan2(rotation[..., 2, 1], rotation[..., 2, 2])
    pitch = np.arctan2(-rotation[..., 2, 0], np.hypot(rotation[..., 2, 1], rotation[..., 2, 2]))
    yaw = np.arctan2(rotation[..., 1, 0], rotation[..., 0, 0])
    return np.stack([roll, pitch, yaw], axis=-1)


def pose_from_angles(angles: npt.ArrayLike, translation: npt.ArrayLike) -> Float64Array:
    """Build poses from angles and translations.

    Args:
        angles: [..., 3], roll, pitch, yaw in radians.
        translation: [..., 3], metres.

    Returns:
        float64 [..., 4, 4].
    """
    angles, translation = np.asarray(angles, np.float64), np.asarray(translation, np.float64)
    angles, translation = np.broadcast_arrays(angles, translation)
    pose = np.zeros((*angles.shape[:-1], 4, 4))
    pose[..., :3, :3] = rotation_from_angles(angles[..., 0], angles[..., 1], angles[..., 2])
    pose[..., :3, 3] = translation
    pose[..., 3, 3] = 1.0
    return pose


def transform_points(pose: npt.NDArray[np.floating], points: npt.NDArray[np.floating]) -> Float64Array:
    """Carry points through a pose.

    Args:
        pose: [4, 4], or [..., 4, 4] with one pose for each group of points.
        points: [..., N, 3].

    Returns:
        float64 [..., N, 3]: R p + t.
    """
    pose, points = np.asarray(pose, np.float64), np.asarray(points, np.float64)
    return points @ np.swapaxes(pose[..., :3, :3], -1, -2) + pose[..., None, :3, 3]


def zone_in_vehicle_frame(zone: npt.NDArray[np.floating], pose: npt.NDArray[np.floating]) -> Float64Array:
    """Return a no-label zone as seen from the vehicle.

    Args:
        zone: [P, 2], x and y of its corners in the global frame. It has no height, and is taken at the vehicle's.
        pose: [4, 4], vehicle to global.

    Returns:
        float64 [P, 2], x and y in the vehicle frame.
    """
    corners = np.column_stack([zone, np.full(len(zone), pose[2, 3])])
    return transform_points(invert_pose(pose), corners)[:, :2]
