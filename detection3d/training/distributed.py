"""Training on several ranks, so that R ranks that share B samples do the steps of one rank with B samples.

What makes them equal: batch normalisation (if the config says so) and the fork take their statistics over all ranks;
each rank's loss is the sum over its own samples, divided by the objects of all ranks and multiplied by the number of
ranks; and DistributedDataParallel averages the gradients of these losses. So the gradients, their norm and the step are
the same on every rank, and nothing else has to be exchanged. No mean over a rank's own samples is taken anywhere but
in batch normalisation that is so configured, so shares may be of different sizes.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property

import torch
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.nn.parallel import DistributedDataParallel

from detection3d.config import Config
from detection3d.model.graphs import recording_stream
from detection3d.model.norm import synchronize_norms
from detection3d.multitask import Ranks
from detection3d.multitask.exchange import open_exchange
from detection3d.training.state import TrainState
from detection3d.types.tensors import Targets

BUCKET_MB = 25.0  # DistributedDataParallel's own default


def distribute(
    state: TrainState,
    bucket_mb: float = BUCKET_MB,
    group: ProcessGroup | None = None,
    *,
    sync_norms: bool = True,
) -> None:
    """Let a state train together with those of the other ranks; torch.distributed must be initialised on all of them.

    The names in checkpoints stay as they are, so a run may go on with another number of ranks. On one rank the steps
    keep their bits.

    Args:
        state: on this rank's device, changed in place. The optimiser's part must be the same on every rank, as it is
            after one config or one checkpoint; weights and statistics become those of the first rank.
        bucket_mb: size of the pieces in which gradients are averaged while the backward pass goes on, MB.
        group: the ranks that train together, those of `state.fork` too; None is all of them.
        sync_norms: whether batch normalisation takes its statistics over all ranks. Without, each rank normalises with
            its own, which saves two collectives a layer: the ranks are no longer equal to one, and running statistics
            are those of the rank that writes the checkpoint.
    """
    device = state.device
    exchange = open_exchange(group, device)
    state.fork.exchange = exchange
    if sync_norms:
        synchronize_norms(state.model, group, exchange)
    with _stream_of_graphs(state):
        state.parallel = DistributedDataParallel(
            state.model,
            device_ids=[device] if device.type == "cuda" else None,
            process_group=group,
            bucket_cap_mb=bucket_mb,
            gradient_as_bucket_view=True,
        )
    # Statistics over ranks are equal by construction, and those of a rank's own samples are meant to stay its own: a
    # broadcast in every forward is of no use. The argument of this name has another one from torch 2.13 on.
    state.parallel.broadcast_buffers = False


@contextmanager
def _stream_of_graphs(state: TrainState) -> Iterator[None]:
    """Ask for gradients where graphs will be recorded, if they will; see `recording_stream`."""
    if not state.model.records_graphs:
        yield
        return
    current, stream = torch.cuda.current_stream(state.device), recording_stream(state.device)
    stream.wait_stream(current)
    with torch.cuda.stream(stream):
        yield
    current.wait_stream(stream)


def describe_norms(config: Config, ranks: int) -> str:
    """Say of whose samples batch normalisation takes the statistics."""
    whose = "all ranks' samples" if config.training.synchronizes_norms(ranks) else "each rank's own samples"
    return f"batch statistics of {whose}"


def without_averaging(state: TrainState) -> AbstractContextManager[None]:
    """Go forward and backward in here to add to this rank's gradients alone; a later pass averages the sums."""
    return nullcontext() if state.parallel is None else state.parallel.no_sync()


class ObjectCount:
    """The objects of all ranks, counted while the network goes forward: nobody waits for a rank that is behind.

    Args:
        targets: of this rank, as `build_targets` made them.
        ranks: who trains together.

    Attributes:
        objects: int64 scalar, of this rank.
    """

    def __init__(self, targets: Targets, ranks: Ranks) -> None:
        self._own, self._ranks = targets.global_count, ranks
        self.objects = targets.valid.sum()  # counted anew: `global_count` of a rank without objects is 1
        self._sum = None if ranks.size == 1 else ranks.begin_sum(self.objects)

    @cached_property
    def global_count(self) -> Tensor:
        """What makes each rank's loss its share of the loss over all ranks, times the number of ranks."""
        if self._sum is None:
            return self._own
        return self._sum().clamp(min=1).to(self._own.dtype) / self._ranks.size
