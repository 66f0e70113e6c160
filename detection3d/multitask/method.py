"""What the fork asks of a method, and the plain sum, which is the baseline."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from detection3d.multitask.draw import uniform_from_words
from detection3d.multitask.positions import Marginalize, working_dtype


@dataclass(frozen=True)
class Context:
    """What a method may know beside the gradients and the activation.

    Attributes:
        tasks: names of the K tasks, in the order of the gradients.
        words: the stream of the draw, from seed and fork name (`draw.stream_words`).
        step: int64 scalar, the optimizer step of the forward.
        sample_index: int64 [B], global index of each sample; None takes the place in the batch.
    """

    tasks: tuple[str, ...]
    words: tuple[int, int]
    step: Tensor
    sample_index: Tensor | None = None

    def uniform(self, shape: Sequence[int], samples_apart: bool) -> Tensor:
        """Draw float32 numbers in [0, 1), the same at every call within a step.

        Args:
            shape: shape of the result.
            samples_apart: whether dim 0 of `shape` is the batch: then each sample's numbers go with its global index.
        """
        if not samples_apart:
            return uniform_from_words(shape, self.words, self.step)
        index = self.sample_index
        if index is None:
            index = torch.arange(shape[0], device=self.step.device)
        return uniform_from_words(shape, self.words, self.step, index)


class Method(Protocol):
    """A way to settle the tasks' gradients at the fork.

    Every method has the form sum_i c_i g_i, possibly rescaled as a whole. A masking method's c_i depend on the
    position, a weighting method's do not. Implementations are frozen dataclasses: nothing is kept between calls.
    """

    @property
    def marginalize(self) -> Marginalize:
        """What counts as one position, for the method itself and for telemetry."""
        ...

    @property
    def channel_dim(self) -> int:
        """The activation's channel dim."""
        ...

    def check_tasks(self, tasks: tuple[str, ...]) -> None:
        """Raise ValueError where the settings do not fit the names of the tasks."""
        ...

    def coefficients(self, gradients: Sequence[Tensor], activation: Tensor, context: Context) -> Tensor:
        """Return the c_i, a tensor [K, ...] whose entries broadcast onto the g_i."""
        ...

    def combine(self, gradients: Sequence[Tensor], activation: Tensor, context: Context) -> Tensor:
        """Return the one gradient that goes on to the backbone.

        Args:
            gradients: K tensors shaped like the activation, in float32 or float64 (`working_dtype`).
            activation: A, [B, ...], of any floating type.
            context: names, step and draw.

        Returns:
            A tensor shaped like the activation, of the gradients' type.
        """
        ...


@dataclass(frozen=True)
class Sum:
    """The plain sum of the gradients: what training without a fork does.

    Attributes:
        marginalize: what telemetry counts as one position.
        channel_dim: the activation's channel dim, likewise.
    """

    marginalize: Marginalize = "batch"
    channel_dim: int = 1

    def check_tasks(self, tasks: tuple[str, ...]) -> None:
        """Accept any names."""

    def coefficients(self, gradients: Sequence[Tensor], activation: Tensor, context: Context) -> Tensor:
        """Return 1 for every task, shaped [K, 1, ...]."""
        return gradients[0].new_ones((len(gradients),) + (1,) * activation.ndim)

    def combine(self, gradients: Sequence[Tensor], activation: Tensor, context: Context) -> Tensor:
        """Return the sum, added up in the order of the tasks."""
        return plain_sum(gradients)


def plain_sum(gradients: Sequence[Tensor]) -> Tensor:
    """Add up K tensors of one shape, from the first to the last."""
    result = gradients[0]
    for gradient in gradients[1:]:
        result = result + gradient
    return result


def weighted_sum(coefficients: Tensor, gradients: Sequence[Tensor]) -> Tensor:
    """Return sum_i c_i g_i, added up in the same order as `plain_sum`.

    Coefficients multiply and never select, so that an inf or NaN in a gradient comes through a coefficient of 0 as NaN
    and a loss scaler sees it.
    """
    # The gradient comes first, so that the products have its memory format, which the convolutions before work in.
    return plain_sum([gradient * coefficient for coefficient, gradient in zip(coefficients, gradients, strict=True)])


def promote(gradients: Sequence[Tensor]) -> list[Tensor]:
    """Return the gradients in their `working_dtype`."""
    return [gradient.to(working_dtype(gradient.dtype)) for gradient in gradients]
