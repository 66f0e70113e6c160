"""What reaches spconv's kernels, and whether they may take TF32; stand-ins for them run without a GPU."""

from types import SimpleNamespace

import pytest
import torch

from detection3d.errors import UserError
from detection3d.model.sparse import spconv_backend
from detection3d.model.sparse.spconv_backend import Precision, SpconvBackend, SpconvPlan

THIN, WIDE = (64, 64), (64, 65)  # C_in and C_out, either side of the widest layer that keeps float32
VOXELS = 50


class Kernels:
    """Multiplies as a 1 x 1 x 1 kernel would, with TF32's operands where it may, and notes every call."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, bool, torch.dtype, int]] = []  # pass, TF32, dtype, C_in

    def note(self, name: str, features: torch.Tensor, weight: torch.Tensor, plan: SpconvPlan, tf32: bool) -> None:
        assert features.dtype == weight.dtype
        assert features.is_contiguous()
        assert weight.is_contiguous()
        assert (plan.pair_fwd.item(), plan.pair_bwd.item()) == (1, 2)
        self.calls.append((name, tf32, features.dtype, features.shape[1]))

    def forward(
        self, features: torch.Tensor, weight: torch.Tensor, plan: SpconvPlan, tuner: str, *, tf32: bool
    ) -> tuple[torch.Tensor, torch.Tensor, int]:
        self.note("forward", features, weight, plan, tf32)
        product = operand(features, tf32) @ operand(weight, tf32).flatten(1).T
        return product.to(features.dtype), torch.tensor(7), 32

    def backward(
        self,
        features: torch.Tensor,
        weight: torch.Tensor,
        gradient: torch.Tensor,
        plan: SpconvPlan,
        output_mask: torch.Tensor,
        width: int,
        tuner: str,
        *,
        tf32: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        self.note("backward", features, weight, plan, tf32)
        assert (output_mask.item(), width) == (7, 32)
        assert gradient.dtype == features.dtype
        assert gradient.is_contiguous()
        arriving = operand(gradient, tf32)
        to_weight = (arriving.T @ operand(features, tf32)).view_as(weight)
        return (arriving @ operand(weight, tf32).flatten(1)).to(features.dtype), to_weight.to(weight.dtype)


def operand(values: torch.Tensor, tf32: bool) -> torch.Tensor:
    if tf32:
        values = (values.view(torch.int32) & ~0x1FFF).view(torch.float32)  # as a tensor core reads them
    return values.double()


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> Kernels:
    """Stand in for spconv, in a process that has not computed yet."""
    stand_in = Kernels()
    library = SimpleNamespace(calls=stand_in, tuner="")
    monkeypatch.setattr(spconv_backend, "_library", lambda: library)
    monkeypatch.setattr(spconv_backend, "_claimed", [])
    return stand_in


def plan() -> SpconvPlan:
    indices = torch.zeros(VOXELS, 4, dtype=torch.int32)
    return SpconvPlan(
        output_indices=indices,
        output_shape=(1, 1, 1),
        input_indices=indices,
        input_shape=(1, 1, 1),
        pair_fwd=torch.tensor(1),
        pair_bwd=torch.tensor(2),
        pair_mask_fwd_splits=[],
        pair_mask_bwd_splits=[],
        mask_argsort_fwd_splits=[],
        mask_argsort_bwd_splits=[],
        masks=[],
        submanifold=True,
    )


def operands(c_in: int, c_out: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(c_out)
    features = torch.randn(VOXELS, c_in, generator=generator, requires_grad=True)
    return features, torch.randn(c_out, 1, 1, 1, c_in, generator=generator, requires_grad=True)


def largest_error(found: torch.Tensor | None, expected: torch.Tensor) -> float:
    assert found is not None
    return float((found.detach() - expected).abs().max() / expected.abs().max())


def test_tf32_is_on_for_wide_layers_alone_in_both_passes(kernels: Kernels) -> None:
    """The backward passes come in another order than the forward ones."""
    backend = SpconvBackend("tf32")
    layers = [operands(*THIN), operands(*WIDE), operands(WIDE[1], WIDE[0])]
    results = [backend.convolve(*layer, plan()) for layer in layers]
    assert [call[1] for call in kernels.calls] == [False, True, True]
    assert [call[3] for call in kernels.calls] == [64, 2 * 64, 2 * 65]
    kernels.calls.clear()
    for result in results:
        result.sum().backward()
    assert [call[:2] for call in kernels.calls] == [("backward", False), ("backward", True), ("backward", True)]


@pytest.mark.parametrize(
    ("precision", "shape", "smallest", "largest"),
    [
        ("float32", WIDE, 0.0, 1e-6),
        ("tf32", THIN, 0.0, 1e-6),
        ("tf32", WIDE, 2e-5, 5e-4),
        ("float16", THIN, 1e-4, 2e-3),
    ],
)
def test_errors_of_product_and_gradients(
    kernels: Kernels, precision: Precision, shape: tuple[int, int], smallest: float, largest: float
) -> None:
    features, weight = operands(*shape)
    result = SpconvBackend(precision).convolve(features, weight, plan())
    cotangent = torch.randn(result.shape, generator=torch.Generator().manual_seed(0)).double()
    (result * cotangent.float()).sum().backward()
    exact_features, exact_weight = features.detach().double(), weight.detach().flatten(1).double()
    errors = [
        largest_error(result, exact_features @ exact_weight.T),
        largest_error(features.grad, cotangent @ exact_weight),
        largest_error(weight.grad, (cotangent.T @ exact_features).view_as(weight)),
    ]
    assert result.dtype == torch.float32
    assert smallest <= min(errors)
    assert max(errors) <= largest
    assert {call[2] for call in kernels.calls} == {torch.float16 if precision == "float16" else torch.float32}


def test_autocast_decides_nothing(kernels: Kernels) -> None:
    """spconv's own autograd function would cast the operands."""
    features, weight = operands(*WIDE)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        SpconvBackend("tf32").convolve(features, weight, plan()).sum().backward()
    assert [call[2] for call in kernels.calls] == [torch.float32, torch.float32]


@pytest.mark.parametrize(("first", "second"), [("float32", "tf32"), ("tf32", "float32")])
def test_one_process_keeps_one_precision(kernels: Kernels, first: Precision, second: Precision) -> None:
    SpconvBackend(first).convolve(*operands(*THIN), plan())
    SpconvBackend("float16").convolve(*operands(*THIN), plan())  # has kernels of its own
    with pytest.raises(UserError, match=r"with TF32 (on|off); use another process"):
        SpconvBackend(second).convolve(*operands(*THIN), plan())
    assert len(kernels.calls) == 2
