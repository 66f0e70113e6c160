"""Gradient sign dropout (GradDrop): Chen et al., NeurIPS 2020, arXiv 2010.06808, Algorithm 1, batch-separated."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from torch import Tensor

from detection3d.multitask.arithmetic import norm_ratio, plain_sum, stack_gradients, weighted_sum
from detection3d.multitask.fused import kernels_for
from detection3d.multitask.keep import Half, Identity, Keep, check_keep
from detection3d.multitask.method import Combination, Context, Method
from detection3d.multitask.positions import DensePositions, Marginalize
from detection3d.multitask.ranks import Ranks
from detection3d.multitask.schedule import Scheduled, check_share, value_at


def graddrop(
    gradients: Sequence[Tensor] | Tensor,
    activation: Tensor,
    uniform: Tensor,
    *,
    leak: float | Sequence[float] = 0.0,
    keep: Keep = Identity(),  # noqa: B008 frozen, without state
    marginalize: Literal["batch", "batch+space", "none"] = "batch",
    channel_dim: int = 1,
    preserve_norm: bool = True,
) -> Tensor:
    """Combine K tasks' gradients at a shared activation: at every position, one sign passes and the other is dropped.

    With G_i the gradient at a position (times sgn(A) and summed over the marginalized dims), S+ and S- the sums of the
    positive and negative parts of the G_i and P = S+ / (S+ + S-), the positive sign is kept where `uniform < keep(P)`.
    M_i is 1 where G_i has the kept sign or is 0, and the result is sum_i (l_i + (1 - l_i) M_i) g_i: the mask multiplies
    the gradients g_i themselves, not G_i.

    With `preserve_norm` the result is scaled to the L2 norm of sum_i g_i, as the authors' code does (lingvo,
    core/graddrop.py). Then every stationary point of the plain sum is stationary here too, so the paper's theorem, that
    only joint minima of all losses are stable, holds for `preserve_norm=False` alone.

    Args:
        gradients: K tensors shaped like the activation, or one [K, ...]; combined in float64 if they are float64, else
            in float32.
        activation: A, [B, ...]; with "none" its values are unused.
        uniform: numbers in [0, 1), one a position: shaped like A without its marginalized dims, or with them as size 1.
        leak: l_i, the share of each task's gradient that is never dropped, in [0, 1]; one number or K.
        keep: monotone function from purity to the probability of the positive sign, odd about (1/2, 1/2). Only one with
            keep(0) = 0 and keep(1) = 1 never drops a gradient whose sign all tasks agree on.
        marginalize: what shares a position: "batch" (over the samples), "batch+space" (all but the channels) or "none".
        channel_dim: the activation's channel dim.
        preserve_norm: scale the result to the norm of the plain sum; no scaling where the result is 0.

    Returns:
        A tensor shaped like the activation, float64 or float32.

    Raises:
        ValueError: no gradients, shapes that do not fit, a leak outside [0, 1] or not one for each task.
    """
    _check_shapes(gradients, activation)
    stacked = stack_gradients(gradients)
    positions = DensePositions(marginalize, channel_dim)
    coefficients = sign_coefficients(
        positions.sum(stacked, activation, Ranks()),
        uniform.reshape(positions.shape(activation.shape)),
        _check_leak(leak, len(stacked)),
        keep,
    )
    result = weighted_sum(coefficients, stacked)
    return result * norm_ratio(plain_sum(stacked), result, Ranks()) if preserve_norm else result


def purity(position_gradients: Tensor) -> Tensor:
    """Return P = S+ / (S+ + S-), 1/2 where no task has a gradient.

    Equal to the paper's (1 + sum_i G_i / sum_i |G_i|) / 2, but without an epsilon that would drown small gradients: P
    is exactly 1 or 0 where the signs agree, at any scale. It is computed as 1 / (1 + S- / S+), since S+ + S- overflows
    where the sum of the gradients does not.

    Args:
        position_gradients: G, [K, ...].

    Returns:
        [...], in [0, 1].
    """
    positive = position_gradients.clamp(min=0).sum(0)
    negative = (-position_gradients).clamp(min=0).sum(0)
    return torch.where((positive == 0) & (negative == 0), 0.5, 1 / (1 + negative / positive))


def sign_coefficients(
    position_gradients: Tensor, uniform: Tensor, leak: Sequence[float | Tensor], keep: Keep
) -> Tensor:
    """Return l_i + (1 - l_i) M_i, where M_i is 1 where G_i has the kept sign or is exactly 0.

    Args:
        position_gradients: G, [K, ...].
        uniform: shaped like one G_i.
        leak: one number in [0, 1] for all tasks, or K.
        keep: from purity to the probability of the positive sign.

    Returns:
        [K, ...] in the type of G.
    """
    kernels = kernels_for(position_gradients) if position_gradients.dtype == torch.float32 else None
    share = leak[0] if len(leak) == 1 else None
    known = type(keep) in (Identity, Half)  # a subclass may keep by a rule of its own
    if kernels is not None and known and isinstance(share, float):
        return kernels.sign_coefficients(position_gradients, uniform, share, type(keep) is Identity)
    keep_positive = uniform < keep(purity(position_gradients))
    kept = torch.where(keep_positive, position_gradients >= 0, position_gradients <= 0)
    masks = kept.to(position_gradients.dtype)
    # The larger of l and M is l + (1 - l) M, as M is 0 or 1.
    if len(leak) == 1:
        return masks.clamp(min=leak[0])
    return torch.stack([mask.clamp(min=share) for share, mask in zip(leak, masks, strict=True)])


@dataclass(frozen=True)
class GradDrop(Method):
    """GradDrop as a method of the fork; see `graddrop`.

    Attributes:
        leak: the share of a gradient that is never dropped, a number or a `Ramp` over the steps, for all tasks or by
            task name; a task that is not named has none.
        keep: from purity to the probability of keeping the positive sign: `Identity()`, `Sigmoid(scale)` or any
            monotone function. Only keep(0) = 0 and keep(1) = 1 never drop what all tasks agree on.
        marginalize: what shares a position; "coordinates" is for sparse features [V, C] on one rank.
        channel_dim: the activation's channel dim.
        preserve_norm: scale the result to the norm of the plain sum.
        strength: 1 is GradDrop, 0 the plain sum: every leak l becomes 1 - strength (1 - l). A number or a `Ramp`.
    """

    leak: Scheduled | Mapping[str, Scheduled] = 0.0
    keep: Keep = field(default_factory=Identity)
    marginalize: Marginalize = "batch"
    channel_dim: int = 1
    preserve_norm: bool = True
    strength: Scheduled = 1.0

    def check_tasks(self, tasks: tuple[str, ...]) -> None:
        """Raise ValueError for a share outside [0, 1], an unknown name, or a keep that is not monotone."""
        if self.marginalize not in get_args(Marginalize):
            names = '", "'.join(get_args(Marginalize))
            raise ValueError(f'marginalize is "{self.marginalize}"; choose one of "{names}"')
        if isinstance(self.leak, Mapping):
            if unknown := sorted(set(self.leak) - set(tasks)):
                raise ValueError(f"leak names {', '.join(unknown)}; the tasks are {', '.join(tasks)}")
            for task, leak in self.leak.items():
                check_share(f'leak of task "{task}"', leak)
        else:
            check_share("leak", self.leak)
        check_share("strength", self.strength)
        check_keep(self.keep)

    def combine(self, gradients: Tensor, activation: Tensor, context: Context) -> Combination:
        """Keep one sign at each position."""
        position_gradients = context.positions.sum(gradients, activation, context.ranks)
        masks = sign_coefficients(position_gradients, context.uniform(activation), self._leaks(context), self.keep)
        coefficients = context.positions.spread(masks)
        result = weighted_sum(coefficients, gradients)
        if self.preserve_norm:
            result = result * norm_ratio(plain_sum(gradients), result, context.ranks)
        return Combination(result, coefficients, position_gradients)

    def _leaks(self, context: Context) -> list[float | Tensor]:
        """Leaks at the context's step: one for all tasks, or K."""
        leaks = [self.leak.get(task, 0.0) for task in context.tasks] if isinstance(self.leak, Mapping) else [self.leak]
        strength = value_at(self.strength, context.step)
        shares = [value_at(leak, context.step) for leak in leaks]
        return [share + (1 - strength) * (1 - share) for share in shares]


@dataclass(frozen=True)
class RandomSign(GradDrop):
    """GradDrop whose sign is picked at random, both with probability 1/2: the paper's control."""

    keep: Keep = field(default_factory=Half)


def _check_leak(leak: float | Sequence[float], tasks: int) -> list[float]:
    """Return the leaks, one for all or K; ValueError unless there are that many, each in [0, 1]."""
    shares = [float(leak)] if isinstance(leak, int | float) else [float(share) for share in leak]
    if len(shares) not in (1, tasks):
        raise ValueError(f"{len(shares)} leaks for {tasks} tasks; give one number, or one for each task")
    for share in shares:
        check_share("leak", share)
    return shares


def _check_shapes(gradients: Sequence[Tensor] | Tensor, activation: Tensor) -> None:
    if len(gradients) == 0:
        raise ValueError("graddrop needs the gradient of at least one task, found none")
    for index, gradient in enumerate(gradients):
        if gradient.shape != activation.shape:
            raise ValueError(
                f"gradient {index} has shape {tuple(gradient.shape)}, the activation {tuple(activation.shape)}; "
                "each gradient is taken at the activation itself"
            )
