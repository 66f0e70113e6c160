"""Passes of fixed shape replayed as CUDA graphs, since launching their kernels one by one takes the host too long."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial

import torch
from torch import Tensor, nn

from detection3d.errors import UserError
from detection3d.model.norm import BatchNorm


class GraphedPass(nn.Module):
    """Runs a module's training passes, forward and backward, as CUDA graphs; everything else as the module does.

    The graphs are recorded at the first training pass and serve inputs of its shapes and types, as do those of the next
    few other ones; inputs of further shapes are computed as usual. Random numbers and second derivatives have no place
    in them. Collectives have, as every rank records and replays the same ones. What a replay returns is written over by
    the next one.

    Not to be registered in the module's owner: its parameters would be there twice.

    Args:
        module: takes tensors and returns a tensor or a tuple of tensors. Its parameters must stay where they are, and
            its children say whether they are training.
        most_shapes: of which graphs are kept, each with memory of its own.
    """

    def __init__(self, module: nn.Module, most_shapes: int = 1) -> None:
        super().__init__()
        self.module = module
        self._most = most_shapes
        self._recorded: dict[tuple[object, ...], nn.Module] = {}

    def forward(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Return what the module returns."""
        training = all(child.training for child in self.module.children())
        if not (training and torch.is_grad_enabled() and all(value.is_cuda for value in inputs)):
            return self.module(*inputs)
        shapes = tuple((value.shape, value.stride(), value.dtype, value.requires_grad) for value in inputs)
        if shapes not in self._recorded and len(self._recorded) < self._most:
            self._recorded[shapes] = self._record(inputs)
        if shapes not in self._recorded and any(norm.ranks.size > 1 for norm in _norms(self.module)):
            # The other ranks may replay meanwhile, and nobody has seen single kernels meet those of a replay.
            raise UserError(
                f"a batch of another size than those before ({', '.join(str(tuple(value.shape)) for value in inputs)})"
                " can't be trained on several ranks with training.cuda_graphs; start all ranks with it false"
            )
        return self._recorded.get(shapes, self.module)(*inputs)

    def _record(self, inputs: Sequence[Tensor]) -> nn.Module:
        samples = tuple(value.detach().clone().requires_grad_(value.requires_grad) for value in inputs)
        replay = _Replayed(self.module)
        dtype, enabled = torch.get_autocast_dtype("cuda"), torch.is_autocast_enabled("cuda")
        # Gradients are added up on the stream of the recording from now on, which the backward pass waits for.
        torch.autograd.graph.set_warn_on_accumulate_grad_stream_mismatch(False)
        try:
            with (
                torch.cuda.device_of(inputs[0]),
                _as_recorded(self.module),
                torch.autocast("cuda", dtype, enabled, cache_enabled=False),
                _recording_on(recording_stream(inputs[0].device)),
            ):
                torch.cuda.make_graphed_callables(replay, samples)
        except RuntimeError as error:
            first = _first(error)
            if isinstance(first, torch.OutOfMemoryError):
                raise first from None
            reason = str(first).strip().partition("\n")[0]
            if any(norm.ranks.size > 1 for norm in _norms(self.module)):
                raise UserError(  # the other ranks may be in another collective of the passes that warm up
                    f"CUDA graphs can't be recorded on this rank ({reason}); start all ranks with"
                    " training.cuda_graphs=false"
                ) from error
            warnings.warn(
                f"CUDA graphs can't be recorded here ({reason}), so kernels are launched one by one, which is slower;"
                " training.cuda_graphs=false leaves them out",
                stacklevel=2,
            )
            return self.module
        return replay


@contextmanager
def _as_recorded(module: nn.Module) -> Iterator[None]:
    """Let normalisation be fused; and undo what the passes that warm up and are recorded do to running statistics."""
    before = [(buffer, buffer.clone()) for buffer in module.buffers()]
    norms = _norms(module)
    for norm in norms:
        norm.fused = True
    try:
        yield
    finally:
        for norm in norms:
            norm.fused = False
        for buffer, value in before:
            buffer.copy_(value)


class _Replayed(nn.Module):
    """A module of its own, since recording replaces the forward method of what it records."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.train()

    def forward(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        return self.module(*inputs)


def _norms(module: nn.Module) -> list[BatchNorm]:
    return [child for child in module.modules() if isinstance(child, BatchNorm)]


@cache
def recording_stream(device: torch.device) -> torch.cuda.Stream:
    """Return the stream on which all graphs of a device are recorded.

    Weights remember the stream on which their gradients are first asked for, and a backward pass has that one wait for
    what it computed. Were it another one while the pass is recorded, it would be drawn into the recording, which fails.
    So who asks for them beforehand, as DistributedDataParallel does, must do so on this stream.

    Args:
        device: with its number.
    """
    return torch.cuda.Stream(device)


def _first(error: BaseException) -> BaseException:
    """Return what went wrong first: when a recording is broken off, CUDA's complaint of that comes on top."""
    return _first(error.__context__) if isinstance(error.__context__, RuntimeError) else error


@contextmanager
def _recording_on(stream: torch.cuda.Stream) -> Iterator[None]:
    """Let `make_graphed_callables` record on this stream, while other threads use the device.

    One prepares the next step, and the loader's pins memory. In CUDA's mode "global", which torch takes, an allocation
    by them would be refused and would spoil the recording. `make_graphed_callables` hands neither on.
    """
    plain = torch.cuda.graph
    torch.cuda.graph = partial(  # pyright: ignore[reportAttributeAccessIssue]
        plain, stream=stream, capture_error_mode="thread_local"
    )
    try:
        yield
    finally:
        torch.cuda.graph = plain  # pyright: ignore[reportAttributeAccessIssue]
