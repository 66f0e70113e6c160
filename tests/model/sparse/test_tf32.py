"""Rounding to TF32 against the bits, and what the split weights leave of the error."""

import numpy as np
import torch

from detection3d.model.sparse.tf32 import round_gradient, round_to_tf32, tf32_operands


def numbers(count: int = 4000) -> torch.Tensor:
    generator = np.random.default_rng(0)
    return torch.from_numpy((generator.standard_normal(count) * 10.0 ** generator.uniform(-20, 20, count)).astype("f"))


def cut(values: torch.Tensor) -> torch.Tensor:
    """What a tensor core does with its operands: keep sign, exponent and 10 bits of the mantissa."""
    return (values.contiguous().view(torch.int32) & ~0x1FFF).view(torch.float32)


def test_rounds_to_the_nearest_number_of_eleven_bits() -> None:
    values = numbers()
    rounded = round_to_tf32(values)
    assert torch.equal(cut(rounded), rounded)
    mantissa, exponent = np.frexp(values.double().numpy())
    expected = np.ldexp(np.round(mantissa * 2**11) / 2**11, exponent)
    np.testing.assert_array_equal(rounded.double().numpy(), expected)


def test_special_values() -> None:
    assert torch.equal(round_to_tf32(torch.tensor([0.0, 1.0, -2.5])), torch.tensor([0.0, 1.0, -2.5]))
    assert not round_to_tf32(torch.tensor([float("inf"), float("nan")])).isfinite().any()


def test_weights_lose_nothing_and_gradients_pass() -> None:
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(300, 16, generator=generator, requires_grad=True)
    weight = torch.randn(8, 1, 1, 1, 16, generator=generator, requires_grad=True)
    left, right = tf32_operands(features, weight)
    product = cut(left).double() @ cut(right).double().flatten(1).T
    exact = round_to_tf32(features).double() @ weight.double().flatten(1).T
    assert float(((product - exact).abs().max() / exact.abs().max()).detach()) < 1e-6
    cotangent = torch.randn(300, 8, generator=generator)
    (round_gradient(left @ right.flatten(1).T) * cotangent).sum().backward()
    arriving = round_to_tf32(cotangent)
    assert features.grad is not None
    assert weight.grad is not None
    torch.testing.assert_close(features.grad, arriving @ weight.detach().flatten(1), rtol=1e-5, atol=1e-5)
    expected = arriving.T @ round_to_tf32(features.detach())
    torch.testing.assert_close(weight.grad.flatten(1), expected, rtol=1e-5, atol=1e-4)
