"""GradDrop as lingvo released it (github.com/tensorflow/lingvo, lingvo/core/graddrop.py), for comparison with its runs.

The authors' code differs from the paper's Algorithm 1 and from `graddrop` in this package. It is reproduced here
together with its three defects:

1. The epsilon in the purity P, and that in the norm, do not scale with the gradients. Three tasks that agree at a
   position with G_i = 1e-7 each have P = 0.93 instead of 1, with 1e-8 0.69, with 1e-9 0.53: with probability 1 - P all
   of them are dropped although nothing conflicts. Gradients of losses that are means over large maps are that small.
2. The leaks are paired with the gradients that exist. Where a loss does not depend on the shared features at all, the
   leaks of the losses after it move up by one.
3. From 2020-10-16 (commit 04e34dda) to 2021-02-25 (commit ae4d22fd) the rescaling was inverted: the result was
   multiplied with ||result|| / ||sum g|| instead of ||sum g|| / ||result||. `inverted_norm` brings that back.

Less than defects, but different: the sign of an activation of at most epsilon is A / |1 + A|, almost 0; the sigmoid
drops gradients on which all tasks agree; a steep linear function leaves [0, 1].
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from detection3d.multitask.arithmetic import plain_sum, stack_gradients, weighted_sum
from detection3d.multitask.method import Combination, Context, Method
from detection3d.multitask.positions import Marginalize
from detection3d.multitask.ranks import Ranks
from detection3d.multitask.schedule import check_share


@dataclass(frozen=True)
class LingvoOptions:
    """The parameters of lingvo's layer, under its names and with its defaults.

    Attributes:
        keep_prob_function: "linear" keeps the positive sign with probability 1/2 + scale (P - 1/2), "sigmoid" with
            sigmoid(4 scale (P - 1/2)).
        keep_prob_function_scale: slope of the function at P = 1/2.
        use_input_sign_only: gradients are multiplied with the activation's sign before they are compared; else with
            the activation.
        keep_gradnorm_constant: rescale the result to the norm of the sum of the gradients.
        marginalize_batch_dim: sum over the samples before the comparison; else compare at each element, where a
            gradient is multiplied with the sign or the activation nevertheless.
        epsilon: added to 2 sum_i |G_i| and to the norm; activations up to this size have no sign. At least 0.
        inverted_norm: rescale as the code of 2020-10-16 to 2021-02-25 did.

    Raises:
        ValueError: an unknown function, or an epsilon below 0.
    """

    keep_prob_function: Literal["linear", "sigmoid"] = "linear"
    keep_prob_function_scale: float = 1.0
    use_input_sign_only: bool = True
    keep_gradnorm_constant: bool = True
    marginalize_batch_dim: bool = True
    epsilon: float = 1e-7
    inverted_norm: bool = False

    def __post_init__(self) -> None:
        """Check the function's name and the epsilon."""
        if self.keep_prob_function not in ("linear", "sigmoid"):
            raise ValueError(f'keep_prob_function is "{self.keep_prob_function}"; choose "linear" or "sigmoid"')
        if not self.epsilon >= 0:
            raise ValueError(f"epsilon is {self.epsilon}; it must be 0 or more")


def lingvo_graddrop(
    gradients: Sequence[Tensor | None],
    activation: Tensor,
    uniform: Tensor,
    *,
    leak: Sequence[float],
    options: LingvoOptions = LingvoOptions(),
    total: Tensor | None = None,
) -> Tensor:
    """Combine the losses' gradients at a shared activation as lingvo's layer does in its backward pass.

    Args:
        gradients: one a loss, shaped like the activation, None where the loss does not depend on it; combined in
            float64 if they are float64, else in float32. Only the norms are summed in float64, always.
        activation: A, [B, ...].
        uniform: numbers in [0, 1), [1, ...] where the batch is marginalized, else [B, ...].
        leak: each loss's share that is never dropped. They pair with the gradients that are not None (defect 2).
        options: the layer's parameters.
        total: the gradient that training without the layer would send on, whose norm is kept: lingvo takes in here
            losses that the layer was not told of. None is the sum of the gradients.

    Returns:
        A tensor shaped like the activation, float64 or float32.

    Raises:
        ValueError: no gradient, shapes that do not fit, not one leak for each loss, or a leak outside [0, 1].
    """
    if len(leak) != len(gradients):
        raise ValueError(f"{len(leak)} leaks for {len(gradients)} losses; give one for each")
    for share in leak:
        check_share("leak", share)
    present = [gradient for gradient in gradients if gradient is not None]
    for gradient in present:
        if gradient.shape != activation.shape:
            raise ValueError(f"a gradient has shape {tuple(gradient.shape)}, the activation {tuple(activation.shape)}")
    stacked = stack_gradients(present)
    position_gradients = _position_gradients(stacked, activation, options, Ranks())
    if uniform.shape != position_gradients.shape[1:]:
        raise ValueError(f"uniform has shape {tuple(uniform.shape)}; it takes {tuple(position_gradients.shape[1:])}")
    coefficients = _coefficients(position_gradients, uniform, leak[: len(present)], options)
    result = weighted_sum(coefficients, stacked)
    reference = plain_sum(stacked) if total is None else total.to(stacked.dtype)
    return result * _norm_factor(reference, result, options, Ranks())


@dataclass(frozen=True)
class LingvoGradDrop(Method):
    """Lingvo's GradDrop as a method of the fork; see `lingvo_graddrop`, and the module for what is wrong with it.

    A task that does not reach the fork counts here as a gradient of zeros, so leaks stay with their tasks. Several
    ranks with `sync="full"` equal one with all samples; lingvo itself lets each replica draw and decide for itself.

    Attributes:
        leak: the share of a gradient that is never dropped, for all tasks or by task name; tasks not named have none.
        options: the layer's parameters.
    """

    leak: float | Mapping[str, float] = 0.0
    options: LingvoOptions = field(default_factory=LingvoOptions)
    marginalize: Marginalize = field(init=False, repr=False, default="batch")

    def __post_init__(self) -> None:
        """Tell the fork what counts as one position."""
        object.__setattr__(self, "marginalize", "batch" if self.options.marginalize_batch_dim else "none")

    def check_tasks(self, tasks: tuple[str, ...]) -> None:
        """Raise ValueError for a leak outside [0, 1] or one of an unknown task."""
        leaks = self.leak if isinstance(self.leak, Mapping) else dict.fromkeys(tasks, self.leak)
        if unknown := sorted(set(leaks) - set(tasks)):
            raise ValueError(f"leak names {', '.join(unknown)}; the tasks are {', '.join(tasks)}")
        for task, leak in leaks.items():
            check_share(f'leak of task "{task}"', leak)

    def combine(self, gradients: Tensor, activation: Tensor, context: Context) -> Combination:
        """Keep one sign at each position."""
        leak = [self.leak.get(task, 0.0) if isinstance(self.leak, Mapping) else self.leak for task in context.tasks]
        position_gradients = _position_gradients(gradients, activation, self.options, context.ranks)
        coefficients = _coefficients(position_gradients, context.uniform(activation), leak, self.options)
        result = weighted_sum(coefficients, gradients)
        result = result * _norm_factor(plain_sum(gradients), result, self.options, context.ranks)
        return Combination(result, coefficients, position_gradients)


def _position_gradients(gradients: Tensor, activation: Tensor, options: LingvoOptions, ranks: Ranks) -> Tensor:
    """Return G, [K, 1, ...] or [K, B, ...]."""
    values = activation.to(gradients.dtype)
    if options.use_input_sign_only:
        values = values / (values + (values.abs() <= options.epsilon).to(values.dtype)).abs()
    products = gradients * values
    if options.marginalize_batch_dim:
        products = ranks.sum(products.sum(1, keepdim=True))
    # Losses are scaled by the number of ranks. The epsilon must meet the gradients as one rank would have them.
    return products / ranks.size if ranks.size > 1 else products


def _coefficients(position_gradients: Tensor, uniform: Tensor, leak: Sequence[float], options: LingvoOptions) -> Tensor:
    """Return l_i + (1 - l_i) M_i, shaped like G."""
    size = position_gradients.abs().sum(0)
    slope = options.keep_prob_function_scale * position_gradients.sum(0) / (2 * size + options.epsilon)
    probability = torch.sigmoid(4 * slope) if options.keep_prob_function == "sigmoid" else 0.5 + slope
    # Stated by what is dropped: lingvo's comparisons keep a task whose gradient is NaN.
    dropped = torch.where(probability >= uniform, position_gradients < 0, position_gradients > 0)
    masks = (~dropped).to(position_gradients.dtype)
    return torch.stack([share + (1 - share) * mask for share, mask in zip(leak, masks, strict=True)])


def _norm_factor(reference: Tensor, result: Tensor, options: LingvoOptions, ranks: Ranks) -> Tensor | float:
    """Return what the result is multiplied with."""
    if not options.keep_gradnorm_constant:
        return 1.0
    norms = [torch.linalg.vector_norm(values, dtype=torch.float64) for values in (reference, result)]
    wanted, found = (ranks.sum(torch.stack(norms).square()).sqrt() / ranks.size).unbind()
    if options.inverted_norm:
        wanted, found = found, wanted
    return (wanted / (found + options.epsilon)).to(result.dtype)
