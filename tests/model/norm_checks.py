"""The fused batch normalisation against torch's operations: on a GPU, or here in Triton's interpreter.

    TRITON_INTERPRET=1 python -m tests.model.norm_checks

The interpreter runs the kernels' own code on the CPU; how they are compiled, only a GPU can tell.
"""

import copy

import torch
from torch import Tensor, nn

from detection3d.model import norm_kernels
from detection3d.model.fused_norm import FusedNorm
from detection3d.model.norm import BatchNorm

SHAPES = ((9, 4), (13, 5), (700, 16), (5000, 64), (300, 128), (2, 6, 9, 7), (1, 256, 5, 4))
TOLERANCE = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}  # of the largest magnitude


def check_training(device: str) -> None:
    """Outputs, gradients and running statistics over two steps, in all types, with and without residual and ReLU."""
    for shape in SHAPES:
        for dtype in TOLERANCE:
            for relu in (False, True):
                for with_residual in (False, True):
                    _check(shape, dtype, relu, with_residual, device)


def check_means_far_from_zero(device: str) -> None:
    """Values whose deviation is a thousandth of their mean, once the running mean is near it."""
    values = 1000 + torch.randn(4000, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    norm = BatchNorm(8).to(device)
    assert norm.running_mean is not None
    norm.running_mean.fill_(990.0)
    found = _fused(norm, values.float().to(device), None, relu=False)
    expected = (values - values.mean(0)) / (values.var(0, correction=0) + norm.eps).sqrt()
    assert (found.cpu().double() - expected).abs().max() < 2e-3  # float32 values near 1000 have steps of 6e-5
    assert found.mean(0).abs().max() < 1e-4


def check_few_rows(device: str) -> None:
    """No row and one row take the running statistics, and leave them."""
    for rows in (0, 1):
        norm = BatchNorm(3, relu=True).to(device)
        before = copy.deepcopy(norm.state_dict())
        values = torch.full((rows, 3), 7.0, device=device, requires_grad=True)
        result = _fused(norm, values, None, relu=True)
        assert result.shape == values.shape
        torch.testing.assert_close(result, norm.eval()(values.detach()))
        norm.train()
        result.sum().backward()
        assert norm.weight.grad is not None
        assert values.grad is not None
        torch.testing.assert_close(values.grad, torch.full_like(values, norm.eps + 1).rsqrt())
        torch.testing.assert_close(dict(norm.state_dict()), dict(before))


def check_nan_comes_through(device: str) -> None:
    """A loss scaler must see an overflow."""
    values = torch.randn(10, 3, generator=torch.Generator().manual_seed(0)).to(device)
    values[4, 1] = torch.inf
    assert _fused(BatchNorm(3, relu=True).to(device), values, None, relu=True)[:, 1].isnan().any()


def check_strided_gradient(device: str) -> None:
    """The gradient of a part of a concatenation, whose rows lie apart."""
    values = torch.randn(2, 8, 3, 5, generator=torch.Generator().manual_seed(1)).to(device)
    wide = torch.randn(2, 20, 3, 5, generator=torch.Generator().manual_seed(2)).to(device)
    wide = wide.contiguous(memory_format=torch.channels_last)
    _compare(values, None, torch.float32, True, wide[:, 6:14], device)


def check_layouts(device: str) -> None:
    """Rows that lie column by column, and maps that are not channels-last."""
    generator = torch.Generator().manual_seed(7)
    columns = torch.randn(6, 30, generator=generator).to(device).t()
    maps = torch.randn(2, 6, 4, 3, generator=generator).to(device)
    for values, same in ((columns, columns.contiguous()), (maps, maps.contiguous(memory_format=torch.channels_last))):
        found = []
        for given in (values.detach().requires_grad_(), same.detach().requires_grad_()):
            result = _fused(BatchNorm(6, relu=True).to(device), given, given.detach() / 2, relu=True)
            result.square().sum().backward()
            found.append((result, given.grad))
        torch.testing.assert_close(found[0], found[1])


def check_second_derivative(device: str) -> None:
    """The gradient's norm, differentiated, as a gradient penalty wants it."""
    found = []
    for fused in (True, False):
        values = torch.randn(30, 5, generator=torch.Generator().manual_seed(3)).to(device).requires_grad_()
        norm = BatchNorm(5, relu=True).to(device)
        result = _fused(norm, values, None, relu=True) if fused else norm.activation(norm._normalize(values))
        (gradient,) = torch.autograd.grad((result**3).sum(), values, create_graph=True)
        gradient.square().sum().backward()
        assert values.grad is not None
        found.append((values.grad, norm.weight.grad))
    torch.testing.assert_close(found[0], found[1], rtol=1e-3, atol=1e-3)


def check_shares(device: str) -> None:
    """Two ranks' shares of the rows, one of them empty in turn, give the statistics and gradients of all rows."""
    generator = torch.Generator().manual_seed(5)
    values, gradient = (torch.randn(900, 6, generator=generator).to(device) for _ in range(2))
    weight, bias = torch.rand(6, generator=generator).to(device), torch.rand(6, generator=generator).to(device)
    for cut in (0, 300):
        found = []
        for shares in ((values,), (values[:cut], values[cut:])):
            norm = BatchNorm(6).to(device)
            assert norm.running_mean is not None
            assert norm.running_var is not None
            assert norm.num_batches_tracked is not None
            running = norm.running_mean, norm.running_var, norm.num_batches_tracked
            parts = [norm_kernels.sums(share, norm.running_mean) for share in shares]
            totals = [norm_kernels.added(part, len(share)) for part, share in zip(parts, shares, strict=True)]
            total = torch.stack(totals).sum(0)
            several = len(shares) > 1
            count = total[-1] if several else None
            whole = total[None, :-1] if several else parts[0]
            numbers = norm_kernels.finish(whole, len(shares[0]), count, running[0], weight, bias, running, 0.1, 1e-3)
            slopes = [
                norm_kernels.gradient_sums(slope, share, None, numbers)
                for slope, share in zip(gradient.split([len(share) for share in shares]), shares, strict=True)
            ]
            added = [norm_kernels.added(slope, len(share)) for slope, share in zip(slopes, shares, strict=True)]
            back = torch.stack(added).sum(0)[None, :-1] if several else slopes[0]
            factors = [
                norm_kernels.finish_gradient(slope, back, len(share), count, numbers, weight)
                for slope, share in zip(slopes, shares, strict=True)
            ]
            found.append([numbers, *running, torch.stack([item[:2] for item in factors]).sum(0), factors[-1][2:]])
        torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-4)


def check_repeated(device: str) -> None:
    """The same bits every time."""
    values = torch.randn(30_000, 16, generator=torch.Generator().manual_seed(4)).to(device)
    first, second = (_fused(BatchNorm(16).to(device), values, None, relu=False) for _ in range(2))
    assert torch.equal(first, second)


CHECKS = (
    check_training,
    check_means_far_from_zero,
    check_few_rows,
    check_nan_comes_through,
    check_strided_gradient,
    check_layouts,
    check_second_derivative,
    check_shares,
    check_repeated,
)


def _check(shape: tuple[int, ...], dtype: torch.dtype, relu: bool, with_residual: bool, device: str) -> None:
    generator = torch.Generator().manual_seed(sum(shape))
    values, residual, gradient = (torch.randn(shape, generator=generator).to(device) for _ in range(3))
    _compare(values * 2 + 1, residual if with_residual else None, dtype, relu, gradient, device)


def _compare(
    values: Tensor, residual: Tensor | None, dtype: torch.dtype, relu: bool, gradient: Tensor, device: str
) -> None:
    layout = torch.channels_last if values.ndim == 4 else torch.contiguous_format
    values = values.to(dtype).contiguous(memory_format=layout)
    fused = BatchNorm(values.shape[1], relu=relu).to(device)
    nn.init.uniform_(fused.weight, 0.5, 2)
    nn.init.uniform_(fused.bias, -1, 1)
    plain = copy.deepcopy(fused).double()
    for _ in range(2):
        ours = [values.clone().requires_grad_()]
        if residual is not None:
            ours.append(residual.to(dtype).clone(memory_format=layout).requires_grad_())
        theirs = [tensor.detach().double().requires_grad_() for tensor in ours]
        result = _fused(fused, ours[0], ours[1] if len(ours) > 1 else None, relu=relu)
        normalized = plain._normalize(theirs[0])
        if len(theirs) > 1:
            normalized = normalized + theirs[1]
        # The mask of the result that was rounded: which side of 0 a value is on is no question of accuracy.
        expected = torch.where(result.detach() > 0, normalized, 0.0) if relu else normalized
        assert result.dtype == dtype
        assert result.is_contiguous(memory_format=layout)
        result.backward(gradient.to(dtype))
        expected.backward(gradient.to(dtype).double())
        _close(result, expected, dtype)
        for mine, reference in zip([*ours, *fused.parameters()], [*theirs, *plain.parameters()], strict=True):
            assert mine.grad is not None
            assert reference.grad is not None
            _close(mine.grad, reference.grad, dtype if mine in set(ours) else torch.float32, few=True)
        fused.zero_grad()
        plain.zero_grad()
    assert fused.running_mean is not None
    assert plain.running_mean is not None
    for name, value in fused.state_dict().items():
        torch.testing.assert_close(value.double(), plain.state_dict()[name].double(), rtol=1e-5, atol=1e-6)


def _close(ours: Tensor, reference: Tensor, dtype: torch.dtype, *, few: bool = False) -> None:
    error = (ours.detach().double() - reference.detach()).abs().max()
    limit = TOLERANCE[dtype] * (10 if few else 1)
    assert error <= limit * max(float(reference.detach().abs().max()), 1e-3), (ours.shape, dtype, float(error))


def _fused(norm: BatchNorm, values: Tensor, residual: Tensor | None, *, relu: bool) -> Tensor:
    result = FusedNorm.apply(values, norm.weight, norm.bias, residual, norm, relu, norm_kernels)
    assert isinstance(result, Tensor)
    return result


if __name__ == "__main__":
    for check in CHECKS:
        check("cpu")
        print(check.__name__, flush=True)  # noqa: T201
