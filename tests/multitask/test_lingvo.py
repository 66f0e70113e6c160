"""The mode that reproduces lingvo's released layer, against its formula written out in numpy."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from detection3d.multitask import LingvoGradDrop, LingvoOptions, TaskFork, graddrop, lingvo_graddrop, uniform
from tests.oracles.graddrop_lingvo import lingvo_loop

TASKS = ("class", "box", "heading")
LEAK = [0.0, 0.3, 1.0]


def problem(seed: int, scale: float = 1.0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients [3, 2, 3, 4], an activation with zeros and values below epsilon, uniform numbers [2, 3, 4]."""
    generator = torch.Generator().manual_seed(seed)
    shape = (2, 3, 4)
    gradients = torch.randn(3, *shape, generator=generator, dtype=torch.float64) * scale
    gradients *= torch.rand(3, *shape, generator=generator) > 0.2
    activation = torch.randn(shape, generator=generator, dtype=torch.float64)
    activation.view(-1)[:6] = torch.tensor([0.0, 3e-8, -3e-8, 1e-7, -1e-7, 2e-7])
    numbers = torch.rand(shape, generator=generator, dtype=torch.float64)
    return gradients.to(dtype), activation.to(dtype), numbers


def oracle(gradients, activation: Tensor, numbers: Tensor, leak: list[float], options: LingvoOptions, total=None):
    return lingvo_loop(
        [None if gradient is None else gradient.double().numpy() for gradient in gradients],
        activation.double().numpy(),
        numbers.double().numpy(),
        leak,
        function=options.keep_prob_function,
        scale=options.keep_prob_function_scale,
        sign_only=options.use_input_sign_only,
        keep_norm=options.keep_gradnorm_constant,
        over_batch=options.marginalize_batch_dim,
        epsilon=options.epsilon,
        inverted=options.inverted_norm,
        total=None if total is None else total.numpy(),
    )


@pytest.mark.parametrize("function", ["linear", "sigmoid"])
@pytest.mark.parametrize("sign_only", [True, False])
@pytest.mark.parametrize("over_batch", [True, False])
@pytest.mark.parametrize("norm", ["kept", "inverted", "free"])
def test_equals_the_formula(function, sign_only: bool, over_batch: bool, norm: str) -> None:
    # Oracle 20. Near and below epsilon too, where the formula is not that of the paper.
    for scale, slope, epsilon in itertools.product([1.0, 1e-7, 1e-9], [1.0, 2.5], [1e-7, 1e-3]):
        options = LingvoOptions(function, slope, sign_only, norm != "free", over_batch, epsilon, norm == "inverted")
        gradients, activation, numbers = problem(1, scale)
        numbers = numbers[:1] if over_batch else numbers
        found = lingvo_graddrop(list(gradients), activation, numbers, leak=LEAK, options=options)
        wanted = oracle(gradients, activation, numbers, LEAK, options)
        assert np.abs(wanted).max() > 0
        np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-12, atol=1e-14 * np.abs(wanted).max())


def test_the_norm_of_all_losses_is_kept() -> None:
    # Lingvo's norm is that of the gradient which arrives, also from losses that the layer does not know.
    gradients, activation, numbers = problem(2)
    total = gradients.sum(0) + 3
    found = lingvo_graddrop(list(gradients), activation, numbers[:1], leak=LEAK, total=total)
    assert found.norm().item() == pytest.approx(total.norm().item(), rel=1e-6)
    wanted = oracle(gradients, activation, numbers[:1], LEAK, LingvoOptions(), total)
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-12)


@pytest.mark.parametrize("over_batch", [True, False])
def test_graddrop_converges_to_it_for_large_gradients(over_batch: bool) -> None:
    # Oracle 20: the difference is that of the epsilons and falls with the size of the gradients.
    gradients, activation, numbers = problem(3)
    activation = torch.where(activation.abs() < 0.01, 0.5, activation)
    numbers = numbers[:1] if over_batch else numbers
    options = LingvoOptions(marginalize_batch_dim=over_batch)
    differences = []
    for scale in (1.0, 1e3, 1e6):
        theirs = lingvo_graddrop(list(gradients * scale), activation, numbers, leak=LEAK, options=options)
        # The sign of A is in lingvo's comparison even where the batch is not summed.
        signed = gradients * scale if over_batch else gradients * scale * activation.sign()
        mode = "batch" if over_batch else "none"
        ours = graddrop(signed, activation, numbers, leak=LEAK, marginalize=mode)
        ours = ours if over_batch else ours * activation.sign()
        differences.append(((ours - theirs).norm() / ours.norm()).item())
    assert 1e-9 < differences[0] < 1e-6
    assert differences[1] < 2e-3 * differences[0]
    assert differences[2] < 1e-12


@pytest.mark.parametrize(("size", "purity"), [(1e-7, 0.929), (1e-8, 0.688), (1e-9, 0.528)])
def test_defect_1_epsilon_drops_small_gradients_that_agree(size: float, purity: float) -> None:
    gradients, activation = torch.full((3, 1, 1000), size, dtype=torch.float64), torch.ones(1, 1000)
    numbers = torch.linspace(0, 1 - 2**-24, 1000)[None]
    options = LingvoOptions(keep_gradnorm_constant=False)
    theirs = lingvo_graddrop(list(gradients), activation, numbers, leak=[0.0] * 3, options=options)
    assert (theirs != 0).double().mean().item() == pytest.approx(purity, abs=0.002)  # a grid of 1000
    assert torch.equal(graddrop(gradients, activation, numbers), gradients.sum(0))


def test_defect_2_leaks_move_up_where_a_gradient_is_none() -> None:
    gradients, activation, numbers = problem(4)
    options = LingvoOptions(keep_gradnorm_constant=False)
    moved = lingvo_graddrop([None, *gradients[1:]], activation, numbers[:1], leak=[0.9, 0.2, 0.6], options=options)
    wanted = lingvo_graddrop(list(gradients[1:]), activation, numbers[:1], leak=[0.9, 0.2], options=options)
    assert torch.equal(moved, wanted)
    np.testing.assert_allclose(
        moved.numpy(),
        oracle([None, *gradients[1:]], activation, numbers[:1], [0.9, 0.2, 0.6], options),
        rtol=1e-12,
        atol=1e-15,
    )
    right = lingvo_graddrop(list(gradients[1:]), activation, numbers[:1], leak=[0.2, 0.6], options=options)
    assert not torch.allclose(moved, right)


def test_defect_3_the_norm_was_inverted() -> None:
    gradients, activation, numbers = problem(9)
    arguments = (list(gradients), activation, numbers[:1])
    free, now, then = (
        lingvo_graddrop(*arguments, leak=[0.0] * 3, options=options)
        for options in (
            LingvoOptions(keep_gradnorm_constant=False),
            LingvoOptions(),
            LingvoOptions(inverted_norm=True),
        )
    )
    ratio = (gradients.sum(0).norm() / free.norm()).item()
    assert abs(ratio - 1) > 0.05
    torch.testing.assert_close(now, free * ratio, rtol=1e-6, atol=0)
    torch.testing.assert_close(then, free / ratio, rtol=1e-6, atol=0)


def fork_gradient(method: LingvoGradDrop, gradients: Tensor, activation: Tensor, step: int = 5) -> Tensor:
    fork, leaf = TaskFork(TASKS, method, seed=2), activation.clone().requires_grad_()
    fork.set_step(step)
    features = fork(leaf)
    sum((features[task] * gradient).sum() for task, gradient in zip(TASKS, gradients, strict=True)).backward()
    assert leaf.grad is not None
    return leaf.grad


@pytest.mark.parametrize("over_batch", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_at_the_fork(over_batch: bool, dtype: torch.dtype) -> None:
    gradients, activation, _ = problem(6, dtype=dtype)
    options = LingvoOptions(marginalize_batch_dim=over_batch)
    samples = None if over_batch else torch.arange(2)
    numbers = uniform((1 if over_batch else 2, 3, 4), 2, 5, "fork", "cpu", samples)
    for leak, shares in ((0.25, [0.25] * 3), ({"heading": 1.0, "box": 0.3}, LEAK)):
        found = fork_gradient(LingvoGradDrop(leak, options), gradients, activation)
        wanted = lingvo_graddrop(list(gradients), activation, numbers, leak=shares, options=options)
        assert torch.equal(found, wanted)
        assert found.dtype == dtype


def test_overflow_comes_through_and_spares_the_other_samples() -> None:
    # A NaN stays where it is; the task's other samples are kept, as the layer's comparisons have it.
    gradients, activation, numbers = problem(7)
    gradients[1, 0, 1, 2] = math.nan
    options = LingvoOptions(keep_gradnorm_constant=False)
    found = lingvo_graddrop(list(gradients), activation, numbers[:1], leak=[0.0] * 3, options=options)
    assert found.isnan().nonzero().tolist() == [[0, 1, 2]]
    wanted = oracle(gradients, activation, numbers[:1], [0.0] * 3, options)
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-12, atol=1e-15)
    assert lingvo_graddrop(list(gradients), activation, numbers[:1], leak=[0.0] * 3).isnan().all()


def test_wrong_input() -> None:
    gradients, activation, numbers = problem(8)
    with pytest.raises(ValueError, match='keep_prob_function is "cubic"; choose "linear" or "sigmoid"'):
        LingvoOptions("cubic")
    with pytest.raises(ValueError, match="epsilon is -1;"):
        LingvoOptions(epsilon=-1)
    with pytest.raises(ValueError, match="2 leaks for 3 losses"):
        lingvo_graddrop(list(gradients), activation, numbers[:1], leak=[0.0, 0.0])
    with pytest.raises(ValueError, match=r"leak is 1\.5"):
        lingvo_graddrop(list(gradients), activation, numbers[:1], leak=[0.0, 0.0, 1.5])
    with pytest.raises(ValueError, match="found none"):
        lingvo_graddrop([None, None], activation, numbers[:1], leak=[0.0, 0.0])
    with pytest.raises(ValueError, match=r"a gradient has shape \(1, 3, 4\)"):
        lingvo_graddrop([gradients[0, :1]], activation, numbers[:1], leak=[0.0])
    with pytest.raises(ValueError, match=r"uniform has shape \(2, 3, 4\); it takes \(1, 3, 4\)"):
        lingvo_graddrop(list(gradients), activation, numbers, leak=[0.0] * 3)
    with pytest.raises(ValueError, match="leak names wheel; the tasks are class, box, heading"):
        TaskFork(TASKS, LingvoGradDrop({"wheel": 1.0}))
    with pytest.raises(ValueError, match=r'leak of task "box" is 2\.0'):
        TaskFork(TASKS, LingvoGradDrop({"box": 2.0}))
