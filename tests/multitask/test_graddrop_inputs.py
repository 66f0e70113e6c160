"""GradDrop as a pure function on every kind of input: types over their ranges, sizes, memory formats, wrong ones."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from detection3d.multitask import GradDrop, Marginalize, graddrop
from tests.multitask.problems import MODES, draw, problem
from tests.oracles.graddrop_loop import graddrop_loop


@pytest.mark.parametrize("preserve_norm", [True, False])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_overflow_comes_through(mode: Marginalize, preserve_norm: bool, bad: float) -> None:
    # Oracle 18: at the element itself, whichever sign is kept.
    for uniform in (0.0, 0.999):
        gradients, activation, full = problem(9)
        gradients[1, 1, 2, 0, 0] = bad
        result = graddrop(
            gradients,
            activation,
            draw(torch.full_like(full, uniform), mode),
            marginalize=mode,
            preserve_norm=preserve_norm,
        )
        assert not math.isfinite(result[1, 2, 0, 0].item())


# Powers of two, so that the oracle can work near 1: the largest and the smallest magnitudes whose sums over two samples
# and three tasks, and whose values of 1/8, are still normal numbers of the type.
RANGES = [
    (torch.float16, 2.0**12),
    (torch.float16, 2.0**-11),
    (torch.bfloat16, 2.0**124),
    (torch.bfloat16, 2.0**-123),
    (torch.float32, 2.0**124),
    (torch.float32, 2.0**-123),
    (torch.float64, 2.0**1020),
    (torch.float64, 2.0**-1019),
    (torch.float64, 2.0**-600),
]


@pytest.mark.parametrize("preserve_norm", [True, False])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("dtype", "scale"), RANGES)
def test_every_type_over_its_own_range(
    dtype: torch.dtype, scale: float, mode: Marginalize, preserve_norm: bool
) -> None:
    gradients, activation, uniform = problem(15)
    gradients = (gradients.sign() * gradients.abs().clamp(1 / 8, 2)).to(dtype)
    uniform, leak = draw(uniform, mode), [0.0, 0.25, 0.0]
    found = graddrop(
        gradients * scale, activation.to(dtype), uniform, leak=leak, marginalize=mode, preserve_norm=preserve_norm
    )
    wanted = graddrop_loop(
        list(gradients.double().numpy()), activation.numpy(), uniform.numpy(), leak, mode, 1, preserve_norm
    )
    exact = 1e-13 if dtype == torch.float64 else 2e-6
    np.testing.assert_allclose(found.double().numpy() / scale, wanted, rtol=exact, atol=exact)
    plain = gradients.double().sum(0).numpy()
    assert not np.allclose(wanted, plain)


@pytest.mark.parametrize("preserve_norm", [True, False])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("tasks", [1, 2, 3, 40])
def test_any_number_of_tasks_and_samples(tasks: int, batch: int, mode: Marginalize, preserve_norm: bool) -> None:
    # Oracle 11: with one sample "batch" is still a comparison of sgn(A) g_i.
    gradients, activation, uniform = problem(16, tasks, (batch, 3, 4))
    uniform, leak = draw(uniform, mode), [k / 80 for k in range(tasks)]
    options = {"leak": leak, "marginalize": mode, "preserve_norm": preserve_norm}
    found = graddrop(gradients, activation, uniform, **options)
    wanted = graddrop_loop(list(gradients.numpy()), activation.numpy(), uniform.numpy(), leak, mode, 1, preserve_norm)
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-12, atol=1e-13)
    assert torch.equal(graddrop(list(gradients), activation, uniform, **options), found)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("preserve_norm", [True, False])
def test_memory_formats(mode: Marginalize, preserve_norm: bool) -> None:
    gradients, activation, uniform = problem(17, shape=(2, 4, 3, 6))
    uniform, options = draw(uniform, mode), {"marginalize": mode, "preserve_norm": preserve_norm, "leak": 0.125}
    wanted = graddrop(list(gradients), activation, uniform, **options)

    def every_other(values: Tensor) -> Tensor:
        return values.repeat_interleave(2, -1)[..., ::2]

    def last(values: Tensor) -> Tensor:
        return values.to(memory_format=torch.channels_last)

    def transposed(values: Tensor) -> Tensor:
        return values.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0)

    exact = {"rtol": 1e-15, "atol": 1e-15}  # sums over samples and space may be taken in another order
    for layout in (every_other, last, transposed):
        found = graddrop([layout(g) for g in gradients], layout(activation), layout(uniform), **options)
        torch.testing.assert_close(found, wanted, **exact)
        mixed = graddrop([layout(gradients[0]), *gradients[1:]], activation, uniform, **options)
        torch.testing.assert_close(mixed, wanted, **exact)
    found = graddrop([last(g) for g in gradients], last(activation), uniform, **options)
    assert found.is_contiguous(memory_format=torch.channels_last)
    # A gradient of a sum holds one number for all places.
    flat = torch.tensor(0.5).double().expand(2, 4, 3, 6)
    torch.testing.assert_close(
        graddrop([flat, *gradients], activation, uniform, **options),
        graddrop([flat.contiguous(), *gradients], activation, uniform, **options),
        **exact,
    )


@pytest.mark.parametrize("mode", MODES)
def test_uniform_with_and_without_size_one_dims(mode: Marginalize) -> None:
    gradients, activation, uniform = problem(11)
    uniform = draw(uniform, mode)
    shape = {"batch": (3, 4, 2), "batch+space": (3,), "none": (2, 3, 4, 2)}[mode]
    kept = graddrop(gradients, activation, uniform, marginalize=mode)
    assert torch.equal(graddrop(gradients, activation, uniform.reshape(shape), marginalize=mode), kept)


def test_working_types() -> None:
    gradients, activation, uniform = problem(12)
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        result = graddrop(gradients.to(dtype), activation.to(dtype), draw(uniform, "batch"))
        assert result.dtype == torch.float32
        # Only the inputs were rounded: in between everything is float32.
        exact = graddrop(gradients.to(dtype).double(), activation.to(dtype), draw(uniform, "batch"))
        torch.testing.assert_close(result.double(), exact, rtol=1e-5, atol=1e-6)
    assert graddrop(gradients, activation, draw(uniform, "batch")).dtype == torch.float64


def test_inputs_stay_as_they_are() -> None:
    gradients, activation, uniform = problem(13)
    copies = gradients.clone(), activation.clone(), uniform.clone()
    graddrop(gradients, activation, draw(uniform, "batch"), leak=0.3)
    assert all(torch.equal(*pair) for pair in zip((gradients, activation, uniform), copies, strict=True))


def test_wrong_input() -> None:
    gradients, activation, uniform = problem(14)
    uniform = draw(uniform, "batch")
    with pytest.raises(ValueError, match="found none"):
        graddrop([], activation, uniform)
    with pytest.raises(ValueError, match=r"gradient 0 has shape \(1, 3, 4, 2\)"):
        graddrop([gradients[0, :1]], activation, uniform)
    with pytest.raises(ValueError, match="2 leaks for 3 tasks"):
        graddrop(gradients, activation, uniform, leak=[0, 0])
    with pytest.raises(ValueError, match=r"leak is 1\.5"):
        graddrop(gradients, activation, uniform, leak=1.5)
    with pytest.raises(ValueError, match='marginalize is "space"'):
        graddrop(gradients, activation, uniform, marginalize="space")
    with pytest.raises(ValueError, match="leak names boxes; the tasks are box, class"):
        GradDrop(leak={"boxes": 0.5}).check_tasks(("box", "class"))
