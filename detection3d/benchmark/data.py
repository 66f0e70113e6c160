"""Frames a second of each stage between a recording and the detector."""

import itertools
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import torch

from detection3d.benchmark.timing import Timing, wait_for
from detection3d.config import AugmentationConfig
from detection3d.data.augment import augment
from detection3d.data.collate import collate
from detection3d.data.loader import build_loader
from detection3d.data.object_candidates import ObjectSampler
from detection3d.data.object_database import ObjectDatabase
from detection3d.data.object_paste import paste_objects
from detection3d.data.preparation import Source, prepare
from detection3d.data.store import Store
from detection3d.data.unpack import unpack
from detection3d.errors import UserError
from detection3d.types.scene import Frame
from detection3d.types.tensors import to_device

USUAL_AUGMENTATION = AugmentationConfig(
    flip_x=0.5, flip_y=0.5, rotation=0.785, scale=0.05, translation=0.2, point_dropout=0.05
)
"""What the Waymo recipes use, and some drop-out."""

USUAL_CLASSES, USUAL_TOTALS = ((1,), (2,), (4,)), (15, 10, 10)
"""Vehicles, pedestrians and cyclists: the types, and what samples are filled up to."""


Turn = Callable[[int], float | None]
"""Decode so many frames after a first one, which doesn't count: seconds a frame, None where there is only one."""


def reading(read: Callable[[], Iterable[Frame]]) -> Turn:
    """Return the turns of a reader of ours.

    Args:
        read: start reading. The first frame doesn't count: it opens files and compiles.
    """

    def turn(frames: int) -> float | None:
        iterator = iter(read())
        next(iterator)
        start = time.perf_counter()
        count = sum(1 for _ in itertools.islice(iterator, frames))
        return (time.perf_counter() - start) / count if count else None

    return turn


def time_decoding(turns: dict[str, Turn], *, frames: int, rounds: int) -> dict[str, Timing]:
    """Return how long a frame takes by each reader; they take turns.

    Args:
        turns: by name.
        frames: to decode in a turn.
        rounds: turns of each reader.

    Raises:
        UserError: a file holds a single frame.
    """
    seconds: dict[str, list[float]] = {name: [] for name in turns}
    for _ in range(rounds):
        for name, turn in turns.items():
            taken = turn(frames)
            if taken is None:
                raise UserError(f"{name}: the file holds one frame, and the first doesn't count; give a longer one")
            seconds[name].append(taken)
    return {name: Timing(tuple(values)) for name, values in seconds.items()}


def prepare_rate(sources: Sequence[Source], workers: int) -> float:
    """Return the frames a second of a preparation into a temporary folder (of TMPDIR), its processes' start included.

    Args:
        sources: what to prepare.
        workers: processes.

    Raises:
        UserError: a source can't be used.
    """
    with tempfile.TemporaryDirectory() as output:
        start = time.perf_counter()
        outcome = prepare(sources, Path(output), workers=workers)
        if outcome.left_out:
            raise UserError(f"{outcome.left_out[0].name} can't be prepared: {outcome.left_out[0].reason}")
        return sum(record.frames for record in outcome.prepared) / (time.perf_counter() - start)


def read_rate(store: Store, *, reads: int) -> float:
    """Return the frames a second that one core reads in random order to tensors, labels too, with a hot cache."""
    order = np.random.default_rng(0).integers(0, len(store), reads).tolist()
    for index in set(order):
        collate(store, [index], [index])
    start = time.perf_counter()
    for index in order:
        collate(store, [index], [index])
    return reads / (time.perf_counter() - start)


def loading_rate(
    store: Store,
    device: torch.device,
    *,
    batch_size: int,
    steps: int,
    workers: int,
    database: ObjectDatabase | None = None,
) -> float:
    """Return the frames a second that arrive on the device as floats, augmented: all that comes before the detector.

    Args:
        store: the frames.
        device: where they are to arrive.
        batch_size: samples of a step.
        steps: that count; some more come first.
        workers: processes that read.
        database: of objects, with which samples are filled up as the Waymo recipes do; None adds none.
    """
    warm_up = max(2 * workers, 5)
    sampler = None
    if database is not None:
        sampler = ObjectSampler(database, USUAL_CLASSES, USUAL_TOTALS, 0, (warm_up + steps) * batch_size)
    loader = build_loader(
        store, global_batch_size=batch_size, seed=0, total_steps=warm_up + steps, workers=workers, objects=sampler
    )
    start = 0.0
    for step, host_batch in enumerate(loader):
        batch = to_device(host_batch, device)
        points, labels = unpack(batch.points), batch.labels
        if batch.objects is not None:
            points, labels = paste_objects(points, labels, unpack(batch.objects.points), batch.objects.labels)
        augment(points, labels, config=USUAL_AUGMENTATION, seed=0, sample_index=batch.sample_index)
        if step == warm_up - 1:
            wait_for(device)
            start = time.perf_counter()
    wait_for(device)
    return steps * batch_size / (time.perf_counter() - start)


def points_a_frame(store: Store) -> float:
    """Return the mean number of points, of at most a hundred frames."""
    chosen = np.linspace(0, len(store) - 1, min(len(store), 100)).astype(int)
    return float(np.mean([len(store.packed(int(index))) for index in chosen]))
