"""What the report says in words and numbers: cards, tables and lists, as plain values for its template."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from detection3d.evaluation.analysis import Analysis
from detection3d.evaluation.coverage import Coverage
from detection3d.evaluation.files.metrics_json import MeanMetric, mean_metrics
from detection3d.evaluation.head_errors import HeadErrors
from detection3d.evaluation.metrics import MetricRow, Metrics
from detection3d.evaluation.reporting.metrics_table import is_of_interest, percents
from detection3d.types.scene import ObjectType

NOT_AVAILABLE = "n/a"


@dataclass(frozen=True)
class Card:
    """A number at the top of the report."""

    name: str
    value: str
    detail: str


@dataclass(frozen=True)
class Line:
    """A line of a metric table; `ap` is empty where there is no ground truth."""

    name: str
    level: int
    ap: str
    aph: str
    counts: tuple[str, ...]
    first_of_type: bool


def headline(metrics: Metrics) -> Card:
    """Return the number that papers quote: the mean APH at the hardest level over vehicle, pedestrian and cyclist."""
    means = mean_metrics(metrics)
    if not means:
        return Card("Mean APH", NOT_AVAILABLE, "the metrics were not split by object type")
    level = max(means)
    mean = means[level]
    if mean.aph is None:
        return Card(f"Mean APH, level {level}", NOT_AVAILABLE, "no ground truth of vehicles, pedestrians or cyclists")
    detail = f"over {_list(mean.over)}"
    if mean.without_ground_truth:
        detail += (
            f"; there is no ground truth of {_list(mean.without_ground_truth)}, so papers' means can't be compared"
        )
    return Card(f"Mean APH, level {level}", _percent(mean.aph), detail)


def cards(metrics: Metrics) -> list[Card]:
    """Return the numbers beside the headline: the mean AP, and each type, at the hardest level."""
    means = mean_metrics(metrics)
    level = max(means, default=0)
    result = []
    if means:
        value = means[level].ap
        result.append(
            Card(f"Mean AP, level {level}", NOT_AVAILABLE if value is None else _percent(value), _other_level(means))
        )
    for row in metrics.rows:
        if row.breakdown == "OBJECT_TYPE" and row.level == level and is_of_interest(row):
            value = _percent(row.aph) if row.ground_truth else NOT_AVAILABLE
            detail = f"AP {_percent(row.ap)}" if row.ground_truth else "no ground truth"
            result.append(Card(f"{type_name(row.shard.object_type)} APH, level {level}", value, detail))
    return result


def metric_lines(metrics: Metrics, breakdown: str) -> list[Line]:
    """Return the rows of a breakdown that a reader should see."""
    lines: list[Line] = []
    previous = None
    for row in metrics.rows:
        if row.breakdown != breakdown or not is_of_interest(row):
            continue
        ap, aph = percents(row.ap, row.aph) if row.ground_truth else ("", "")
        counts = (row.ground_truth, row.predictions, row.true_positives, row.false_positives, row.false_negatives)
        name = row_name(row)
        lines.append(Line(name, row.level, ap, aph, tuple(f"{count:,}" for count in counts), name != previous))
        previous = name
    return lines


def other_breakdowns(metrics: Metrics) -> dict[str, list[Line]]:
    """Return the rows of every breakdown but the two that each report has, by its name."""
    names = dict.fromkeys(row.breakdown for row in metrics.rows if row.breakdown not in ("OBJECT_TYPE", "RANGE"))
    lines = {_words(name): metric_lines(metrics, name) for name in names}
    return {name: found for name, found in lines.items() if found}


def mean_lines(metrics: Metrics) -> list[Line]:
    """Return the means of each level."""
    lines = []
    for level, mean in mean_metrics(metrics).items():
        ap, aph = ("", "") if mean.ap is None or mean.aph is None else percents(mean.ap, mean.aph)
        over = ", ".join(mean.over).lower()
        lines.append(Line(f"Mean over {over}" if over else "Mean", level, ap, aph, (), not lines))
    return lines


def error_rows(analysis: Analysis) -> list[tuple[tuple[str, str], ...]]:
    """Return the table of the heads' errors, a row for each type that was found: values, and what stands below them."""
    return [((type_name(kind), ""), *_error_cells(errors)) for kind, errors in analysis.head_errors.items()]


def coverage_rows(coverage: Coverage) -> list[tuple[str, ...]]:
    """Return type, objects of level 1, of level 2 alone, of no level where there are any, of all, and detections."""
    rows = []
    for kind in ObjectType:
        objects, detections = coverage.objects.get(kind, {}), coverage.detections.get(kind, 0)
        if objects or detections:
            without = (objects.get(0, 0),) if has_boxes_without_level(coverage) else ()
            counts = (objects.get(1, 0), objects.get(2, 0), *without, sum(objects.values()), detections)
            rows.append((type_name(kind), *(f"{count:,}" for count in counts)))
    return rows


def has_boxes_without_level(coverage: Coverage) -> bool:
    """Tell whether any object has no level, which files of ground truth allow: it counts in every level."""
    return any(levels.get(0, 0) for levels in coverage.objects.values())


def coverage_facts(coverage: Coverage) -> dict[str, str]:
    """Return what was evaluated, as a list for people."""
    cutoffs = "none"
    if coverage.score_cutoffs is not None:
        low, high, number = coverage.score_cutoffs
        cutoffs = f"{number}, from {low:g} to {high:g}"
    overlaps = ", ".join(f"{type_name(kind).lower()} {value:g}" for kind, value in coverage.iou_thresholds.items())
    facts = {
        "Segments": f"{coverage.segments:,}" + (f", {coverage.synthetic:,} synthetic" if coverage.synthetic else ""),
        "Frames": f"{coverage.frames:,}, of which {coverage.without_objects:,} without objects",
        "Frames on one side only": f"{coverage.only_detections:,} in the detections alone (all they hold is false), "
        f"{coverage.only_truth:,} in the ground truth alone (all objects are missed)",
        "Least 3D IoU of a match": overlaps,
        "Score cutoffs": cutoffs,
        "Detections in no-label zones": f"{coverage.in_no_label_zone:,}; those that found nothing are not counted",
    }
    unknown = coverage.objects.get(ObjectType.UNKNOWN)
    if unknown or ObjectType.UNKNOWN in coverage.detections:
        objects, found = sum(unknown.values()) if unknown else 0, coverage.detections.get(ObjectType.UNKNOWN, 0)
        facts["Boxes of unknown type"] = f"{objects:,} objects and {found:,} detections; no type's metric counts them"
    return facts


def evaluated_facts(analysis: Analysis | None, facts: Mapping[str, str]) -> dict[str, str]:
    """Return the caller's facts, then the counted ones."""
    return {**facts, **({} if analysis is None else coverage_facts(analysis.coverage))}


def type_name(kind: ObjectType) -> str:
    """Return a type's name for people."""
    return kind.name.capitalize()


def row_name(row: MetricRow) -> str:
    """Return a row's name for people: type and part, such as "Vehicle 30 to 50 m"."""
    shard = row.shard
    if shard.object_type == ObjectType.UNKNOWN or f"TYPE_{shard.object_type.name}" not in shard.name:
        return _words(shard.name)
    if shard.distance:
        return f"{type_name(shard.object_type)} {_distance(shard.distance)}"
    part = shard.name.partition(f"TYPE_{shard.object_type.name}")[2].strip("_")
    return f"{type_name(shard.object_type)} {_words(part).lower()}".strip()


def _error_cells(errors: HeadErrors) -> tuple[tuple[str, str], ...]:
    unflipped = errors.heading_mean_unflipped
    return (
        (f"{errors.count:,}", ""),
        (f"{errors.overlap:.2f}", ""),
        (f"{errors.centre_mean:.2f}", f"95 %: {errors.centre_p95:.2f}"),
        (f"{errors.z_mean:.2f}", _signed(errors.z_bias)),
        *((f"{mean:.2f}", _signed(bias)) for mean, bias in zip(errors.size_mean, errors.size_bias, strict=True)),
        (f"{np.degrees(errors.heading_mean):.1f}°", ""),
        (f"{100 * errors.flipped_share:.1f} %", f"{errors.flipped:,} of {errors.count:,}"),
        (NOT_AVAILABLE if unflipped is None else f"{np.degrees(unflipped):.1f}°", ""),
    )


def _signed(value: float) -> str:
    """Write a bias with its sign, and one that rounds to nothing without."""
    text = f"{value:+.2f}"
    return "0.00" if float(text) == 0 else text.replace("-", "\N{MINUS SIGN}")


def _other_level(means: Mapping[int, MeanMetric]) -> str:
    easier = [level for level in means if level != max(means)]
    if not easier:
        return ""
    mean = means[max(easier)]
    return "" if mean.aph is None else f"level {max(easier)}: APH {_percent(mean.aph)}"


def _percent(value: float | np.float32) -> str:
    return f"{100 * float(value):.2f}"


def _list(names: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1]))).lower()


def _words(name: str) -> str:
    return name.replace("_", " ").capitalize()


def _distance(text: str) -> str:
    """Write the official "[30, 50)" and "[50, +inf)" for people."""
    near, far = text.strip("[)").split(", ")
    return f"beyond {near} m" if far == "+inf" else f"{near} to {far} m"
