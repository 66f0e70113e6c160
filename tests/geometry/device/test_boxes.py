"""Corners, points in boxes and angles: pinned values and agreement with the host's."""

import math

import numpy as np
import torch

from detection3d.geometry.device.boxes import corners_3d, corners_bev, points_in_boxes, wrap_angle
from detection3d.geometry.host import boxes as host


def random_boxes(*shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    boxes = torch.rand(*shape, 7, generator=generator, dtype=torch.float64) * 8 - 4
    boxes[..., 3:6] = boxes[..., 3:6].abs() + 0.5
    return boxes


def test_corners_start_front_left_and_go_round() -> None:
    box = torch.tensor([10.0, 20, 1, 4, 2, 3, math.pi / 2])
    around = torch.tensor([[9.0, 22], [9, 18], [11, 18], [11, 22]])
    torch.testing.assert_close(corners_bev(box), around)
    corners = corners_3d(box)
    torch.testing.assert_close(corners[:4], torch.cat((around, torch.full((4, 1), -0.5)), dim=1))
    torch.testing.assert_close(corners[4:], torch.cat((around, torch.full((4, 1), 2.5)), dim=1))


def test_corners_agree_with_host() -> None:
    boxes = random_boxes(3, 20)
    np.testing.assert_allclose(
        corners_bev(boxes).reshape(60, 4, 2), host.corners_bev(boxes.reshape(60, 7).numpy()), atol=1e-12
    )


def test_points_in_boxes_agree_with_host_in_every_sample() -> None:
    boxes = random_boxes(2, 15)
    points = torch.rand(2, 400, 3, generator=torch.Generator().manual_seed(4), dtype=torch.float64) * 10 - 5
    inside = points_in_boxes(points, boxes)
    assert inside.shape == (2, 400, 15)
    assert 0.005 < inside.double().mean() < 0.5
    for sample in range(2):
        wanted = host.points_in_boxes(points[sample].numpy(), boxes[sample].numpy())
        np.testing.assert_array_equal(inside[sample].numpy(), wanted)


def test_surface_is_inside_and_padding_is_empty() -> None:
    points = torch.tensor([[1.0, 0, 0], [0, 0, -0.5], [1.001, 0, 0], [0, 0, 0]])
    boxes = torch.tensor([[0.0, 0, 0, 2, 4, 1, 0], [0.0, 0, 0, 0, 0, 0, 0]])
    assert points_in_boxes(points, boxes).tolist() == [[True, False], [True, False], [False, False], [True, False]]


def test_wrap_angle() -> None:
    for dtype in (torch.float64, torch.float32):
        angles = torch.tensor(
            [0.0, math.pi, -math.pi, 3 * math.pi, 7.0, -1e-9 - math.pi, math.nextafter(-math.pi, -4), 1e4], dtype=dtype
        )
        wrapped = wrap_angle(angles)
        assert bool((wrapped >= torch.tensor(-math.pi, dtype=dtype)).all())
        assert bool((wrapped < torch.tensor(math.pi, dtype=dtype)).all())
        torch.testing.assert_close(wrapped.sin(), angles.double().sin().to(dtype), atol=1e-3, rtol=0)
    np.testing.assert_allclose(
        wrap_angle(torch.linspace(-20, 20, 99).double()), host.wrap_angle(np.linspace(-20, 20, 99)), atol=2e-5
    )
