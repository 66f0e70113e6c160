"""What a fork in debug mode checks: whether gradients go around it, miss it, or reach the wrong alias.

All of it looks at Python's side of autograd, so it is for eager mode, and costs a backward pass of each head.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.autograd.graph import Node


class FlowCheck:
    """Watches one pass through a fork.

    Args:
        shared: the activation that entered the fork.
        tasks: names of the tasks.
    """

    def __init__(self, shared: Tensor, tasks: tuple[str, ...]) -> None:
        self._tasks = tasks
        self._ledger = _ledger_of(shared, tasks)

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
        self._ledger.add(gradient)


class _Ledger:
    """What the forks gave to one tensor in a backward pass, to be compared with what arrives there.

    There is one for each tensor, not for each pass: a tensor may enter a fork several times (two forwards before one
    backward, a recomputed checkpoint, a leaf that stays), and what arrives is the sum.
    """

    def __init__(self, tasks: tuple[str, ...]) -> None:
        self._tasks = tasks
        self._given: Tensor | None = None

    def add(self, gradient: Tensor) -> None:
        """Add in autograd's own order and type, so that the sum has the same bits as what arrives."""
        gradient = gradient.detach()
        self._given = gradient if self._given is None else self._given + gradient

    def __call__(self, arrived: Tensor) -> None:
        """Compare, as a hook of the tensor.

        Raises:
            RuntimeError: something reads the shared features around the fork.
        """
        given = torch.zeros_like(arrived) if self._given is None else self._given
        self._given = None
        if torch.isclose(arrived, given, rtol=0, atol=0, equal_nan=True).all():
            return
        norm = float(torch.linalg.vector_norm((arrived - given).double()))
        raise RuntimeError(
            f"a gradient of norm {norm:.3g} reached the shared features around the fork: a head or a loss reads"
            f" them directly. Hand it the alias of its task, fork(shared)[...], one of {', '.join(self._tasks)}"
        )


def _ledger_of(shared: Tensor, tasks: tuple[str, ...]) -> _Ledger:
    """Return the tensor's ledger; a new one starts where it has none."""
    for hook in (shared._backward_hooks or {}).values():
        if isinstance(hook, _Ledger):
            return hook
    ledger = _Ledger(tasks)
    shared.register_hook(ledger)
    return ledger


def check_flow(tasks: tuple[str, ...], losses: Mapping[str, Tensor], features: Mapping[str, Tensor] | None) -> None:
    """Check that each loss reaches its own alias, no other, and not the shared features themselves.

    Nothing is checked where the fork was the identity: its features are no aliases then.

    Args:
        tasks: names of the tasks.
        losses: a scalar for each.
        features: the aliases.

    Raises:
        ValueError: no features were given, or not those of every task.
        RuntimeError: a loss misses its alias, reaches another one, or reads around the fork.
    """
    if features is None:
        raise ValueError("a fork in debug mode needs the features that it returned: fork.weigh(losses, features)")
    if missing := [task for task in tasks if task not in features]:
        raise ValueError(
            f"the features of {', '.join(missing)} are missing; give weigh all that the fork returned, found"
            f" {', '.join(features) or 'none'}"
        )
    aliases = [features[task] for task in tasks]
    if len(tasks) == 1 or not all(alias.requires_grad for alias in aliases):
        return
    for task in tasks:
        _check_aliases(task, losses[task], dict(zip(tasks, aliases, strict=True)))
        _check_detour(task, losses[task], aliases)


def _check_aliases(task: str, loss: Tensor, aliases: dict[str, Tensor]) -> None:
    """Raise RuntimeError unless the loss reaches its own alias and has no gradient at another."""
    found = (
        torch.autograd.grad(loss, list(aliases.values()), retain_graph=True, allow_unused=True)
        if loss.requires_grad
        else [None] * len(aliases)
    )
    reached = {other: gradient for other, gradient in zip(aliases, found, strict=True) if gradient is not None}
    if task not in reached:
        raise RuntimeError(
            f'the loss of task "{task}" does not depend on its features at the fork; its head must read'
            f' fork(shared)["{task}"]'
        )
    # A path with a gradient of 0 is no harm: 0 times all outputs is a common way to let DistributedDataParallel see
    # every parameter.
    wrong = [other for other, gradient in reached.items() if other != task and bool((gradient != 0).any())]
    if wrong:
        raise RuntimeError(
            f'the loss of task "{task}" reaches the features of: {", ".join(wrong)}. Its gradient would count as'
            " theirs; detach what it takes from other heads"
        )


def _check_detour(task: str, loss: Tensor, aliases: list[Tensor]) -> None:
    """Raise RuntimeError if autograd's graph leads from the loss to the shared features past the fork."""
    fork = aliases[0].grad_fn
    if fork is None or loss.grad_fn is None or any(alias.grad_fn is not fork for alias in aliases):
        return  # something was put between the fork and the features; what arrives is compared in backward
    shared = fork.next_functions[0]
    seen: set[Node] = {fork}
    waiting: list[Node] = [loss.grad_fn]
    while waiting:
        node = waiting.pop()
        if node in seen:
            continue
        seen.add(node)
        if shared in node.next_functions:
            raise RuntimeError(
                f'the loss of task "{task}" reads the shared features around the fork; its head must read'
                f' fork(shared)["{task}"] only'
            )
        waiting.extend(following for following, _ in node.next_functions if following is not None)
