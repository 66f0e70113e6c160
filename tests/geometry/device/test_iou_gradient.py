"""Gradients of the overlap against differences, and finite where the overlap has kinks."""

import math

import pytest
import torch

from detection3d.geometry.device.intersection import intersection_area
from detection3d.geometry.device.iou import bev_iou, centre_penalty, iou_3d_pairs
from tests.oracles import polygon_iou as oracle

STEP = 1e-6  # metres and radians, of the differences


def pairs(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Boxes as a detector would have them: the second is the first, moved, resized and turned somewhat."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(low: float, high: float, *shape: int) -> torch.Tensor:
        return low + (high - low) * torch.rand(*shape, generator=generator, dtype=torch.float64)

    first = torch.cat([uniform(-70, 70, count, 3), uniform(0.5, 6, count, 3), uniform(-4, 4, count, 1)], dim=1)
    change = torch.cat([uniform(-1, 1, count, 3), uniform(-0.3, 0.3, count, 3), uniform(-0.8, 0.8, count, 1)], dim=1)
    return first, first + change


def test_gradients_equal_differences_of_the_polygon_clip() -> None:
    a, b = pairs(60, 1)
    a.requires_grad_(), b.requires_grad_()
    overlap = iou_3d_pairs(a, b)
    assert (overlap > 0.05).double().mean() > 0.5
    gradients = torch.autograd.grad(overlap.sum(), (a, b))
    for side, gradient in enumerate(gradients):
        for row in range(len(a)):
            for column in range(7):
                boxes = [a[row].tolist(), b[row].tolist()]
                values = []
                for sign in (1, -1):
                    moved = [list(box) for box in boxes]
                    moved[side][column] += sign * STEP
                    values.append(oracle.iou_3d(*moved))
                slope = (values[0] - values[1]) / (2 * STEP)
                assert float(gradient[row, column]) == pytest.approx(slope, abs=3e-6)


def test_gradcheck_of_both_orders() -> None:
    a, b = pairs(12, 2)
    a.requires_grad_(), b.requires_grad_()
    assert torch.autograd.gradcheck(iou_3d_pairs, (a, b), atol=1e-6)
    assert torch.autograd.gradcheck(centre_penalty, (a, b), atol=1e-6)
    assert torch.autograd.gradgradcheck(iou_3d_pairs, (a, b), atol=1e-4)  # as a gradient penalty at the fork takes it


def awkward(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    square = [1.0, 2, 0, 2, 2, 2, 0.3]
    others = [
        square,
        [1, 2, 0, 2, 2, 2, 0.3 + math.pi / 2],
        [1, 2, 2, 2, 2, 2, 0.3],  # standing on it
        [1 + 2 * math.cos(0.3), 2 + 2 * math.sin(0.3), 0, 2, 2, 2, 0.3],  # side by side
        [1, 2, 0, 1, 1, 1, 0.3],
        [1, 2, 0, 1e-6, 1e-6, 1e-6, 0.3],
        [1, 2, 0, 0, 2, 2, 0.3],
        [1, 2, 0, 0, 0, 0, 0.3],
        [1, 2, 0, 150, 1e-3, 2, 0.3 + 1e-9],
        [1 + 1e-9, 2 - 1e-9, 0, 2, 2, 2, 0.3 + 1e-12],
        [500, -900, 40, 3, 3, 3, 1],
    ]
    second = torch.tensor(others, dtype=dtype)
    return torch.tensor([square], dtype=dtype).expand_as(second).clone(), second


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_are_finite_and_bounded_at_kinks(dtype: torch.dtype) -> None:
    first, second = awkward(dtype)
    nothing = torch.zeros(1, 7, dtype=dtype)
    for a, b in ((first, second), (second, first), (nothing, nothing)):
        a, b = a.clone().requires_grad_(), b.clone().requires_grad_()
        loss = (1 - iou_3d_pairs(a, b) + centre_penalty(a, b)).sum()
        loss.backward()
        for gradient in (a.grad, b.grad):
            assert gradient is not None
            assert gradient.isfinite().all()
        a64, b64 = a.detach().double().requires_grad_(), b.detach().double().requires_grad_()
        intersection_area(a64, b64).sum().backward()
        for boxes in (a64, b64):
            assert boxes.grad is not None
            perimeter = 2 * boxes[:, 3:5].detach().sum(1, keepdim=True)
            reach = 0.5 * boxes[:, 3:5].detach().norm(dim=1, keepdim=True)
            assert (boxes.grad.abs() <= perimeter * reach.clamp(min=1) + 1e-6).all()


def test_descending_on_the_loss_brings_a_box_onto_another() -> None:
    truth = torch.tensor([[1.0, 2, 0.5, 4.5, 1.9, 1.6, 0.4]])
    offset = torch.tensor([[3.0, 4.0, 1.0, -1.0, 0.6, 0.5, 0.0]]).requires_grad_()  # apart from it
    optimizer = torch.optim.Adam([offset], lr=0.03)
    assert iou_3d_pairs(truth + offset, truth) == 0
    for _ in range(400):
        optimizer.zero_grad()
        (1 - iou_3d_pairs(truth + offset, truth) + centre_penalty(truth + offset, truth)).sum().backward()
        assert offset.grad is not None
        offset.grad[:, 6] = 0
        optimizer.step()
    assert float(iou_3d_pairs(truth + offset, truth).detach()) > 0.95


def test_the_centre_penalty_by_hand() -> None:
    one = torch.tensor([[0.0, 0, 0, 2, 2, 2, 0]])
    assert centre_penalty(one, one).item() == 0
    aside = torch.tensor([[3.0, 0, 0, 2, 2, 2, 0]])
    assert centre_penalty(aside, one).item() == pytest.approx(9 / (25 + 4 + 4))
    turned = torch.tensor([[3.0, 0, 1, 2, 2, 2, math.pi / 4]])  # reaches to 3 + sqrt(2), as wide as 2 sqrt(2)
    assert centre_penalty(turned, one).item() == pytest.approx(10 / ((4 + math.sqrt(2)) ** 2 + 8 + 9), rel=1e-5)
    both = [torch.tensor([[math.cos(2.0) * 3, math.sin(2.0) * 3, 1, 2, 2, 2, math.pi / 4 + 2]]), one.clone()]
    both[1][0, 6] = 2.0
    assert centre_penalty(*both).item() == pytest.approx(centre_penalty(turned, one).item(), rel=1e-5)


def test_pairs_are_the_diagonal_and_a_matrix_can_be_differentiated() -> None:
    a, b = pairs(5, 3)
    a.requires_grad_()
    matrix = bev_iou(a, b)
    (from_matrix,) = torch.autograd.grad(matrix.diagonal().sum(), a)
    flat = [value.clone() for value in (a.detach(), b)]
    for value in flat:
        value[:, 2], value[:, 5] = 0, 1
    flat[0].requires_grad_()
    overlap = iou_3d_pairs(*flat)
    torch.testing.assert_close(overlap.detach(), matrix.diagonal().detach())
    (from_pairs,) = torch.autograd.grad(overlap.sum(), flat[0])
    torch.testing.assert_close(from_pairs[:, [0, 1, 3, 4, 6]], from_matrix[:, [0, 1, 3, 4, 6]])
