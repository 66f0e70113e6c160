"""Passes of fixed shape replayed as CUDA graphs, since launching their kernels one by one takes the host too long."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from detection3d.model.norm import BatchNorm


class GraphedPass(nn.Module):
    """Runs a module's training passes, forward and backward, as CUDA graphs; everything else as the module does.

    The graphs are recorded at the first training pass and serve inputs of its shapes and types; others are computed as
    usual. Random numbers, collectives and second derivatives have no place in them.

    Not to be registered in the module's owner: its parameters would be there twice.

    Args:
        module: takes tensors and returns a tensor or a tuple of tensors. Its parameters must stay where they are, and
            its children say whether they are training.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self._replay: nn.Module | None = None
        self._shapes: list[tuple[object, ...]] = []

    def forward(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Return what the module returns."""
        training = all(child.training for child in self.module.children())
        if not (training and torch.is_grad_enabled() and all(value.is_cuda for value in inputs)):
            return self.module(*inputs)
        if self._replay is None:
            self._shapes = _shapes(inputs)
            self._replay = self._record(inputs)
        return self._replay(*inputs) if _shapes(inputs) == self._shapes else self.module(*inputs)

    def _record(self, inputs: Sequence[Tensor]) -> nn.Module:
        samples = tuple(value.detach().clone().requires_grad_(value.requires_grad) for value in inputs)
        # The passes that warm up and are recorded move running statistics, which they must not.
        before = [(buffer, buffer.clone()) for buffer in self.module.buffers()]
        replay = _Replayed(self.module)
        # Gradients are added up on the stream of the recording from now on, which the backward pass waits for.
        torch.autograd.graph.set_warn_on_accumulate_grad_stream_mismatch(False)
        norms = [module for module in self.module.modules() if isinstance(module, BatchNorm)]
        for norm in norms:
            norm.fused = True
        dtype, enabled = torch.get_autocast_dtype("cuda"), torch.is_autocast_enabled("cuda")
        with torch.autocast("cuda", dtype=dtype, enabled=enabled, cache_enabled=False), _beside_other_threads():
            torch.cuda.make_graphed_callables(replay, samples)
        for norm in norms:
            norm.fused = False
        for buffer, value in before:
            buffer.copy_(value)
        return replay


class _Replayed(nn.Module):
    """A module of its own, since recording replaces the forward method of what it records."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.train()

    def forward(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        return self.module(*inputs)


@contextmanager
def _beside_other_threads() -> Iterator[None]:
    """Let other threads use the device while this one records.

    One prepares the next step, and the loader's pins memory. In CUDA's mode "global", which torch takes, an allocation
    by them would be refused and would spoil the recording. `make_graphed_callables` hands no other mode on.
    """
    plain = torch.cuda.graph
    torch.cuda.graph = partial(plain, capture_error_mode="thread_local")  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield
    finally:
        torch.cuda.graph = plain  # pyright: ignore[reportAttributeAccessIssue]


def _shapes(inputs: Sequence[Tensor]) -> list[tuple[object, ...]]:
    return [(value.shape, value.stride(), value.dtype, value.requires_grad) for value in inputs]
