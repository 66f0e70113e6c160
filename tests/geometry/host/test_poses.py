import numpy as np

from detection3d.geometry.host.poses import (
    angles_from_rotation,
    invert_pose,
    pose_from_angles,
    rotation_from_angles,
    transform_points,
)


def _axis_rotation(axis: int, angle: float) -> np.ndarray:
    first, second = (axis + 1) % 3, (axis + 2) % 3
    rotation = np.eye(3)
    rotation[first, first] = rotation[second, second] = np.cos(angle)
    rotation[first, second], rotation[second, first] = -np.sin(angle), np.sin(angle)
    return rotation


def test_rotation_is_yaw_after_pitch_after_roll() -> None:
    expected = _axis_rotation(2, 0.7) @ _axis_rotation(1, -0.2) @ _axis_rotation(0, 0.1)
    np.testing.assert_allclose(rotation_from_angles(0.1, -0.2, 0.7), expected, atol=1e-15)


def test_angles_survive_the_round_trip() -> None:
    angles = np.random.default_rng(0).uniform([-3, -1.5, -3], [3, 1.5, 3], (100, 3))
    rotation = rotation_from_angles(angles[:, 0], angles[:, 1], angles[:, 2])
    np.testing.assert_allclose(angles_from_rotation(rotation), angles, atol=1e-12)


def test_inverse_brings_points_back() -> None:
    generator = np.random.default_rng(1)
    poses = pose_from_angles(generator.uniform(-1, 1, (5, 3)), generator.uniform(-9000, 9000, (5, 3)))
    points = generator.uniform(-50, 50, (5, 7, 3))
    there = transform_points(poses, points)
    np.testing.assert_allclose(there[2, 3], poses[2, :3, :3] @ points[2, 3] + poses[2, :3, 3], atol=1e-9)
    np.testing.assert_allclose(transform_points(invert_pose(poses), there), points, atol=1e-9)
