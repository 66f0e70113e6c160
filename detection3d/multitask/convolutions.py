"""Convolutions whose gradients are differentiated once more, at the price of convolutions.

Where torch differentiates the gradient of a convolution's input, it computes the weight's share as a convolution that
has the whole output map for its kernel, at which cuDNN takes ten times as long as at a weight gradient. A weight
gradient is what it is: the input's gradient is linear in the output's gradient and in the weight, so its derivative
with regard to the one is the convolution itself and with regard to the other the convolution's weight gradient.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.library import Library

_convolve = torch.ops.aten.convolution.default
_backward = torch.ops.aten.convolution_backward.default


@contextmanager
def cheap_second_derivatives() -> Iterator[None]:
    """Make second derivatives cheap for the gradients of convolutions that are recorded within (`create_graph=True`).

    For every kind of convolution, on every device; the values are torch's, up to rounding. While it lasts, all threads
    of the process record their convolutions' gradients this way, which changes none of them.
    """
    library = Library("aten", "IMPL")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that torch's own derivative is replaced, which is the purpose
            library.impl("convolution_backward", _recorded_backward, "Autograd")
        yield
    finally:
        library._destroy()  # pyright: ignore[reportPrivateUsage] nothing public takes a registration back


class _Settings(NamedTuple):
    """What `aten::convolution_backward` takes after its tensors, but for the mask of wanted gradients."""

    bias_sizes: list[int] | None
    stride: list[int]
    padding: list[int]
    dilation: list[int]
    transposed: bool
    output_padding: list[int]
    groups: int


def _recorded_backward(grad: Tensor, features: Tensor, weight: Tensor, *settings: Any) -> tuple[Tensor | None, ...]:
    """Stand in for `aten::convolution_backward` where autograd would record it."""
    *told, wanted = settings
    return _ConvolutionBackward.apply(grad, features, weight, _Settings(*told), wanted)


class _ConvolutionBackward(torch.autograd.Function):
    """From the output's gradient G, the features X and the weight W to the gradients of X, W and the bias."""

    @staticmethod
    def forward(
        ctx: Any, grad: Tensor, features: Tensor, weight: Tensor, settings: _Settings, wanted: list[bool]
    ) -> tuple[Tensor | None, ...]:
        """Compute what torch does; the gradients that are not wanted are None."""
        ctx.save_for_backward(grad, features, weight)
        ctx.settings = settings
        ctx.set_materialize_grads(False)
        with torch._C._AutoDispatchBelowAutograd():  # pyright: ignore[reportPrivateUsage] else this calls itself
            return _backward(grad, features, weight, *settings, wanted)

    @staticmethod
    def backward(ctx: Any, *towards: Tensor | None) -> tuple[Tensor | None, ...]:  # pyright: ignore
        """Return the gradients of G, X and W, given those of the three results."""
        grad, features, weight = ctx.saved_tensors
        settings: _Settings = ctx.settings
        of_features, of_weight, of_bias = towards
        for_grad, for_features, for_weight, *_ = ctx.needs_input_grad
        shape = settings[1:]
        shares: list[Tensor] = []  # of G's gradient
        result_features = result_weight = None
        if of_features is not None:
            if for_grad:
                shares.append(_convolve(of_features, weight, None, *shape))
            if for_weight:
                result_weight = _backward(grad, of_features, weight, *settings, [False, True, False])[1]
        if of_weight is not None:
            if for_grad:
                shares.append(_convolve(features, of_weight, None, *shape))
            if for_features:
                result_features = _backward(grad, features, of_weight, *settings, [True, False, False])[0]
        if of_bias is not None and for_grad:
            shares.append(of_bias.reshape(1, -1, *[1] * (grad.dim() - 2)).expand_as(grad))
        return sum(shares[1:], shares[0]) if shares else None, result_features, result_weight, None, None
