"""Objects of other frames that may be put into a sample: drawn and read by the loader's workers.

What is drawn for a sample is a function of (seed, its running index) and of its own labels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from detection3d.config import Config
from detection3d.data.counter_hash import uniform
from detection3d.data.object_database import ObjectDatabase
from detection3d.errors import UserError
from detection3d.types.scene import Boxes, ObjectType
from detection3d.types.tensors import BoxLabels, ObjectCandidates, PackedPoints

_OBJECTS = 0x4F424A00  # streams of `uniform`, two for each class; arbitrary, but a change changes every run


@dataclass(frozen=True)
class ObjectSampler:
    """Fills each sample up to a number of objects of each class.

    Attributes:
        database: where the objects come from.
        classes: object types of each class.
        totals: how many objects of each class a sample is filled up to.
        seed: of the run.
        first_sample_without: samples from this running index on get none.
    """

    database: ObjectDatabase
    classes: tuple[tuple[int, ...], ...]
    totals: tuple[int, ...]
    seed: int
    first_sample_without: int

    @classmethod
    def of(cls, config: Config) -> "ObjectSampler | None":
        """Return what a config asks for; None where it asks for no objects.

        Raises:
            UserError: the database isn't there, or has no object of a class.
        """
        wanted = config.augmentation.objects
        if wanted is None:
            return None
        database = ObjectDatabase.open(wanted.database)
        validation = config.data.validation
        cut_from = Path(database.record.store).resolve()
        if validation is not None and config.data.train != validation and cut_from == validation.resolve():
            reason = f"its objects were cut from the validation data, {validation}; make one of the training data"
            raise UserError(f"{wanted.database}: {reason}")
        steps = config.training.steps
        without = max(wanted.steps_without(steps), config.augmentation.steps_without(steps))
        sampler = cls(
            database,
            tuple(tuple(int(kind) for kind in item.types) for item in config.classes),
            tuple(wanted.totals.get(item.name, 0) for item in config.classes),
            config.seed,
            (steps - without) * config.training.batch_size,
        )
        for item, total, numbers in zip(config.classes, sampler.totals, sampler.numbers, strict=True):
            if total and not len(numbers):
                raise UserError(
                    f"{wanted.database}: holds no object of class {item.name}, which augmentation.objects.totals asks"
                    f" for; it holds {database.record.objects}"
                )
        return sampler

    @cached_property
    def numbers(self) -> "tuple[_Numbers, ...]":
        """The numbers in the database of each class's objects."""
        return tuple(_Numbers(self.database.ranges(types)) for types in self.classes)

    def describe(self) -> str:
        """Say what samples are filled up to, from how many."""
        filled = zip(self.classes, self.totals, self.numbers, strict=True)
        names = ("/".join(ObjectType(kind).name for kind in types) for types in self.classes)
        return ", ".join(
            f"up to {total} {name} of {len(numbers):,}"
            for name, (_, total, numbers) in zip(names, filled, strict=True)
            if total
        )

    def candidates(self, labels: Sequence[Boxes | None], sample_index: Sequence[int]) -> ObjectCandidates | None:
        """Draw and read objects for each sample.

        Args:
            labels: of the B samples.
            sample_index: running index of each.

        Returns:
            On the CPU, padded to the largest number of objects; None where no sample gets any.
        """
        drawn = [
            self._draw(boxes, sample) if sample < self.first_sample_without else []
            for boxes, sample in zip(labels, sample_index, strict=True)
        ]
        columns = max(map(len, drawn), default=0)
        return self._read(drawn, columns) if columns else None

    def _draw(self, labels: Boxes | None, sample: int) -> list[int]:
        there = np.zeros(0, np.uint8) if labels is None else labels.types
        found = []
        for number, (types, total) in enumerate(zip(self.classes, self.totals, strict=True)):
            missing = total - int(np.isin(there, types).sum())
            if missing > 0:
                index, count = torch.tensor(sample), torch.arange(missing)
                # Two draws of 24 bits, since a database may hold more objects than one can tell apart.
                coarse, fine = (
                    uniform(self.seed, _OBJECTS + 2 * number + part, index, count).double() for part in (0, 1)
                )
                places = ((coarse + fine * 2.0**-24) * len(self.numbers[number])).long()
                found += [self.numbers[number][place] for place in places.tolist()]
        return found

    def _read(self, drawn: Sequence[Sequence[int]], columns: int) -> ObjectCandidates:
        size = len(drawn)
        counts = np.zeros((size, columns), np.int64)
        boxes = np.zeros((size, columns, 7), np.float32)
        types = np.zeros((size, columns), np.int64)
        velocity = np.zeros((size, columns, 2), np.float32)
        parts = []
        for row, numbers in enumerate(drawn):
            for column, number in enumerate(numbers):
                parts.append(self.database.packed(number))
                counts[row, column] = len(parts[-1])
                boxes[row, column] = self.database.box(number)
                types[row, column] = self.database.object_type(number)
                velocity[row, column] = self.database.velocity(number)[:2]
        points = PackedPoints(
            xyz=torch.from_numpy(np.concatenate([part.xyz for part in parts])),
            features=torch.from_numpy(np.concatenate([part.features for part in parts])),
            flags=torch.from_numpy(np.concatenate([part.flags for part in parts])),
            counts=torch.from_numpy(counts.reshape(-1)),
        )
        labels = BoxLabels(
            boxes=torch.from_numpy(boxes),
            types=torch.from_numpy(types),
            num_points=torch.from_numpy(counts),
            velocity=torch.from_numpy(velocity),
        )
        return ObjectCandidates(points, labels)


class _Numbers:
    """Some ranges of numbers as one sequence."""

    def __init__(self, ranges: Sequence[range]) -> None:
        self._ranges = ranges

    def __len__(self) -> int:
        return sum(map(len, self._ranges))

    def __getitem__(self, place: int) -> int:
        for numbers in self._ranges:
            if place < len(numbers):
                return numbers[place]
            place -= len(numbers)
        raise IndexError(place)
