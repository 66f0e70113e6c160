"""Passes replayed as CUDA graphs against the same passes launched kernel by kernel."""

import copy

import pytest
import torch
from torch import Tensor, nn

from detection3d.model.graphs import GraphedPass
from detection3d.model.norm import BatchNorm

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


class Net(nn.Module):
    """Two branches of one convolution each, so that a pass has several outputs."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Sequential(nn.Conv2d(4, 16, 3, padding=1, bias=False), BatchNorm(16, relu=True))
        self.ends = nn.ModuleList([nn.Conv2d(16, 3, 1), nn.Conv2d(16, 5, 1)])

    def forward(self, values: Tensor) -> tuple[Tensor, ...]:
        shared = self.stem(values)
        return tuple(end(shared) for end in self.ends)


def inputs(step: int, size: int = 9) -> Tensor:
    generator = torch.Generator().manual_seed(step)
    values = torch.randn(3, 4, size, size, generator=generator).cuda()
    return values.contiguous(memory_format=torch.channels_last).requires_grad_()


def step(run: nn.Module, net: nn.Module, values: Tensor) -> list[Tensor]:
    """Return the outputs and all gradients of a pass."""
    net.zero_grad(set_to_none=True)
    outputs = run(values)
    sum((output.float() ** 2).mean() for output in outputs).backward()
    return [*outputs, values.grad, *(weight.grad for weight in net.parameters())]


@pytest.fixture
def nets() -> tuple[Net, Net]:
    plain = Net().cuda().to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    torch.backends.cudnn.allow_tf32 = False
    return plain, copy.deepcopy(plain)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_replay_does_what_the_module_does(nets: tuple[Net, Net], dtype: torch.dtype) -> None:
    plain, recorded = nets
    graphed = GraphedPass(recorded)
    tolerance = 2e-5 if dtype == torch.float32 else 3e-2
    for number in range(4):
        with torch.autocast("cuda", dtype=dtype, enabled=dtype != torch.float32):
            expected = step(plain, plain, inputs(number))
            found = step(graphed, recorded, inputs(number))
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
    statistics = dict(plain.named_buffers())
    for name, value in recorded.named_buffers():
        torch.testing.assert_close(value, statistics[name], rtol=tolerance, atol=tolerance)
    assert recorded.stem[1].num_batches_tracked == 4  # the recording's own passes don't count


def test_what_was_not_recorded_is_computed_as_usual(nets: tuple[Net, Net]) -> None:
    plain, recorded = nets
    graphed = GraphedPass(recorded)
    step(graphed, recorded, inputs(0))
    step(plain, plain, inputs(0))
    for run, net in ((graphed, recorded), (plain, plain)):
        net.eval()
        with torch.no_grad():
            run(inputs(7))
        net.train()
    other = inputs(1, size=7)
    torch.testing.assert_close(
        step(graphed, recorded, other), step(plain, plain, inputs(1, size=7)), rtol=1e-5, atol=1e-5
    )
    torch.testing.assert_close(step(graphed, recorded, inputs(2)), step(plain, plain, inputs(2)), rtol=2e-5, atol=2e-5)
    with torch.no_grad():
        torch.testing.assert_close(graphed(inputs(3)), plain(inputs(3)), rtol=1e-5, atol=1e-5)


def test_no_warning_at_all(nets: tuple[Net, Net], recwarn: pytest.WarningsRecorder) -> None:
    _, recorded = nets
    graphed = GraphedPass(recorded)
    for number in range(3):
        step(graphed, recorded, inputs(number))
    assert [str(warning.message) for warning in recwarn.list] == []
