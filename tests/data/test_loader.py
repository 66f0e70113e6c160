import itertools
import multiprocessing
import os
import signal
from dataclasses import fields, is_dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from detection3d.data.loader import build_loader, evaluation_batches
from detection3d.data.sampling import Sampling
from detection3d.data.store import Store
from detection3d.errors import DataError, UserError
from detection3d.types.tensors import Batch
from tests.data.made_frames import make_frame, write_store

FRAMES = 7


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    root = tmp_path_factory.mktemp("store")
    first = [make_frame("a", time, points=20 + time, boxes=time) for time in range(4)]
    second = [make_frame("b", 9, points=0), make_frame("b", 10, boxes=0), make_frame("b", 11, boxes=5)]
    write_store(root, {"a": first, "b": second})
    return Store.open(root)


@pytest.mark.parametrize("workers", [0, 1])
def test_training_refuses_frames_without_labels_and_evaluation_takes_them(tmp_path, workers):
    write_store(tmp_path, {"c": [make_frame("c", 1), make_frame("c", 2, boxes=None)]})
    store = Store.open(tmp_path)
    with pytest.raises(DataError, match=r"frame c at 2 has no labels.*train on a store of labelled data"):
        list(build_loader(store, global_batch_size=2, seed=0, total_steps=1, workers=workers))
    (batch,) = evaluation_batches(store, batch_size=2, workers=workers)
    assert (batch.labels.types > 0).sum(1).tolist() == [3, 0]


def assert_equal(actual: Batch, expected: Batch) -> None:
    assert actual.keys == expected.keys
    assert torch.equal(actual.sample_index, expected.sample_index)
    for part in ("points", "labels"):
        ours, theirs = getattr(actual, part), getattr(expected, part)
        assert_tensors_equal(ours, theirs)


def assert_tensors_equal(actual, expected) -> None:
    for field in fields(expected):
        ours, theirs = getattr(actual, field.name), getattr(expected, field.name)
        if is_dataclass(theirs):
            assert_tensors_equal(ours, theirs)
        else:
            assert (ours is theirs is None) or torch.equal(ours, theirs), field.name


def concatenate_points(batches: list[Batch]) -> list[torch.Tensor]:
    names = ("xyz", "features", "flags", "counts")
    return [torch.cat([getattr(batch.points, name) for batch in batches]) for name in names]


def test_a_batch_holds_the_frames_of_the_store(store):
    number = {store.key(index): index for index in range(len(store))}
    (batch,) = build_loader(store, global_batch_size=FRAMES, seed=0, total_steps=1)
    assert sorted(number[key] for key in batch.keys) == list(range(FRAMES))
    assert batch.sample_index.tolist() == list(range(FRAMES))
    assert batch.labels.boxes.shape == (FRAMES, 5, 7)
    ends = batch.points.counts.cumsum(0).tolist()
    for sample, (key, end) in enumerate(zip(batch.keys, ends, strict=True)):
        packed, labels = store.packed(number[key]), store.labels(number[key])
        rows = slice(end - len(packed), end)
        np.testing.assert_array_equal(batch.points.xyz[rows].numpy(), packed.xyz)
        np.testing.assert_array_equal(batch.points.features[rows].numpy(), packed.features)
        np.testing.assert_array_equal(batch.points.flags[rows].numpy(), packed.flags)
        count = 0 if labels is None else len(labels)
        assert (batch.labels.types[sample, count:] == 0).all()
        assert (batch.labels.boxes[sample, count:] == 0).all()
        if labels is not None:
            np.testing.assert_array_equal(batch.labels.boxes[sample, :count].numpy(), labels.boxes)
            np.testing.assert_array_equal(batch.labels.types[sample, :count].numpy(), labels.types)
            np.testing.assert_array_equal(batch.labels.num_points[sample, :count].numpy(), labels.num_points)
            np.testing.assert_array_equal(batch.labels.velocity[sample, :count].numpy(), labels.velocity[:, :2])
    types = {field.name: getattr(batch.labels, field.name).dtype for field in fields(batch.labels)}
    assert types == {
        "boxes": torch.float32,
        "types": torch.int64,
        "num_points": torch.int64,
        "velocity": torch.float32,
    }


def test_frames_without_boxes_or_points_make_a_batch(store):
    batches = list(evaluation_batches(store, batch_size=1))
    assert batches[0].labels.boxes.shape == (1, 1, 7)  # no boxes: one column of padding
    assert batches[5].labels.types.tolist() == [[0]]  # no labels
    assert batches[4].points.xyz.shape == (0, 3)


def test_every_epoch_holds_every_frame_once_in_another_order(store):
    batches = list(build_loader(store, global_batch_size=3, seed=5, total_steps=FRAMES))  # three epochs
    keys = [key for batch in batches for key in batch.keys]
    epochs = [keys[start : start + FRAMES] for start in range(0, 3 * FRAMES, FRAMES)]
    assert all(len(set(epoch)) == FRAMES for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert torch.cat([batch.sample_index for batch in batches]).tolist() == list(range(3 * FRAMES))
    other = [key for batch in build_loader(store, global_batch_size=3, seed=6, total_steps=3) for key in batch.keys]
    assert other != keys[:9]


def test_without_shuffling_the_order_is_that_of_the_store(store):
    batches = build_loader(store, global_batch_size=5, seed=5, total_steps=2, sampling=Sampling(shuffle=False))
    keys = [key for batch in batches for key in batch.keys]
    assert keys == [store.key(index % FRAMES) for index in range(10)]


@pytest.mark.parametrize("start", [1, 4, 6])
def test_a_resumed_run_gets_the_same_batches(store, start):
    whole = list(build_loader(store, global_batch_size=4, seed=1, total_steps=6))
    rest = list(build_loader(store, global_batch_size=4, seed=1, total_steps=6, start_step=start))
    assert len(rest) == 6 - start
    for actual, expected in zip(rest, whole[start:], strict=True):
        assert_equal(actual, expected)


@pytest.mark.parametrize("world_size", [2, 3, 6])
def test_the_ranks_together_hold_the_global_batch(store, world_size):
    options = {"global_batch_size": 6, "seed": 2, "total_steps": 4}
    ranks = [build_loader(store, rank=rank, world_size=world_size, **options) for rank in range(world_size)]
    for whole, *shares in zip(build_loader(store, **options), *ranks, strict=True):
        assert [share.size for share in shares] == [6 // world_size] * world_size
        assert tuple(key for share in shares for key in share.keys) == whole.keys
        assert torch.equal(torch.cat([share.sample_index for share in shares]), whole.sample_index)
        for actual, expected in zip(concatenate_points(shares), concatenate_points([whole]), strict=True):
            assert torch.equal(actual, expected)


def test_workers_change_nothing_and_bring_errors_back(store, tmp_path):
    options = {"global_batch_size": 4, "seed": 1, "total_steps": 6}
    state = torch.get_rng_state()
    with_workers = list(build_loader(store, workers=2, **options))
    assert torch.equal(state, torch.get_rng_state())
    for actual, expected in zip(with_workers, build_loader(store, **options), strict=True):
        assert_equal(actual, expected)

    write_store(tmp_path, {"a": [make_frame("a", 1)]})
    damaged = Store.open(tmp_path)
    (tmp_path / "segments" / "a" / "points.bin").unlink()
    with pytest.raises(DataError, match=r"points\.bin: can't be mapped"):
        list(build_loader(damaged, workers=1, **options))


class DeadlyStore(Store):
    """Ends the process that unpickles it, as the system ends one for want of memory."""

    def __reduce__(self):
        return os._exit, (9,)


@pytest.mark.slow  # torch looks after its workers every five seconds
def test_a_killed_worker_is_told_in_words(store):
    deadly = DeadlyStore(store.root, ("a", "b"), np.array([4, 3]))
    with pytest.raises(UserError, match=r"a loader process was killed.*data\.workers"):
        list(evaluation_batches(deadly, batch_size=2, workers=1))


def test_workers_that_are_asked_to_stop_still_deliver(store):
    """A cluster sends SIGTERM to every process; the training process may need a batch to save what it has."""
    batches = evaluation_batches(store, batch_size=1, workers=2)
    seen = [next(batches).keys]
    for worker in multiprocessing.active_children():
        os.kill(worker.pid, signal.SIGTERM)
    seen += [batch.keys for batch in batches]
    assert [key for keys in seen for key in keys] == [store.key(index) for index in range(FRAMES)]


@pytest.mark.parametrize("world_size", [1, 2, 3, 9])
def test_evaluation_reads_every_frame_once_in_order(store, world_size):
    shares = [
        list(evaluation_batches(store, batch_size=2, rank=rank, world_size=world_size)) for rank in range(world_size)
    ]
    batches = list(itertools.chain.from_iterable(shares))
    assert [key for batch in batches for key in batch.keys] == [store.key(index) for index in range(FRAMES)]
    assert torch.cat([batch.sample_index for batch in batches]).tolist() == list(range(FRAMES))
    assert all(batch.size == 2 for share in shares for batch in share[:-1])


@pytest.mark.parametrize("world_size", [2, 3, 4, 5])
def test_shares_may_be_unequal_and_none_is_empty(store, world_size):
    options = {"global_batch_size": 5, "seed": 1, "total_steps": 2}
    whole = list(build_loader(store, **options))
    shares = [list(build_loader(store, **options, rank=rank, world_size=world_size)) for rank in range(world_size)]
    for step, batch in enumerate(whole):
        sizes = [share[step].size for share in shares]
        assert sum(sizes) == 5
        assert max(sizes) - min(sizes) <= 1
        assert [key for share in shares for key in share[step].keys] == list(batch.keys)
        assert torch.equal(torch.cat([share[step].sample_index for share in shares]), batch.sample_index)


@pytest.mark.parametrize("world_size", [1, 2])
def test_micro_batches_are_shares_of_which_ranks_have_shares(store, world_size):
    options = {"global_batch_size": 5, "seed": 1, "total_steps": 2, "micro_batches": 2, "world_size": world_size}
    shares = [list(build_loader(store, **options, rank=rank)) for rank in range(world_size)]
    for step in range(2):
        found = [share[step].sample_index.split(share[step].parts) for share in shares]
        micro = [torch.cat([parts[number] for parts in found]).tolist() for number in range(2)]
        assert micro == [[5 * step, 5 * step + 1], [5 * step + 2, 5 * step + 3, 5 * step + 4]]
    with pytest.raises(UserError, match=r"batch_size is 5 in 2 micro-batches, so 3 ranks .* start at most 2 ranks"):
        build_loader(store, **{**options, "world_size": 3})


def test_what_cannot_be_shared_is_refused(store):
    with pytest.raises(UserError, match="batch_size is 4, so 5 ranks would not have a sample each; start at most 4"):
        build_loader(store, global_batch_size=4, seed=0, total_steps=1, world_size=5)
    with pytest.raises(UserError, match="batch_size is 0"):
        build_loader(store, global_batch_size=0, seed=0, total_steps=1)
    with pytest.raises(UserError, match="a batch of 0 samples"):
        evaluation_batches(store, batch_size=0)
    with pytest.raises(UserError, match="the store has no frames"):
        build_loader(Store(Path("x"), (), np.zeros(0, np.int64)), global_batch_size=1, seed=0, total_steps=1)


def test_every_tensor_is_pinned_where_there_is_a_gpu(store, monkeypatch):
    options = {"global_batch_size": 3, "seed": 0, "total_steps": 1, "sweeps": 2}
    expected = next(build_loader(store, **options))
    pinned = []

    def pin_memory(tensor: torch.Tensor) -> torch.Tensor:
        pinned.append(tensor.clone())
        return pinned[-1]

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.Tensor, "pin_memory", pin_memory)
    batch = next(build_loader(store, **options))
    assert_equal(batch, expected)
    assert {id(tensor) for tensor in tensors_of(batch)} == {id(tensor) for tensor in pinned}


def tensors_of(part) -> list[torch.Tensor]:
    if isinstance(part, torch.Tensor):
        return [part]
    return (
        [tensor for field in fields(part) for tensor in tensors_of(getattr(part, field.name))]
        if is_dataclass(part)
        else []
    )


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("workers", [0, 1])
def test_memory_is_pinned(store, workers):
    (batch,) = build_loader(store, global_batch_size=2, seed=0, total_steps=1, workers=workers)
    assert all(tensor.is_pinned() for tensor in tensors_of(batch))
