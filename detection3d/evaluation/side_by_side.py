"""Several evaluations on the same ground truth: their metrics, the differences to the first, and what supports them.

A difference counts as shown where the interval of resampled segments leaves out 0; never otherwise.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from detection3d.errors import UserError
from detection3d.evaluation.analysis import Analysis, analyse
from detection3d.evaluation.bootstrap import (
    FEWEST_SEGMENTS,
    RESAMPLES,
    SEED,
    ResampledMetrics,
    interval,
    resample_segments,
    resampled_metrics,
)
from detection3d.evaluation.files.evaluated_folder import EvaluatedFolder, check_unchanged, short_labels
from detection3d.evaluation.files.metrics_json import MEAN_TYPES, mean_metrics
from detection3d.evaluation.ground_truth import GroundTruth
from detection3d.evaluation.metrics import MetricConfig, Metrics, evaluate
from detection3d.evaluation.segment_counts import SegmentCounts, count_segments
from detection3d.types.scene import ObjectType

Measure = Literal["APH", "AP"]
MEASURES: tuple[Measure, ...] = ("APH", "AP")

Verdict = Literal["higher", "lower", "no difference shown", "too few segments"]

Interval = tuple[float, float]


@dataclass(frozen=True)
class RowKey:
    """A row of the comparison.

    Attributes:
        object_type: None for the mean over vehicles, pedestrians and cyclists.
        level: the difficulty level.
    """

    object_type: ObjectType | None
    level: int

    @property
    def name(self) -> str:
        """Such as "VEHICLE_LEVEL_2" or "MEAN_LEVEL_2"."""
        return f"{'MEAN' if self.object_type is None else self.object_type.name}_LEVEL_{self.level}"


@dataclass(frozen=True)
class Difference:
    """An evaluation minus the first, in one metric.

    Attributes:
        value: of the whole.
        interval: of 95 % by itself; None where there are too few segments.
        verdict: "higher" or "lower" only where the interval leaves out 0.
    """

    value: float
    interval: Interval | None
    verdict: Verdict


@dataclass(frozen=True)
class Value:
    """One metric of one evaluation.

    Attributes:
        value: of the whole, in [0, 1]; None where there is no ground truth.
        interval: of 95 %; None likewise, or where there are too few segments.
        difference: to the first evaluation; None for the first itself, or without a value.
    """

    value: float | None
    interval: Interval | None
    difference: Difference | None


@dataclass(frozen=True)
class Column:
    """One evaluation.

    Attributes:
        label: what tells it from the others.
        folder: where it comes from.
        metrics: computed from its boxes.
        analysis: likewise.
        values: by row and measure.
    """

    label: str
    folder: EvaluatedFolder
    metrics: Metrics
    analysis: Analysis
    values: dict[tuple[RowKey, Measure], Value]


@dataclass(frozen=True)
class SideBySide:
    """Evaluations side by side; the first is what the others are compared with.

    Attributes:
        columns: the evaluations.
        rows: those of the tables, the means last.
        segments: number of segments that were resampled.
        segments_with: by row, number of segments with an object of it (of each of its types, the fewest, for a mean).
        resamples: how many there were.
        seed: of the draws.
        notes: what a reader should know before comparing.
    """

    columns: tuple[Column, ...]
    rows: tuple[RowKey, ...]
    segments: int
    segments_with: dict[RowKey, int]
    resamples: int
    seed: int
    notes: tuple[str, ...]

    @property
    def headline(self) -> RowKey:
        """The mean at the hardest level."""
        return max((row for row in self.rows if row.object_type is None), key=lambda row: row.level)


def compare_evaluations(
    folders: Sequence[EvaluatedFolder], resamples: int = RESAMPLES, seed: int = SEED, config: MetricConfig | None = None
) -> SideBySide:
    """Compare evaluations with the first of them.

    Args:
        folders: at least one; all on the same ground truth.
        resamples: of the segments.
        seed: of the draws.
        config: the metrics' configuration that all were evaluated with; None takes the official one.

    Raises:
        UserError: their ground truths differ.
        DataError: an evaluation's files no longer give the metrics that its metrics.json says.
    """
    config = MetricConfig() if config is None else config
    labels = short_labels([folder.path for folder in folders])
    for label, folder in zip(labels[1:], folders[1:], strict=True):
        _check_same_ground_truth(labels[0], folders[0].ground_truth, label, folder.ground_truth)
    segments = sorted({item.context_name for folder in folders for item in (*folder.predictions, *folder.ground_truth)})
    weights = resample_segments(len(segments), resamples, seed)
    columns: list[Column] = []
    baseline: dict[tuple[RowKey, Measure], np.ndarray] = {}
    counts: SegmentCounts | None = None
    for label, folder in zip(labels, folders, strict=True):
        metrics = evaluate(folder.predictions, folder.ground_truth, config)
        check_unchanged(folder, metrics)
        counts = count_segments(folder.predictions, folder.ground_truth, segments, config)
        drawn = _by_row(resampled_metrics(counts, weights, config.recall_step), counts)
        baseline = baseline or drawn
        wholes = _wholes(metrics)
        first = columns[0].values if columns else None
        enough = {row: number >= FEWEST_SEGMENTS for row, number in _segments_with(counts).items()}
        values = {
            key: _value(
                whole, drawn[key], baseline[key], first[key].value if first else None, first is None, enough[key[0]]
            )
            for key, whole in wholes.items()
        }
        analysis = analyse(folder.predictions, folder.ground_truth, metrics, config)
        columns.append(Column(label, folder, metrics, analysis, values))
    assert counts is not None, "there is at least one folder"
    return SideBySide(
        columns=tuple(columns),
        rows=tuple(dict.fromkeys(row for row, _ in columns[0].values)),
        segments=len(segments),
        segments_with=_segments_with(counts),
        resamples=resamples,
        seed=seed,
        notes=tuple(_notes(columns)),
    )


def _value(
    whole: float | None, drawn: np.ndarray, baseline: np.ndarray, first: float | None, is_first: bool, enough: bool
) -> Value:
    if whole is None:
        return Value(None, None, None)
    own = interval(drawn) if enough else None
    if is_first or first is None:
        return Value(whole, own, None)
    spread = interval(drawn - baseline) if enough else None
    verdict: Verdict = "too few segments" if spread is None else "no difference shown"
    if spread is not None and not spread[0] <= 0 <= spread[1]:
        verdict = "higher" if spread[0] > 0 else "lower"
    return Value(whole, own, Difference(whole - first, spread, verdict))


def _wholes(metrics: Metrics) -> dict[tuple[RowKey, Measure], float | None]:
    """Return every row's AP and APH: the types' first, then the means."""
    result: dict[tuple[RowKey, Measure], float | None] = {}
    for row in metrics.rows:
        if row.breakdown == "OBJECT_TYPE" and row.shard.object_type in MEAN_TYPES:
            key = RowKey(row.shard.object_type, row.level)
            result[key, "APH"] = float(row.aph) if row.ground_truth else None
            result[key, "AP"] = float(row.ap) if row.ground_truth else None
    for level, mean in mean_metrics(metrics).items():
        result[RowKey(None, level), "APH"] = mean.aph
        result[RowKey(None, level), "AP"] = mean.ap
    return result


def _by_row(drawn: ResampledMetrics, counts: SegmentCounts) -> dict[tuple[RowKey, Measure], np.ndarray]:
    """Return float64 [B] of each row and measure; a mean is over the types that the resample has objects of."""
    result: dict[tuple[RowKey, Measure], np.ndarray] = {}
    values: tuple[tuple[Measure, np.ndarray], ...] = (("APH", drawn.aph), ("AP", drawn.ap))
    for measure, columns in values:
        for place, (kind, level) in enumerate(counts.rows):
            result[RowKey(kind, level), measure] = columns[:, place]
        for level in {level for _, level in counts.rows}:
            mine = columns[:, [place for place, row in enumerate(counts.rows) if row in _mean_rows(level)]]
            number = np.isfinite(mine).sum(axis=1)
            mean = np.full(len(mine), np.nan)
            np.divide(np.nansum(mine, axis=1), number, out=mean, where=number > 0)
            result[RowKey(None, level), measure] = mean
    return result


def _segments_with(counts: SegmentCounts) -> dict[RowKey, int]:
    result = {
        RowKey(kind, level): int((counts.ground_truth[:, place] > 0).sum())
        for place, (kind, level) in enumerate(counts.rows)
    }
    for level in {level for _, level in counts.rows}:
        present = [result[RowKey(kind, own)] for kind, own in _mean_rows(level)]
        result[RowKey(None, level)] = min(filter(None, present), default=0)
    return result


def _mean_rows(level: int) -> list[tuple[ObjectType, int]]:
    return [(kind, level) for kind in MEAN_TYPES]


def _check_same_ground_truth(
    first_label: str, first: Sequence[GroundTruth], label: str, other: Sequence[GroundTruth]
) -> None:
    """Refuse evaluations on other objects. Frames without objects may be missing: a .bin file can't hold them."""
    one, two = ({item.key: item for item in items if len(item)} for items in (first, other))
    for mine, theirs, holder, lacking in ((one, two, first_label, label), (two, one, label, first_label)):
        missing = sorted(mine.keys() - theirs.keys())
        if missing:
            raise UserError(
                f"{holder} and {label if holder == first_label else first_label} were evaluated on different frames: "
                f"{len(missing)} of the {len(mine)} frames with objects of {holder} are not in the ground truth of "
                f"{lacking}, such as {missing[0][0]} at {missing[0][1]}; evaluate both on the same ground truth"
            )
    different = [key for key in sorted(one) if not _same_objects(one[key], two[key])]
    if different:
        raise UserError(
            f"{first_label} and {label} were evaluated on different objects in {len(different)} of {len(one)} frames, "
            f"such as {different[0][0]} at {different[0][1]} ({len(one[different[0]])} objects against "
            f"{len(two[different[0]])}); evaluate both on the same ground truth"
        )


def _same_objects(one: GroundTruth, two: GroundTruth) -> bool:
    return len(one) == len(two) and np.array_equal(_sorted_rows(one), _sorted_rows(two))


def _sorted_rows(item: GroundTruth) -> np.ndarray:
    rows = np.concatenate([item.types[:, None], item.levels[:, None], item.boxes], axis=1).astype(np.float32)
    return rows[np.lexsort(rows.T)]


def _notes(columns: Sequence[Column]) -> list[str]:
    first = columns[0]
    notes = [
        f"{column.label} was evaluated over {column.metrics.frames:,} frames, {first.label} over "
        f"{first.metrics.frames:,}: the others hold no objects, but what was detected in them counts as false."
        for column in columns[1:]
        if column.metrics.frames != first.metrics.frames
    ]
    without = mean_metrics(first.metrics)
    missing = sorted({name for mean in without.values() if mean.over for name in mean.without_ground_truth})
    if missing:
        notes.append(f"There is no ground truth of {', '.join(missing).lower()}, so the mean is over the other types.")
    for column in columns:
        coverage = column.analysis.coverage
        if coverage.only_truth:
            notes.append(f"{column.label} has no detections on record for {coverage.only_truth:,} of the frames.")
    return notes
