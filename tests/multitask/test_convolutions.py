"""Second derivatives of convolutions against torch's own."""

from collections.abc import Sequence
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import grad
from torch.nn.functional import conv2d

from detection3d.multitask import GradientPenalty, TaskFork
from detection3d.multitask.convolutions import cheap_second_derivatives

LAYERS = {
    "padded": lambda: nn.Conv2d(3, 4, 3, padding=1),
    "strided": lambda: nn.Conv2d(3, 4, 3, stride=2, padding=1),
    "dilated": lambda: nn.Conv2d(3, 4, 3, dilation=2),
    "grouped": lambda: nn.Conv2d(4, 6, (3, 1), groups=2),
    "without bias": lambda: nn.Conv2d(3, 4, 1, bias=False),
    "transposed": lambda: nn.ConvTranspose2d(3, 4, 3, stride=2, padding=1, output_padding=1),
    "transposed, grouped": lambda: nn.ConvTranspose2d(4, 2, 3, groups=2, dilation=2),
    "line": lambda: nn.Conv1d(3, 2, 5, padding=2),
    "volume": lambda: nn.Conv3d(2, 3, 2, stride=(1, 2, 1)),
}


def _second(layer: nn.Module, features: Tensor, *, cheap: bool) -> list[Tensor]:
    """Return the derivatives of a function of all of a convolution's gradients, which is not linear in them."""
    wanted = [features, *layer.parameters()]
    first = _first(layer(features).sin().square().sum(), wanted, cheap=cheap)
    return list(grad(sum(g.pow(3).sum() for g in first), wanted))


def _first(loss: Tensor, wanted: Sequence[Tensor], *, cheap: bool) -> tuple[Tensor, ...]:
    with cheap_second_derivatives() if cheap else nullcontext():
        return grad(loss, wanted, create_graph=True)


def _close(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> None:
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11 * float(other.abs().max()))


@pytest.mark.parametrize("kind", LAYERS)
def test_they_are_torchs(kind: str) -> None:
    torch.manual_seed(0)
    layer = LAYERS[kind]().double()
    channels = layer.in_channels
    size = {nn.Conv1d: (9,), nn.Conv3d: (5, 4, 5)}.get(type(layer), (7, 6))
    features = torch.randn(2, channels, *size, dtype=torch.float64, requires_grad=True)
    _close(_second(layer, features, cheap=True), _second(layer, features, cheap=False))


@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2)])
def test_some_of_the_gradients_alone(wanted: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    features, weight, bias = (torch.randn(s, dtype=torch.float64) for s in ((2, 3, 6, 6), (4, 3, 3, 3), (4,)))
    arguments = [features, weight, bias]
    for number in wanted:
        arguments[number].requires_grad_()
    chosen = [arguments[number] for number in wanted]

    def second(cheap: bool) -> list[Tensor]:
        first = _first(conv2d(features, weight, bias).sin().sum(), chosen, cheap=cheap)
        return list(grad(sum(g.pow(3).sum() for g in first), chosen))

    _close(second(True), second(False))


def test_they_can_be_differentiated_once_more() -> None:
    torch.manual_seed(0)
    features = torch.randn(1, 2, 4, 4, dtype=torch.float64)
    weight = torch.randn(2, 2, 3, 3, dtype=torch.float64, requires_grad=True)

    def second(cheap: bool) -> Tensor:
        (first,) = _first(conv2d(features, weight).pow(4).sum(), [weight], cheap=cheap)
        (again,) = grad(first.square().sum(), weight, create_graph=True)
        return grad(again.square().sum(), weight)[0]

    _close([second(True)], [second(False)])


def test_torchs_own_come_back_afterwards_even_from_an_error() -> None:
    features = torch.randn(1, 2, 4, 4, requires_grad=True)
    weight = torch.randn(2, 2, 3, 3, requires_grad=True)

    def recorded() -> str:
        (first,) = grad(conv2d(features, weight).square().sum(), features, create_graph=True)
        return type(first.grad_fn).__name__

    before = recorded()
    with cheap_second_derivatives():
        assert recorded() == "_ConvolutionBackwardBackward"
    with pytest.raises(RuntimeError, match="Mismatch in shape"), cheap_second_derivatives():
        grad(conv2d(features, weight).sum(), features, torch.ones(2, 3), create_graph=True)
    assert recorded() == before == "ConvolutionBackwardBackward0"


def test_it_gives_no_warning(recwarn: pytest.WarningsRecorder) -> None:
    with cheap_second_derivatives():
        pass
    assert not recwarn.list


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_penalty_on_a_gpu_is_the_cpus() -> None:
    def gradients(device: str) -> list[Tensor]:
        torch.manual_seed(0)
        shared, net = torch.randn(2, 3, 16, 16).double(), nn.ModuleDict()
        for task in ("a", "b"):
            net[task] = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Softplus(), nn.Conv2d(4, 1, 1)).double()
        net.to(device)
        shared = shared.to(device).requires_grad_()
        fork = TaskFork(("a", "b"), GradientPenalty(weight=0.3)).to(device)
        features = fork(shared)
        losses = fork.weigh({task: net[task](features[task]).square().sum() for task in fork.tasks}, features)
        sum(losses.values()).backward()
        return [tensor.grad.cpu() for tensor in (shared, *net.parameters())]

    _close(gradients("cuda"), gradients("cpu"))
