"""The fork's autograd Function: aliases on the way forward, one gradient on the way back."""

import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from detection3d.multitask.arithmetic import stack_gradients
from detection3d.multitask.checks import FlowCheck
from detection3d.multitask.conflict_map import measure_map
from detection3d.multitask.method import Context, Method
from detection3d.multitask.positions import Cells, build_positions
from detection3d.multitask.ranks import Ranks
from detection3d.multitask.telemetry import measure


@dataclass(frozen=True)
class Plan:
    """What the backward pass needs beside tensors, which autograd saves.

    Attributes:
        tasks: names of the K tasks, in the order of the aliases.
        method: how the gradients are combined.
        words: the stream of the draw.
        ranks: whose statistics are summed.
        cell_count: cells in the grid of one sample, for sparse features.
        check: of the debug mode, else None.
    """

    tasks: tuple[str, ...]
    method: Method
    words: tuple[int, int]
    ranks: Ranks
    cell_count: int
    check: FlowCheck | None

    def context(self, step: Tensor, sample_index: Tensor | None, cell_index: Tensor | None) -> Context:
        """Return what the method may know, with the tensors that autograd saved."""
        cells = None if cell_index is None else Cells(cell_index, self.cell_count)
        positions = build_positions(self.method.marginalize, self.method.channel_dim, cells)
        return Context(self.tasks, self.words, step, positions, self.ranks, sample_index)


class ForkFunction(torch.autograd.Function):
    """Returns K aliases of the activation, and combines the K gradients that come back.

    Takes the activation [B, ...], the probes of what is learnt and measured (None where nothing is), the step, the
    samples' and the rows' indices where the method needs them, and the plan. The probes get numbers as their gradients.
    """

    @staticmethod
    def forward(
        ctx: Any,
        activation: Tensor,
        learning_probe: Tensor | None,
        telemetry_probe: Tensor | None,
        map_probe: Tensor | None,
        step: Tensor,
        sample_index: Tensor | None,
        cell_index: Tensor | None,
        plan: Plan,
    ) -> tuple[Tensor, ...]:
        """Return the aliases."""
        # `.data` gives each alias a version counter of its own, which tells in backward which head wrote into it. A
        # view or `.detach()` would share the activation's counter. torch.compile takes nothing but `.detach()`: aliases
        # made with `.data` of a graph's own input have no gradient there.
        compiling = torch.compiler.is_compiling()
        aliases = tuple(activation.detach() if compiling else activation.data for _ in plan.tasks)
        ctx.save_for_backward(activation, step, sample_index, cell_index, *aliases)
        ctx.plan = plan
        ctx.measuring = telemetry_probe is not None
        ctx.mapping = map_probe is not None
        if plan.check is not None:
            ctx.set_materialize_grads(False)  # to tell a gradient of zeros from none
        return aliases

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *alias_gradients: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        """Return the combined gradient, and the probes' numbers."""
        # A task whose loss doesn't depend on its alias (no objects, say) arrives here as zeros, in its own place.
        plan: Plan = ctx.plan
        try:
            activation, step, sample_index, cell_index, *_ = ctx.saved_tensors
        except RuntimeError as error:
            raise RuntimeError(_explain(error, plan.tasks)) from error
        if plan.check is not None:
            plan.check.receive(alias_gradients)
        gradients = stack_gradients(alias_gradients)
        context = plan.context(step, sample_index, cell_index)
        combination = plan.method.combine(gradients, activation, context)
        numbers = measure(gradients, combination, activation, context) if ctx.measuring else None
        numbers_of_map = measure_map(gradients, plan.method.channel_dim, plan.ranks) if ctx.mapping else None
        result = combination.gradient.to(activation.dtype)
        if plan.check is not None:
            plan.check.give_back(result)
        return result, combination.learning, numbers, numbers_of_map, None, None, None, None


def _explain(error: RuntimeError, tasks: tuple[str, ...]) -> str:
    """Say which head wrote into the fork's features, from autograd's message about a saved tensor."""
    if "modified by an inplace operation" not in str(error):
        return str(error)
    output = re.search(r"which is output (\d+) of ForkFunction", str(error))
    if output is None:
        return (
            "the shared features were modified in place after the fork, so the gradients of "
            f"{', '.join(tasks)} are wrong; make the operation that follows the fork out of place"
        )
    return (
        f'the head "{tasks[int(output.group(1))]}" modified its features in place, and with them those of the others; '
        "make its first operation out of place, such as ReLU(inplace=False)"
    )
