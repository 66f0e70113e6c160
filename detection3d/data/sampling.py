"""Which frames an epoch of training holds, and in what order: functions of (seed, epoch, position) alone."""

import functools
import itertools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from detection3d.config import Config
from detection3d.data.counter_hash import permutation
from detection3d.data.store import Store
from detection3d.errors import UserError

_STREAM_BITS = 40  # of an epoch's or a cycle's number; what lies above tells the permutations apart


@dataclass(frozen=True)
class Sampling:
    """How training draws frames from a store.

    Attributes:
        every: of each segment, take every so many frames, from the first on.
        classes: object types of each class between which to balance; none: an epoch holds every frame once.
        min_points: a frame counts for a class if an object of it has at least so many lidar points.
        shuffle: whether each epoch has its own random order; otherwise that of the store.
    """

    every: int = 1
    classes: tuple[tuple[int, ...], ...] = ()
    min_points: int = 1
    shuffle: bool = True

    @classmethod
    def of(cls, config: Config) -> "Sampling":
        """Return what a config says."""
        balanced = config.data.sampling == "class_balanced"
        classes = tuple(tuple(int(kind) for kind in item.types) for item in config.classes) if balanced else ()
        return cls(every=config.data.every, classes=classes, min_points=config.loss.min_points)


class FrameOrder:
    """The frames of every epoch of a run, one by one.

    Balanced epochs are as long as plain ones, and each class has an equal share: frames that hold the class, each once
    before any comes again, going on from epoch to epoch. It is the aim of class-balanced grouping and sampling (Zhu et
    al., 2019, arXiv:1908.09492), without a longer epoch.

    Args:
        store: the prepared store.
        sampling: how to draw.
        seed: of the run.

    Raises:
        UserError: the store has no frames, or none with a class between which to balance.
    """

    def __init__(self, store: Store, sampling: Sampling, seed: int) -> None:
        if len(store) == 0:
            raise UserError(f"{store.root}: the store has no frames")
        if sampling.classes and not sampling.shuffle:
            raise ValueError("balanced epochs are random; they have no order of the store's")
        self._frames = store.every(sampling.every)
        self._seed = seed
        self._shuffle = sampling.shuffle
        self._of_class: list[npt.NDArray[np.int64]] = []
        self._cycles: dict[int, tuple[int, npt.NDArray[np.int64]]] = {}
        for number, types in enumerate(sampling.classes):
            found = store.holds(types, sampling.min_points)[self._frames]
            if not found.any():
                raise UserError(
                    f"{store.root}: no frame has an object of class {number} (types {types}) with"
                    f" {sampling.min_points} points or more, so data.sampling can't be class_balanced"
                )
            self._of_class.append(self._frames[found])
        share, more = divmod(len(self._frames), max(len(sampling.classes), 1))
        shares = [share + (number < more) for number in range(len(sampling.classes))]
        self._starts = tuple(itertools.accumulate([0, *shares]))

    def __len__(self) -> int:
        """Number of samples in an epoch."""
        return len(self._frames)

    def frame(self, sample: int) -> int:
        """Return the number in the store of the run's `sample`, counted over all epochs."""
        epoch, position = divmod(sample, len(self))
        if not self._shuffle:
            return int(self._frames[position])
        if not self._of_class:
            return int(self._frames[_permutation(self._seed, epoch, len(self))[position]])
        number, turn = (int(values[position]) for values in _turns(self._seed, epoch, self._starts))
        frames = self._of_class[number]
        share = self._starts[number + 1] - self._starts[number]
        cycle, place = divmod(epoch * share + turn, len(frames))
        return int(frames[self._cycle(number, cycle)[place]])

    def _cycle(self, number: int, cycle: int) -> npt.NDArray[np.int64]:
        """Return the order of a class's frames in a cycle; the last one of each class is remembered."""
        known = self._cycles.get(number)
        if known is None or known[0] != cycle:
            stream = (number + 1 << _STREAM_BITS) + cycle
            known = self._cycles[number] = cycle, permutation(self._seed, stream, len(self._of_class[number]))
        return known[1]


@functools.lru_cache(maxsize=2)
def _turns(seed: int, epoch: int, starts: tuple[int, ...]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return for each position of an epoch its class, and how many positions of that class come before it."""
    classes = np.searchsorted(starts, _permutation(seed, epoch, starts[-1]), side="right") - 1
    turns = np.empty_like(classes)
    for number in range(len(starts) - 1):
        mine = classes == number
        turns[mine] = np.arange(mine.sum())
    return classes, turns


@functools.lru_cache(maxsize=2)  # a batch spans two epochs at most, unless the store is smaller than a batch
def _permutation(seed: int, stream: int, size: int) -> npt.NDArray[np.int64]:
    return permutation(seed, stream, size)
