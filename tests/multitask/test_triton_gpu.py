"""The fused kernels against the torch operations that they stand for, on a GPU."""

import pytest
import torch

from detection3d.multitask import GradDrop, Method, RandomSign, TaskFork, fused

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.fixture(autouse=True)
def _kernels_work():
    assert fused.kernels_for(torch.zeros(1, device="cuda")) is not None


def test_the_kernels_do_what_torch_does() -> None:
    from tests.multitask import kernel_checks  # imports Triton

    for check in (kernel_checks.check_draw, kernel_checks.check_signs, kernel_checks.check_solvers):
        check("cuda")


def test_many_tasks_are_left_to_torch() -> None:
    size = fused.MOST_TASKS
    assert fused.solvers_for(torch.eye(size, device="cuda")) is not None
    assert fused.solvers_for(torch.eye(size + 1, device="cuda")) is None


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
