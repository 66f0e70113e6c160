"""The fused kernels against the torch operations that they stand for: on a GPU, or here in Triton's interpreter.

    TRITON_INTERPRET=1 python -m tests.multitask.kernel_checks

The interpreter runs the kernels' own code on the CPU; how they are compiled, only a GPU can tell.
"""

import math

import torch
from torch import Tensor

from detection3d.multitask import CAGrad, triton_kernels
from detection3d.multitask.draw import stream_words, uniform_at, uniform_from_words
from detection3d.multitask.graddrop import sign_coefficients
from detection3d.multitask.keep import Half, Identity
from detection3d.multitask.mgda import shortest_in_hull
from detection3d.multitask.pcgrad import projected_coefficients

WORDS = stream_words(3, "fork")
STEPS = (0, 5, 2**33 + 7)
SHAPES = ((0, 3), (1, 7), (3, 5, 7), (4, 64, 10, 11))
TASKS = (1, 2, 3, 4, 5, 8, 16, 40, 64)
SEEDS = 20


def check_draw(device: str) -> None:
    """All three ways of numbering positions, to the bit."""
    for number in STEPS:
        on_cpu, step = torch.tensor(number), torch.tensor(number, device=device)
        for shape in SHAPES:
            strided = (torch.arange(2 * shape[0]) * 2**34 + 5)[::2]  # as a column of a larger tensor would come
            for samples in (None, strided):
                there = None if samples is None else samples.to(device)
                found = triton_kernels.draw(shape, WORDS, step, there, None)
                assert torch.equal(found.cpu(), uniform_from_words(shape, WORDS, on_cpu, samples)), (number, shape)
        index = torch.arange(100).reshape(20, 5)[:, 1:4] * 2**31 + 3
        found = triton_kernels.draw(tuple(index.shape), WORDS, step, None, index.to(device))
        assert torch.equal(found.cpu(), uniform_at(index, WORDS, on_cpu)), number


def check_signs(device: str) -> None:
    """Over scales, with zeros, and with what is not finite."""
    for tasks in TASKS:
        generator = torch.Generator().manual_seed(tasks)
        gradients = torch.randn(tasks, 30, 53, generator=generator)
        gradients *= torch.rand(tasks, 30, 53, generator=generator) > 0.3
        uniform = torch.rand(30, 53, generator=generator)
        for scale in (1e-37, 1.0, 1e37):
            for keep in (Identity(), Half()):
                for leak in (0.0, 0.1):
                    _check_signs(gradients * scale / 4, uniform, leak, keep, device)
        for value in (math.inf, -math.inf, math.nan):
            damaged = gradients.clone()
            damaged[0, 3:9] = value
            _check_signs(damaged, uniform, 0.0, Identity(), device)


def _check_signs(gradients: Tensor, uniform: Tensor, leak: float, keep: Identity | Half, device: str) -> None:
    purity = isinstance(keep, Identity)
    found = triton_kernels.sign_coefficients(gradients.to(device), uniform.to(device), leak, purity).cpu()
    wanted = sign_coefficients(gradients, uniform, [leak], keep)
    # Of many tasks the sums of the signs are added up in another order, which can move a purity by its last bit.
    tasks = len(gradients)
    assert int((found != wanted).sum()) <= (0 if tasks <= 4 else tasks), (tasks, leak, keep)


def check_solvers(device: str) -> None:
    """MGDA's, PCGrad's and CAGrad's, over scales and with a task without a gradient."""
    for tasks in TASKS:
        for scale in (1e-30, 1.0, 1e30):
            # Where threads could disagree over a tie depends on the numbers; of many tasks one case holds enough ties,
            # and in the interpreter nothing can disagree.
            for seed in range(SEEDS if device == "cuda" and 2 < tasks <= 16 else 1):
                _check_solvers(tasks, scale, seed, device)


def _check_solvers(tasks: int, scale: float, seed: int, device: str) -> None:
    close = {"rtol": 1e-9, "atol": 1e-9}
    method = CAGrad(0.4)
    generator = torch.Generator().manual_seed(seed)
    gradients = torch.randn(tasks, 90, generator=generator, dtype=torch.float64) * scale
    if tasks > 2:
        gradients[1] = 0
    gram = gradients @ gradients.T
    order = torch.rand(tasks, tasks, generator=generator).argsort(1)
    norm = gram.mean().clamp(min=0).sqrt()
    there = gram.to(device)
    _check_hull(gram, triton_kernels.shortest_in_hull(there, 50).cpu())
    projected = triton_kernels.projected_sum(there, order.to(device)).cpu()
    torch.testing.assert_close(projected, projected_coefficients(gram, order).sum(0), **close)
    simplex = triton_kernels.conflict_averse(there, method.c, method.iterations).cpu()
    torch.testing.assert_close(simplex, method._solve(gram, norm), **close)


def _check_hull(gram: Tensor, found: Tensor) -> None:
    """Of many tasks, ties that fall otherwise lead another way to a vector as short; of few, all ways have ended."""
    wanted = shortest_in_hull(gram, 50)
    assert float(found.min()) >= 0
    torch.testing.assert_close(found.sum(), wanted.sum(), rtol=1e-12, atol=0)
    torch.testing.assert_close(found @ gram @ found, wanted @ gram @ wanted, rtol=1e-7, atol=0)
    if len(gram) <= 5:
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)


if __name__ == "__main__":
    for check in (check_draw, check_signs, check_solvers):
        check("cpu")
