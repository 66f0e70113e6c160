"""What a comparison of methods found: runs over seeds, and their paired differences to the baseline."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from detection3d.evaluation.files.metrics_json import MEAN_TYPES
from detection3d.evaluation.metrics import Metrics
from detection3d.evaluation.paired import PairedDifference, compare_paired

Metric = Literal["ap", "aph", "error"]
METRICS: dict[Metric, str] = {"ap": "AP", "aph": "APH", "error": "error"}
"""By how they are written. Of LEVEL_2, means over the classes with ground truth; the first one decides."""

LEVEL = 2
CONVERGED = 0.005
"""Largest move of the mean AP over the last quarter of the schedule that counts as converged: half a point."""


@dataclass(frozen=True)
class ClassScores:
    """The metrics of one class, in [0, 1].

    Attributes:
        name: of the object type.
        ap: average precision.
        aph: likewise, weighted by heading accuracy.
        error: 1 minus the best F1 over the score cutoffs, the counterpart of the paper's maximal F1.
    """

    name: str
    ap: float
    aph: float
    error: float


@dataclass(frozen=True)
class Scores:
    """What an evaluation of one checkpoint gave.

    Attributes:
        step: of the checkpoint.
        classes: those with ground truth.
    """

    step: int
    classes: tuple[ClassScores, ...]

    def mean(self, metric: Metric) -> float:
        """Return the mean over the classes."""
        return float(np.mean([getattr(item, metric) for item in self.classes]))

    def of(self, name: str) -> ClassScores:
        """Return the metrics of one class; KeyError where it has no ground truth."""
        for item in self.classes:
            if item.name == name:
                return item
        raise KeyError(name)


@dataclass(frozen=True)
class RunScores:
    """A finished run.

    Attributes:
        seed: of weights, batches and draw.
        learning_rate: the schedule's peak.
        final: after the last step.
        early: at three quarters of the schedule; None where it was not asked for.
        seconds: that training took, without what ran before an interruption.
        weights: digest of the initial weights, the method's own state left out.
    """

    seed: int
    learning_rate: float
    final: Scores
    early: Scores | None
    seconds: float
    weights: str


@dataclass(frozen=True)
class FailedRun:
    """A run without a result.

    Attributes:
        learning_rate: the schedule's peak.
        seed: of the run.
        reason: one line.
        log: path of what it printed, relative to the comparison's folder.
    """

    learning_rate: float
    seed: int
    reason: str
    log: str


@dataclass(frozen=True)
class RateChoice:
    """How a method's learning rate was chosen.

    Attributes:
        rates: the grid, ascending.
        scores: for each rate the mean AP of its runs by seed; shorter where runs failed.
        chosen: the rate with the best mean, the smallest of equal ones; None where none has all its runs.
        at_edge: the chosen one is the grid's first or last, so that a better one may lie outside.
    """

    rates: tuple[float, ...]
    scores: tuple[Mapping[int, float], ...]
    chosen: float | None
    at_edge: bool


@dataclass(frozen=True)
class Speed:
    """Training speed relative to the baseline without telemetry, from interleaved steps in one process.

    Attributes:
        relative: baseline's time over the method's, the method's telemetry included as often as it runs in training.
        quartiles: first and third, over the pairs of steps without telemetry.
        step_seconds: median of the method's step without telemetry.
        baseline_seconds: median of the baseline's step.
        telemetry_step: relative speed of a step that measures telemetry.
        pairs: of each kind.
        device: that it was measured on.
    """

    relative: float
    quartiles: tuple[float, float]
    step_seconds: float
    baseline_seconds: float
    telemetry_step: float
    pairs: int
    device: str


@dataclass(frozen=True)
class Convergence:
    """How far the validation mean AP moved over the last quarter of the schedule.

    Attributes:
        moves: final minus early, by seed.
        mean: of the moves.
        holds: whether the mean's size is below `CONVERGED`.
    """

    moves: Mapping[int, float]
    mean: float
    holds: bool


@dataclass(frozen=True)
class MethodRuns:
    """All that is known of one method.

    Attributes:
        name: as given on the command line.
        settings: the config's section, as plain values.
        choice: of the learning rate.
        runs: the finished final runs by ascending seed.
        failed: of both phases.
        missing: seeds without a finished final run.
        speed: None where it was not measured.
        telemetry: by quantity, (steps, values), means over the final runs.
    """

    name: str
    settings: Mapping[str, object]
    choice: RateChoice
    runs: tuple[RunScores, ...]
    failed: tuple[FailedRun, ...]
    missing: tuple[int, ...]
    speed: Speed | None
    telemetry: Mapping[str, tuple[Sequence[float], Sequence[float]]]

    def values(self, metric: Metric) -> list[float]:
        """Return the metric of each finished run."""
        return [run.final.mean(metric) for run in self.runs]

    @property
    def convergence(self) -> Convergence | None:
        """Over the last quarter; None without runs that were evaluated there."""
        moves = {run.seed: run.final.mean("ap") - run.early.mean("ap") for run in self.runs if run.early is not None}
        if not moves:
            return None
        mean = float(np.mean(list(moves.values())))
        return Convergence(moves, mean, abs(mean) < CONVERGED)


@dataclass(frozen=True)
class Comparison:
    """Methods against a baseline.

    Attributes:
        baseline: its name; it is among the methods.
        methods: in the order given.
        seeds: of the final runs.
        grid_seeds: of the learning rates' choice.
        frames: of the validation set.
    """

    baseline: str
    methods: tuple[MethodRuns, ...]
    seeds: tuple[int, ...]
    grid_seeds: tuple[int, ...]
    frames: int

    def method(self, name: str) -> MethodRuns:
        """Return a method; KeyError where there is none of that name."""
        for item in self.methods:
            if item.name == name:
                return item
        raise KeyError(name)

    def differences(self, metric: Metric) -> dict[str, PairedDifference]:
        """Return every other method minus the baseline, paired by seed; Holm's family are these methods."""
        return compare_paired(
            {
                item.name: list(self.paired(item.name, metric).values())
                for item in self.methods
                if item.name != self.baseline
            }
        )

    def paired(self, name: str, metric: Metric) -> dict[int, float]:
        """Return a method minus the baseline for each seed that both have."""
        base = {run.seed: run.final.mean(metric) for run in self.method(self.baseline).runs}
        runs = self.method(name).runs
        return {run.seed: run.final.mean(metric) - base[run.seed] for run in runs if run.seed in base}

    @property
    def idle(self) -> tuple[str, ...]:
        """Methods that changed nothing: each run has the very scores of the baseline's with the same seed."""
        base = {run.seed: run for run in self.method(self.baseline).runs}
        names = []
        for item in self.methods:
            pairs = [(run, base[run.seed]) for run in item.runs if run.seed in base]
            if item.name != self.baseline and pairs and all(ours.final == theirs.final for ours, theirs in pairs):
                names.append(item.name)
        return tuple(names)

    @property
    def complete(self) -> bool:
        """Whether every planned final run is there."""
        return not any(method.missing for method in self.methods)


def score(metrics: Metrics, step: int) -> Scores:
    """Return the scores of an evaluation.

    Args:
        metrics: the result of `evaluate`.
        step: of the checkpoint.

    Raises:
        ValueError: no class has ground truth.
    """
    classes = []
    for row in metrics.rows:
        if row.breakdown == "OBJECT_TYPE" and row.level == LEVEL and row.shard.object_type in MEAN_TYPES:
            if not row.ground_truth:
                continue
            precision, recall = row.curve.precision.astype(np.float64), row.curve.recall.astype(np.float64)
            total = precision + recall
            f1 = np.divide(2 * precision * recall, total, out=np.zeros_like(total), where=total > 0)
            error = 1 - float(f1.max())
            classes.append(ClassScores(row.shard.object_type.name, float(row.ap), float(row.aph), error))
    if not classes:
        raise ValueError("the validation set holds no object of any class, so methods can't be told apart on it")
    return Scores(step, tuple(classes))


def choose_rate(rates: Sequence[float], scores: Sequence[Mapping[int, float]], seeds: Sequence[int]) -> RateChoice:
    """Choose the learning rate with the best mean over all seeds.

    A rate with a failed run can't be chosen: its other runs alone would be a choice of luck.

    Args:
        rates: ascending; a single one needs no runs.
        scores: for each rate, the mean AP by seed.
        seeds: that each rate was to be tried with.
    """
    if len(rates) == 1:
        return RateChoice(tuple(rates), tuple(scores), rates[0], at_edge=False)
    means = {
        rate: float(np.mean([found[seed] for seed in seeds]))
        for rate, found in zip(rates, scores, strict=True)
        if all(seed in found for seed in seeds)
    }
    chosen = max(means, key=lambda rate: (means[rate], -rate)) if means else None
    return RateChoice(tuple(rates), tuple(scores), chosen, at_edge=chosen in (rates[0], rates[-1]))
