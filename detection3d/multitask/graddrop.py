"""Gradient sign dropout (GradDrop): Chen et al., NeurIPS 2020, arXiv 2010.06808, Algorithm 1, batch-separated."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from detection3d.multitask.method import Context, plain_sum, promote, weighted_sum
from detection3d.multitask.positions import Marginalize, position_gradients, position_shape


def identity(purity: Tensor) -> Tensor:
    """Keep the positive sign with a probability equal to the purity, as the paper does."""
    return purity


def graddrop(
    gradients: Sequence[Tensor] | Tensor,
    activation: Tensor,
    uniform: Tensor,
    *,
    leak: float | Sequence[float] = 0.0,
    keep: Callable[[Tensor], Tensor] = identity,
    marginalize: Marginalize = "batch",
    channel_dim: int = 1,
    preserve_norm: bool = True,
) -> Tensor:
    """Combine K tasks' gradients at a shared activation: at every position, one sign passes and the other is dropped.

    With G_i from `position_gradients`, S+ and S- the sums of their positive and negative parts and P = S+ / (S+ + S-),
    the positive sign is kept where `uniform < keep(P)`. M_i is 1 where G_i has the kept sign or is 0, and the result is
    sum_i (l_i + (1 - l_i) M_i) g_i: the mask multiplies the gradients g_i themselves, not G_i.

    With `preserve_norm` the result is scaled to the L2 norm of sum_i g_i, as the authors' code does (lingvo,
    core/graddrop.py). Then every stationary point of the plain sum is stationary here too, so the paper's theorem, that
    only joint minima of all losses are stable, holds for `preserve_norm=False` alone.

    Args:
        gradients: K tensors shaped like the activation, or one [K, ...]; combined in float64 if they are float64, else
            in float32.
        activation: A, [B, ...]; with "none" its values are unused.
        uniform: numbers in [0, 1), one a position: shaped like A without its marginalized dims, or with them as size 1.
        leak: l_i, the share of each task's gradient that is never dropped, in [0, 1]; one number or K.
        keep: monotone function from purity to the probability of the positive sign; odd about (1/2, 1/2).
        marginalize: what shares a position: "batch" (over the samples), "batch+space" (all but the channels) or "none".
        channel_dim: the activation's channel dim.
        preserve_norm: scale the result to the norm of the plain sum; no scaling where the result is 0.

    Returns:
        A tensor shaped like the activation, float64 or float32.

    Raises:
        ValueError: no gradients, shapes that do not fit, a leak outside [0, 1] or not one for each task.
    """
    gradients = promote(list(gradients))
    _check_shapes(gradients, activation)
    coefficients = sign_coefficients(
        position_gradients(gradients, activation, marginalize, channel_dim),
        uniform.reshape(position_shape(activation.shape, marginalize, channel_dim)),
        leak_by_task(leak, len(gradients)),
        keep,
    )
    result = weighted_sum(coefficients, gradients)
    return result * norm_ratio(plain_sum(gradients), result) if preserve_norm else result


def purity(position_gradients: Tensor) -> Tensor:
    """Return P = S+ / (S+ + S-), 1/2 where no task has a gradient.

    Equal to the paper's (1 + sum_i G_i / sum_i |G_i|) / 2, but without an epsilon that would drown small gradients: P
    is exactly 1 or 0 where the signs agree, at any scale.

    Args:
        position_gradients: G, [K, ...].

    Returns:
        [...], in [0, 1].
    """
    positive = position_gradients.clamp(min=0).sum(0)
    negative = (-position_gradients).clamp(min=0).sum(0)
    total = positive + negative
    return torch.where(total == 0, 0.5, positive / total)


def sign_coefficients(
    position_gradients: Tensor, uniform: Tensor, leak: Sequence[float], keep: Callable[[Tensor], Tensor]
) -> Tensor:
    """Return l_i + (1 - l_i) M_i, where M_i is 1 where G_i has the kept sign or is exactly 0.

    Args:
        position_gradients: G, [K, ...].
        uniform: shaped like one G_i.
        leak: K numbers in [0, 1].
        keep: from purity to the probability of the positive sign.

    Returns:
        [K, ...] in the type of G.
    """
    keep_positive = uniform < keep(purity(position_gradients))
    kept = torch.where(keep_positive, position_gradients >= 0, position_gradients <= 0)
    masks = kept.to(position_gradients.dtype)
    # The larger of l and M is l + (1 - l) M, as M is 0 or 1.
    return torch.stack([mask.clamp(min=share) for share, mask in zip(leak, masks, strict=True)])


def norm_ratio(reference: Tensor, result: Tensor) -> Tensor:
    """Return ||reference|| / ||result||, 1 where ||result|| is 0, in the type of `result`.

    Squares are summed in float64: those of a float32 neither overflow nor vanish there.
    """
    reference_norm = torch.linalg.vector_norm(reference, dtype=torch.float64)
    result_norm = torch.linalg.vector_norm(result, dtype=torch.float64)
    return torch.where(result_norm == 0, 1.0, reference_norm / result_norm).to(result.dtype)


@dataclass(frozen=True)
class GradDrop:
    """GradDrop as a method of the fork; the settings are those of `graddrop`.

    Attributes:
        leak: one share for all tasks, or a share by task name; a task that is not named has none.
        keep: "identity", or a function from purity to the probability of keeping the positive sign.
        marginalize: what shares a position.
        channel_dim: the activation's channel dim.
        preserve_norm: scale the result to the norm of the plain sum.
    """

    leak: float | Mapping[str, float] = 0.0
    keep: Literal["identity"] | Callable[[Tensor], Tensor] = "identity"
    marginalize: Marginalize = "batch"
    channel_dim: int = 1
    preserve_norm: bool = True

    def check_tasks(self, tasks: tuple[str, ...]) -> None:
        """Raise ValueError for a leak outside [0, 1] or for a task that does not exist."""
        if isinstance(self.leak, Mapping) and (unknown := sorted(set(self.leak) - set(tasks))):
            raise ValueError(f"leak names {', '.join(unknown)}; the tasks are {', '.join(tasks)}")
        leak_by_task(self._leak(tasks), len(tasks))

    def coefficients(self, gradients: Sequence[Tensor], activation: Tensor, context: Context) -> Tensor:
        """Return l_i + (1 - l_i) M_i at every position."""
        return sign_coefficients(
            position_gradients(gradients, activation, self.marginalize, self.channel_dim),
            self._uniform(activation, context),
            leak_by_task(self._leak(context.tasks), len(gradients)),
            self._keep(),
        )

    def combine(self, gradients: Sequence[Tensor], activation: Tensor, context: Context) -> Tensor:
        """Return `graddrop` of the gradients with the draw of the context."""
        return graddrop(
            gradients,
            activation,
            self._uniform(activation, context),
            leak=self._leak(context.tasks),
            keep=self._keep(),
            marginalize=self.marginalize,
            channel_dim=self.channel_dim,
            preserve_norm=self.preserve_norm,
        )

    def _uniform(self, activation: Tensor, context: Context) -> Tensor:
        shape = position_shape(activation.shape, self.marginalize, self.channel_dim)
        return context.uniform(shape, samples_apart=self.marginalize == "none")

    def _leak(self, tasks: tuple[str, ...]) -> float | list[float]:
        return [self.leak.get(task, 0.0) for task in tasks] if isinstance(self.leak, Mapping) else self.leak

    def _keep(self) -> Callable[[Tensor], Tensor]:
        return identity if self.keep == "identity" else self.keep


def leak_by_task(leak: float | Sequence[float], tasks: int) -> list[float]:
    """Return one leak for each of `tasks` tasks; ValueError unless there are that many, each in [0, 1]."""
    shares = [float(leak)] * tasks if isinstance(leak, int | float) else [float(share) for share in leak]
    if len(shares) != tasks:
        raise ValueError(f"{len(shares)} leaks for {tasks} tasks; give one number, or one for each task")
    if not all(0.0 <= share <= 1.0 for share in shares):
        raise ValueError(f"leak is {leak}; it must lie in [0, 1]")
    return shares


def _check_shapes(gradients: Sequence[Tensor], activation: Tensor) -> None:
    if not gradients:
        raise ValueError("graddrop needs the gradient of at least one task, found none")
    for index, gradient in enumerate(gradients):
        if gradient.shape != activation.shape:
            raise ValueError(
                f"gradient {index} has shape {tuple(gradient.shape)}, the activation {tuple(activation.shape)}; "
                "each gradient is taken at the activation itself"
            )
