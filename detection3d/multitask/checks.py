"""What the fork's debug mode looks for: gradients that go around the fork, never reach it, or reach the wrong alias."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


class FlowCheck:
    """Watches one pass through a fork.

    Args:
        shared: the activation that entered the fork.
        tasks: names of the tasks.
    """

    def __init__(self, shared: Tensor, tasks: tuple[str, ...]) -> None:
        self._tasks = tasks
        self._returned: list[Tensor] = []
        shared.register_hook(self._compare)

    def receive(self, alias_gradients: Sequence[Tensor | None]) -> None:
        """Look at the gradients of the aliases.

        Raises:
            RuntimeError: a task's loss did not reach its alias.
        """
        absent = [task for task, gradient in zip(self._tasks, alias_gradients, strict=True) if gradient is None]
        if absent:
            raise RuntimeError(
                f"no gradient came back from the fork's features of: {', '.join(absent)}. Either the head reads other"
                " features than its alias, or its loss was left out of the sum or does not depend on the head"
            )

    def give_back(self, gradient: Tensor) -> None:
        """Note what the fork hands to the backbone."""
        self._returned.append(gradient.detach())

    def _compare(self, arrived: Tensor) -> None:
        """Compare what arrived at the shared features with what the fork gave.

        Raises:
            RuntimeError: something reads the shared features around the fork.
        """
        given = self._returned.pop() if self._returned else torch.zeros_like(arrived)
        if not torch.equal(arrived.nan_to_num(), given.to(arrived.dtype).nan_to_num()):
            norm = float(torch.linalg.vector_norm((arrived - given).double()))
            raise RuntimeError(
                f"a gradient of norm {norm:.3g} reached the shared features around the fork: a head or a loss reads"
                f" them directly. Hand it the alias of its task, fork(shared)[...], one of {', '.join(self._tasks)}"
            )


def check_flow(tasks: tuple[str, ...], losses: Mapping[str, Tensor], features: Mapping[str, Tensor] | None) -> None:
    """Check that each loss reaches its own alias and no other.

    Args:
        tasks: names of the tasks.
        losses: a scalar for each.
        features: the aliases.

    Raises:
        ValueError: no features were given.
        RuntimeError: a loss misses its alias or reaches another one.
    """
    if features is None:
        raise ValueError("a fork in debug mode needs the features that it returned: fork.weigh(losses, features)")
    aliases = [features[task] for task in tasks]
    for task in tasks:
        loss = losses[task]
        found = (
            torch.autograd.grad(loss, aliases, retain_graph=True, allow_unused=True)
            if loss.requires_grad
            else [None] * len(aliases)
        )
        reached = [other for other, gradient in zip(tasks, found, strict=True) if gradient is not None]
        if task not in reached:
            raise RuntimeError(
                f'the loss of task "{task}" does not depend on its features at the fork; its head must read'
                f' fork(shared)["{task}"]'
            )
        wrong = [other for other in reached if other != task and bool((found[tasks.index(other)] != 0).any())]
        if wrong:
            raise RuntimeError(
                f'the loss of task "{task}" reaches the features of: {", ".join(wrong)}. Its gradient would count as'
                " theirs; detach what it takes from other heads"
            )
