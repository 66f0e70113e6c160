"""The fused kernels against the torch operations that they stand for, on a GPU."""

import pytest
import torch

from detection3d.multitask import CAGrad, GradDrop, Method, RandomSign, TaskFork, fused
from detection3d.multitask.draw import stream_words, uniform_at, uniform_from_words
from detection3d.multitask.graddrop import sign_coefficients
from detection3d.multitask.keep import Half, Identity
from detection3d.multitask.mgda import shortest_in_hull
from detection3d.multitask.pcgrad import projected_coefficients

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
WORDS = stream_words(3, "fork")


@pytest.fixture(autouse=True)
def _kernels_work():
    assert fused.kernels_for(torch.zeros(1, device="cuda")) is not None


@pytest.mark.parametrize("step", [0, 5, 2**33 + 7])
@pytest.mark.parametrize("shape", [(0, 3), (1, 7), (3, 5, 7), (4, 64, 100, 101)])
def test_the_draw_has_the_bits_of_the_cpu(step: int, shape: tuple[int, ...]) -> None:
    steps = {device: torch.tensor(step, device=device) for device in ("cpu", "cuda")}
    samples = torch.arange(shape[0]) * 2**34 + 5
    index = torch.arange(50) * 2**31 + 3
    for sample_index in (None, samples):
        wanted = uniform_from_words(shape, WORDS, steps["cpu"], sample_index)
        on_cuda = None if sample_index is None else sample_index.cuda()
        assert torch.equal(uniform_from_words(shape, WORDS, steps["cuda"], on_cuda).cpu(), wanted)
    assert torch.equal(uniform_at(index.cuda(), WORDS, steps["cuda"]).cpu(), uniform_at(index, WORDS, steps["cpu"]))


@pytest.mark.parametrize("tasks", [1, 2, 3, 4, 40])
@pytest.mark.parametrize("keep", [Identity(), Half()])
@pytest.mark.parametrize("leak", [0.0, 0.1])
@pytest.mark.parametrize("scale", [1e-37, 1.0, 1e37])
def test_sign_coefficients(tasks: int, keep, leak: float, scale: float) -> None:
    generator = torch.Generator().manual_seed(tasks)
    gradients = torch.randn(tasks, 30, 333, generator=generator) * scale / 4
    gradients *= torch.rand(tasks, 30, 333, generator=generator) > 0.3
    uniform = torch.rand(30, 333, generator=generator)
    found = sign_coefficients(gradients.cuda(), uniform.cuda(), [leak], keep).cpu()
    wanted = sign_coefficients(gradients, uniform, [leak], keep)
    # Of many tasks the sums of the signs are added up in another order, which can move a purity by its last bit.
    assert int((found != wanted).sum()) <= (0 if tasks <= 4 else tasks)


@pytest.mark.parametrize("tasks", [1, 2, 3, 5, 40, 64])
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_solvers(tasks: int, scale: float) -> None:
    gradients = torch.randn(tasks, 90, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * scale
    if tasks > 2:
        gradients[1] = 0
    gram = gradients @ gradients.T
    order = torch.rand(tasks, tasks, generator=torch.Generator().manual_seed(1)).argsort(1)
    close = {"rtol": 1e-9, "atol": 1e-9}
    torch.testing.assert_close(shortest_in_hull(gram.cuda(), 50).cpu(), shortest_in_hull(gram, 50), **close)
    kernels = fused.kernels_for(gram.cuda())
    assert kernels is not None
    torch.testing.assert_close(
        kernels.projected_sum(gram.cuda(), order.cuda()).cpu(), projected_coefficients(gram, order).sum(0), **close
    )
    method = CAGrad(0.4)
    norm = gram.mean().clamp(min=0).sqrt()
    torch.testing.assert_close(method._solve(gram.cuda(), norm.cuda()).cpu(), method._solve(gram, norm), **close)


@pytest.mark.parametrize(
    "method",
    [
        GradDrop(),
        GradDrop(marginalize="batch+space", leak=0.2),
        GradDrop(marginalize="none"),
        GradDrop(leak={"a": 0.5}),
        RandomSign(),
    ],
)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_the_fork_gives_what_it_gives_on_the_cpu(method: Method, memory_format: torch.memory_format) -> None:
    generator = torch.Generator().manual_seed(0)
    gradients = torch.randn(3, 4, 6, 20, 21, generator=generator)
    shared = torch.randn(4, 6, 20, 21, generator=generator)
    results = []
    for device in ("cpu", "cuda"):
        fork = TaskFork(("a", "b", "c"), method, seed=7).to(device)
        leaf = shared.to(device).to(memory_format=memory_format).detach().requires_grad_()
        features = fork(leaf)
        weights = [gradient.to(device).to(memory_format=memory_format) for gradient in gradients]
        sum((features[task] * weight).sum() for task, weight in zip(features, weights, strict=True)).backward()
        assert leaf.grad is not None
        assert leaf.grad.is_contiguous(memory_format=memory_format)
        results.append(leaf.grad.cpu())
    differing = (results[0] - results[1]).abs() > 1e-5 * results[0].abs().max()
    # G is summed in another order, so that a draw within rounding of the purity may fall on the other side.
    assert int(differing.sum()) <= 12
