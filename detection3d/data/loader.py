"""Batches of a store, in an order that depends on seed and position alone.

The samples of a training run form one endless sequence, which `detection3d.data.sampling` fixes, and step s takes those
from `s * global_batch_size`. So no sample is dropped (a batch may span two epochs), and the batch of a step is the same
after a resume, with any number of workers, and on any number of ranks: rank r of R takes those from B r / R up to
B (r + 1) / R, so that shares differ by one sample at most.

With accumulation, a batch consists of micro-batches, contiguous shares of it, and ranks share each of these so.
"""

import multiprocessing
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from detection3d.data.collate import collate
from detection3d.data.object_candidates import ObjectSampler
from detection3d.data.preparation_pool import end_with_parent
from detection3d.data.sampling import FrameOrder, Sampling
from detection3d.data.store import Store
from detection3d.errors import DataError, UserError
from detection3d.types.tensors import Batch, pin

PLAIN = Sampling()
"""Every frame once an epoch, in a random order."""

GRACE = 20  # seconds that a worker goes on after SIGTERM, should nobody end it before


def build_loader(
    store: Store,
    *,
    global_batch_size: int,
    seed: int,
    total_steps: int,
    start_step: int = 0,
    workers: int = 0,
    rank: int = 0,
    world_size: int = 1,
    micro_batches: int = 1,
    sampling: Sampling = PLAIN,
    sweeps: int = 1,
    objects: ObjectSampler | None = None,
) -> Iterator[Batch]:
    """Yield this rank's batches of the steps from `start_step` up to `total_steps`.

    Args:
        store: the prepared store.
        global_batch_size: samples of one step over all ranks.
        seed: of the order.
        total_steps: where to end, counted from the run's beginning.
        start_step: where to begin; a resumed run gives the step that it has reached.
        workers: processes that read; with 0 this process reads. Memory is pinned where there is a CUDA device.
        rank: of this process.
        world_size: number of ranks.
        micro_batches: how many a batch is done in; their sizes are the batch's `parts`.
        sampling: which frames an epoch holds, and in what order.
        sweeps: how many frames of a segment make up a sample.
        objects: draws objects of other frames for the samples.

    Returns:
        An iterator of `total_steps - start_step` batches, each with this rank's share of `global_batch_size` samples.

    Raises:
        UserError: there are more ranks than samples, or the store is empty; while iterating, a frame can't be read or a
            worker was killed.
    """
    most = global_batch_size // micro_batches
    if most < world_size:
        parts = "" if micro_batches == 1 else f" in {micro_batches} micro-batches"
        raise UserError(
            f"training.batch_size is {global_batch_size}{parts}, so {world_size} ranks would not have a sample each;"
            f" start at most {most} ranks, or use a larger batch"
        )
    shares = tuple(
        range(part.start + own.start, part.start + own.stop)
        for part in (share_of_rank(global_batch_size, number, micro_batches) for number in range(micro_batches))
        for own in (share_of_rank(len(part), rank, world_size),)
    )
    order = FrameOrder(store, sampling, seed)
    batches = _TrainingBatches(store, order, global_batch_size, shares, sweeps, objects)
    return _iterate(batches, range(start_step, total_steps), workers)


def evaluation_batches(
    store: Store,
    *,
    batch_size: int,
    workers: int = 0,
    rank: int = 0,
    world_size: int = 1,
    sweeps: int = 1,
    frames: Sequence[int] | None = None,
) -> Iterator[Batch]:
    """Yield every frame once, in order; `sample_index` is the frame's number.

    Args:
        store: the prepared store.
        batch_size: samples of one batch of one rank; the last batch may be smaller.
        workers: processes that read; with 0 this process reads.
        rank: of this process; ranks take contiguous shares that differ by one frame at most.
        world_size: number of ranks.
        sweeps: how many frames of a segment make up a sample.
        frames: numbers of the wanted ones; None takes all.

    Returns:
        An iterator of batches; empty where there are fewer frames than ranks.

    Raises:
        UserError: while iterating, a frame can't be read or a worker was killed.
    """
    if batch_size < 1:
        raise UserError(f"a batch of {batch_size} samples; it needs at least 1")
    numbers = range(len(store)) if frames is None else frames
    share = share_of_rank(len(numbers), rank, world_size)
    batches = _EvaluationBatches(store, batch_size, numbers[share.start : share.stop], sweeps)
    return _iterate(batches, range(-(-len(share) // batch_size)), workers)


def share_of_rank(count: int, rank: int, world_size: int) -> range:
    """Return which of `count` things are a rank's: contiguous shares in order, that differ by one at most."""
    return range(count * rank // world_size, count * (rank + 1) // world_size)


class _TrainingBatches(Dataset):
    """Maps a step to this rank's batch."""

    def __init__(
        self,
        store: Store,
        order: FrameOrder,
        global_batch_size: int,
        shares: tuple[range, ...],
        sweeps: int,
        objects: ObjectSampler | None,
    ) -> None:
        self._store = store
        self._order = order
        self._global_batch_size = global_batch_size
        self._shares = shares
        self._sweeps = sweeps
        self._objects = objects

    def __getitem__(self, step: int) -> "Batch | UserError":
        first = step * self._global_batch_size
        samples = [first + number for share in self._shares for number in share]
        frames = [self._order.frame(sample) for sample in samples]
        batch = _read(self._store, frames, samples, self._sweeps, self._objects, labelled=True)
        if isinstance(batch, UserError) or len(self._shares) == 1:
            return batch
        return replace(batch, parts=tuple(len(share) for share in self._shares))


class _EvaluationBatches(Dataset):
    """Maps a batch's number to the batch."""

    def __init__(self, store: Store, batch_size: int, frames: Sequence[int], sweeps: int) -> None:
        self._store = store
        self._batch_size = batch_size
        self._frames = frames
        self._sweeps = sweeps

    def __getitem__(self, number: int) -> "Batch | UserError":
        first = number * self._batch_size
        frames = self._frames[first : first + self._batch_size]
        return _read(self._store, list(frames), frames, self._sweeps)


def _read(
    store: Store,
    frames: list[int],
    samples: Sequence[int],
    sweeps: int,
    objects: ObjectSampler | None = None,
    *,
    labelled: bool = False,
) -> "Batch | UserError":
    try:
        if labelled:
            _refuse_unlabelled(store, frames)
        return collate(store, frames, samples, sweeps, objects)
    # Handed over as a value: torch would raise it in the training process as a RuntimeError with two tracebacks.
    except UserError as error:
        return error


def _refuse_unlabelled(store: Store, frames: list[int]) -> None:
    """Raise if a frame has no labels: in training, its objects would pass for background."""
    for frame in frames:
        if store.labels(frame) is None:
            name, timestamp = store.key(frame)
            reason = f"frame {name} at {timestamp} has no labels, as in a test split; train on a store of labelled data"
            raise DataError(store.root, reason)


def _iterate(batches: Dataset, numbers: range, workers: int) -> Iterator[Batch]:
    pinned = torch.cuda.is_available()
    if workers == 0 or len(numbers) == 0:
        items = (_Carrier(batches[number]) for number in numbers)
        items = (item.pin_memory() for item in items) if pinned else items
    else:
        # Not forked from this process: a fork of a process with threads or a CUDA context can hang.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(
            ["detection3d.data.loader"]
        )  # so that torch is imported once, not by each worker
        items = DataLoader(
            batches,
            sampler=numbers,
            batch_size=None,
            collate_fn=_carry,
            num_workers=workers,
            pin_memory=pinned,
            multiprocessing_context=context,
            worker_init_fn=_start_worker,
            generator=torch.Generator(),  # the loader draws a seed for its workers, which must not move the global one
        )
    with _without_notices():
        started = iter(items)
    for item in _told_of_killed_workers(started):
        if isinstance(item.content, UserError):
            raise item.content
        yield item.content


@contextmanager
def _without_notices() -> Iterator[None]:
    """Start processes here that shall not hear of a cluster's wish to stop: unanswered, these signals would end them.

    The mask is inherited by the fork server, the workers and torch's own helpers, which start by nothing of ours. It
    leaves SIGTERM out, by which processes are ended.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1, signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _told_of_killed_workers(items: "Iterator[_Carrier]") -> "Iterator[_Carrier]":
    while True:
        try:
            item = next(items)
        except StopIteration:
            return
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):  # torch has no type of its own for it
                raise
            reason = "a loader process was killed, usually by the system for want of memory; lower data.workers"
            raise UserError(f"{reason} and run the same command again") from error
        yield item


def _start_worker(_: int) -> None:
    # Ctrl-C, and SIGTERM from a cluster that wants its node back, reach every process. The training process alone
    # answers them, for which it may need one more batch, and then ends the workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(GRACE))
    end_with_parent()  # torch's own watch looks at the fork server, which the training process leaves behind


@dataclass(frozen=True)
class _Carrier:
    """A batch on its way through torch's loader, which pins what has a `pin_memory` method."""

    content: Batch | UserError

    def pin_memory(self) -> "_Carrier":
        if isinstance(self.content, UserError):
            return self
        return _Carrier(pin(self.content))


def _carry(content: Any) -> _Carrier:
    return _Carrier(content)
