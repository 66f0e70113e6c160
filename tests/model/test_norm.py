"""BatchNorm against torch's, and where torch's refuses."""

import pytest
import torch
from torch import nn

from detection3d.model.norm import EPSILON, MOMENTUM, BatchNorm


@pytest.mark.parametrize("shape", [(50, 4), (2, 4, 5, 3), (1, 4, 2, 1)])
def test_equals_torch(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    ours = BatchNorm(4)
    theirs = (nn.BatchNorm1d if len(shape) == 2 else nn.BatchNorm2d)(4, eps=EPSILON, momentum=MOMENTUM)
    for _ in range(3):
        values = torch.randn(shape, generator=generator) * 3 + 1
        torch.testing.assert_close(ours(values), theirs(values))
    assert ours.running_mean is not None
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict())
    ours.eval(), theirs.eval()
    torch.testing.assert_close(ours(values), theirs(values))


@pytest.mark.parametrize("rows", [0, 1])
def test_too_few_rows_take_the_running_statistics_and_leave_them(rows: int) -> None:
    norm = BatchNorm(3)
    norm(torch.randn(40, 3, generator=torch.Generator().manual_seed(1)) * 2 + 5)
    before = {name: value.clone() for name, value in norm.state_dict().items()}
    values = torch.full((rows, 3), 7.0, requires_grad=True)
    result = norm(values)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    torch.testing.assert_close(result, (values - norm.running_mean) / torch.sqrt(norm.running_var + EPSILON))
    torch.testing.assert_close(norm.state_dict(), before)
    result.sum().backward()
    assert norm.weight.grad is not None
