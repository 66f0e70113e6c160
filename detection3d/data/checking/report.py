"""What a check found."""

from collections import Counter
from dataclasses import dataclass

from detection3d.data.checking.examination import Problem


@dataclass(frozen=True)
class Suspicion:
    """Something that can be used, and is probably not what was meant.

    Attributes:
        name: what it is about, such as "heading".
        message: the likely cause, and what to do.
        evidence: the figures that speak for it.
    """

    name: str
    message: str
    evidence: str


@dataclass(frozen=True)
class Report:
    """What a check found.

    Attributes:
        recordings: number that were read.
        frames: number of frames in them.
        boxes: number of labelled objects.
        problems: errors, the first ones of each kind and recording.
        counts: how many errors of each kind there are.
        suspicions: judged over the whole data set.
    """

    recordings: int
    frames: int
    boxes: int
    problems: tuple[Problem, ...]
    counts: Counter[str]
    suspicions: tuple[Suspicion, ...]

    @property
    def errors(self) -> int:
        """Number of errors, those that aren't listed included."""
        return self.counts.total()
