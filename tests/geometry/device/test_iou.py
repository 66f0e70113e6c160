"""Rotated overlap against a polygon clip, with the cases that break other implementations."""

import math

import numpy as np
import pytest
import torch

from detection3d.geometry.device.iou import bev_iou, bev_iou_pairs, iou_3d
from detection3d.geometry.host import iou as host
from tests.oracles import polygon_iou as oracle


def random_boxes(count: int, seed: int, spread: float = 6.0) -> torch.Tensor:
    generator = np.random.default_rng(seed)
    centre = generator.uniform(-spread, spread, (count, 3)) * (1, 1, 0.2)
    size = generator.uniform(0.4, 8.0, (count, 3))
    heading = generator.uniform(-10, 10, (count, 1))
    return torch.from_numpy(np.concatenate((centre, size, heading), axis=1))


def near_copies(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Boxes far from the origin beside copies that differ by up to 1e-9 .. 1e-2 m and rad, half of them by nothing."""
    generator = np.random.default_rng(seed)
    boxes = random_boxes(count, seed, spread=150.0)
    change = generator.uniform(-1, 1, (count, 7)) * 10.0 ** generator.uniform(-9, -2, (count, 1))
    change[::2] = 0.0
    change[::4, 6] = math.pi * generator.integers(-2, 3, len(change[::4]))  # the same footprint, turned around
    return boxes, boxes + torch.from_numpy(change)


def expected(function, a: torch.Tensor, b: torch.Tensor) -> np.ndarray:
    return np.array([[function(row, column) for column in b.tolist()] for row in a.tolist()])


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-7), (torch.float32, 1e-6)])
def test_iou_equals_polygon_clip(dtype: torch.dtype, tolerance: float) -> None:
    a, b = random_boxes(60, 1).to(dtype), random_boxes(50, 2).to(dtype)
    in_bev, in_3d = bev_iou(a, b), iou_3d(a, b)
    assert in_bev.dtype == in_3d.dtype == dtype
    assert (in_bev > 0).double().mean() > 0.3  # the comparison is about boxes that do overlap
    np.testing.assert_allclose(in_bev.numpy(), expected(oracle.bev_iou, a, b), atol=tolerance, rtol=0)
    np.testing.assert_allclose(in_3d.numpy(), expected(oracle.iou_3d, a, b), atol=tolerance, rtol=0)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-7), (torch.float32, 1e-6)])
def test_near_identical_boxes_far_from_the_origin(dtype: torch.dtype, tolerance: float) -> None:
    a, b = (boxes.to(dtype) for boxes in near_copies(400, 3))
    wanted = [oracle.bev_iou(left, right) for left, right in zip(a.tolist(), b.tolist(), strict=True)]
    np.testing.assert_allclose(bev_iou_pairs(a, b).numpy(), wanted, atol=tolerance, rtol=0)


def test_known_overlaps() -> None:
    square = [0.0, 0, 0, 2, 2, 2, 0]
    others = {
        "itself": (square, 1.0),
        "turned by a right angle": ([0, 0, 0, 2, 2, 2, math.pi / 2], 1.0),
        "half shifted": ([1, 0, 0, 2, 2, 2, 0], 1 / 3),
        "side by side": ([2, 0, 0, 2, 2, 2, 0], 0.0),
        "corner to corner": ([2, 2, 0, 2, 2, 2, 0], 0.0),
        "inside, sharing a corner": ([-0.5, -0.5, 0, 1, 1, 2, 0], 0.25),
        "octagon": ([0, 0, 0, 2, 2, 2, math.pi / 4], (8 * math.sqrt(2) - 8) / (16 - 8 * math.sqrt(2))),
        "far away": ([100, 0, 0, 2, 2, 2, 0], 0.0),
        "padding": ([0, 0, 0, 0, 0, 0, 0], 0.0),
    }
    boxes = torch.tensor([box for box, _ in others.values()])
    result = bev_iou(torch.tensor([square]), boxes)[0]
    for found, (name, (_, wanted)) in zip(result.tolist(), others.items(), strict=True):
        assert found == pytest.approx(wanted, abs=1e-6), name
    padding = torch.zeros(2, 7)
    assert bev_iou(padding, padding).tolist() == [[0.0, 0.0], [0.0, 0.0]]


def test_boxes_that_share_sides_and_corners() -> None:
    # Whole sizes and places on a lattice, quarter turns: nearly every pair has sides on one line, facing or alike.
    generator = np.random.default_rng(8)
    place, size = generator.integers(-3, 4, (60, 3)), generator.integers(1, 4, (60, 3)) * 2
    boxes = np.concatenate((place, size, generator.integers(-4, 5, (60, 1)) * (math.pi / 2)), axis=1)
    for dtype in (torch.float64, torch.float32):
        tensor = torch.from_numpy(boxes).to(dtype)
        tolerance = {"atol": 1e-6, "rtol": 0}
        np.testing.assert_allclose(
            bev_iou(tensor, tensor).numpy(), expected(oracle.bev_iou, tensor, tensor), **tolerance
        )
        np.testing.assert_allclose(bev_iou(tensor, tensor).diagonal().numpy(), 1.0, **tolerance)


def test_heights_count_in_3d_only() -> None:
    low, high = torch.tensor([[0.0, 0, 0, 4, 2, 2, 0.3]]), torch.tensor([[0.0, 0, 1, 4, 2, 2, 0.3]])
    assert bev_iou(low, high).item() == pytest.approx(1.0, abs=1e-6)
    assert iou_3d(low, high).item() == pytest.approx(1 / 3, abs=1e-6)
    high[0, 2] = 2.5
    assert iou_3d(low, high).item() == 0.0


def test_host_and_device_agree() -> None:
    a, b = random_boxes(40, 4), random_boxes(40, 5)
    np.testing.assert_allclose(bev_iou(a, b).numpy(), host.bev_iou_matrix(a.numpy(), b.numpy()), atol=1e-7, rtol=0)
    np.testing.assert_allclose(iou_3d(a, b).numpy(), host.iou_3d_matrix(a.numpy(), b.numpy()), atol=1e-7, rtol=0)
    a, b = near_copies(300, 6)
    np.testing.assert_allclose(bev_iou_pairs(a, b).numpy(), host.bev_iou_pairs(a, b), atol=1e-7, rtol=0)


def test_no_boxes_and_wrong_shapes() -> None:
    assert bev_iou(torch.zeros(0, 7), torch.ones(3, 7)).shape == (0, 3)
    assert iou_3d(torch.ones(3, 7), torch.zeros(0, 7)).shape == (3, 0)
    with pytest.raises(ValueError, match=r"got shape \(3, 8\)"):
        bev_iou(torch.ones(3, 8), torch.ones(3, 7))
    with pytest.raises(ValueError, match="got 2 and 3"):
        bev_iou_pairs(torch.ones(2, 7), torch.ones(3, 7))
