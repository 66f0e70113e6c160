"""Waymo's detection metrics, transcribed slowly from their description, in plain Python with float32 where it matters.

It shares no code with the package. Frames are ((context, timestamp), detections, objects) with detections as dicts of
box, type, score and in_zone, and objects as dicts of box, type and level.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from tests.oracles import polygon_iou

F = np.float32
THRESHOLDS = [F(0.0), F(0.7), F(0.5), F(0.5), F(0.5)]


def slow_metrics(frames: Sequence[tuple], cutoffs: Sequence[float]) -> dict[str, dict[str, Any]]:
    rows: dict[str, dict[str, Any]] = {}
    for breakdown in ("OBJECT_TYPE", "RANGE"):
        for shard in _shard_names(breakdown):
            totals = [[0, 0, {1: 0, 2: 0}, F(0)] for _ in cutoffs]
            for _, detections, objects in sorted(frames, key=lambda frame: frame[0]):
                mine = [d for d in detections if _shard(breakdown, d) == shard]
                wanted = [o for o in objects if _shard(breakdown, o) == shard]
                for c, cutoff in enumerate(cutoffs):
                    _count([d for d in mine if d["score"] >= F(cutoff)], wanted, totals[c])
            for level in (1, 2):
                rows[f"{shard}_LEVEL_{level}"] = _summary(totals, level)
    return rows


def _shard_names(breakdown: str) -> list[str]:
    kinds = ["VEHICLE", "PEDESTRIAN", "SIGN", "CYCLIST"]
    if breakdown == "OBJECT_TYPE":
        return [f"OBJECT_TYPE_TYPE_{kind}" for kind in kinds]
    return [f"RANGE_TYPE_{kind}_{span}" for kind in kinds for span in ("[0, 30)", "[30, 50)", "[50, +inf)")]


def _shard(breakdown: str, item: dict[str, Any]) -> str | None:
    if item["type"] == 0:
        return None
    kind = ["VEHICLE", "PEDESTRIAN", "SIGN", "CYCLIST"][item["type"] - 1]
    if breakdown == "OBJECT_TYPE":
        return f"OBJECT_TYPE_TYPE_{kind}"
    distance = math.sqrt(sum(float(v) ** 2 for v in item["box"][:3]))
    return f"RANGE_TYPE_{kind}_" + ("[0, 30)" if distance < 30 else "[30, 50)" if distance < 50 else "[50, +inf)")


def _iou(a: Sequence[float], b: Sequence[float]) -> np.float32:
    if min(*a[3:6], *b[3:6]) <= 0.01 or max(*a[3:6], *b[3:6]) >= 1e6:
        return F(0)
    return F(min(max(polygon_iou.iou_3d(a, b), 0.0), 1.0))


def _count(detections: list[dict], objects: list[dict], total: list) -> None:
    overlap = [[_iou(d["box"], o["box"]) for o in objects] for d in detections]
    partner = [-1] * len(detections)
    if detections and objects:
        n = max(len(detections), len(objects))
        weights = [[0] * n for _ in range(n)]
        for i, d in enumerate(detections):
            for j in range(len(objects)):
                if overlap[i][j] >= THRESHOLDS[d["type"]]:
                    weights[i][j] = math.floor(float(overlap[i][j] * F(1_000_000)) + 0.5)
        for i, j in enumerate(slow_matching(weights)[: len(detections)]):
            if j < len(objects) and overlap[i][j] >= THRESHOLDS[detections[i]["type"]]:
                partner[i] = j
    accuracy = F(0)
    for i, d in enumerate(detections):
        if partner[i] >= 0:
            total[0] += 1
            accuracy += _heading_accuracy(d["box"][6], objects[partner[i]]["box"][6])
        elif not d["in_zone"]:
            total[1] += 1
    for j, o in enumerate(objects):
        if j not in partner:
            for level in (1, 2):
                total[2][level] += o["level"] <= level
    total[3] = F(total[3] + accuracy)


def slow_matching(weights: Sequence[Sequence[int]]) -> list[int]:
    """Kuhn and Munkres with an explicit list of reachable columns, rebuilt after every change of the labels."""
    n = len(weights)
    lx = [max(row) for row in weights]
    ly = [0] * n
    match_row: dict[int, int] = {}
    match_column: dict[int, int] = {}

    def reachable(tree: list[int]) -> list[tuple[int, int]]:
        found: list[tuple[int, int]] = []  # (column, row that reached it first)
        for i in tree:
            for j in range(n):
                if lx[i] + ly[j] == weights[i][j] and all(j != column for column, _ in found):
                    found.append((j, i))
        return found

    while len(match_row) < n:
        root = min(i for i in range(n) if i not in match_row)
        tree, columns, parent = [root], [], {}
        while True:
            candidates = reachable(tree)
            if {j for j, _ in candidates} == set(columns):
                delta = min(lx[i] + ly[j] - weights[i][j] for i in tree for j in range(n) if j not in columns)
                for i in tree:
                    lx[i] -= delta
                for j in columns:
                    ly[j] += delta
                candidates = reachable(tree)
            column, row = next((j, i) for j, i in candidates if j not in columns)
            columns.append(column)
            parent[column] = row
            if column not in match_column:
                break
            tree.append(match_column[column])
        while True:
            row = parent[column]
            previous = match_row.get(row)
            match_row[row], match_column[column] = column, row
            if row == root:
                break
            column = previous
    return [match_row[i] for i in range(n)]


def _heading_accuracy(a: float, b: float) -> np.float32:
    def wrap(angle: float) -> np.float32:
        angle = math.fmod(angle + math.pi, 2 * math.pi)
        return F((angle + 2 * math.pi if angle < 0 else angle) - math.pi)

    error = F(abs(wrap(a) - wrap(b)))
    if float(error) > math.pi:
        error = F(2 * math.pi - float(error))
    return F(min(1.0, max(0.0, 1 - float(error) / math.pi)))


def _summary(totals: list, level: int) -> dict[str, Any]:
    precision, heading_precision, recall = [], [], []
    for found, false, missed, accuracy in totals:
        claimed, wanted = found + false, found + missed[level]
        precision.append(F(found) / F(claimed) if claimed else F(0))
        heading_precision.append(F(accuracy) / F(claimed) if claimed else F(0))
        recall.append(F(found) / F(wanted) if wanted else F(0))
        if recall[-1] == 0:
            precision[-1] = heading_precision[-1] = F(1)
    return {
        "AP": _area(precision, recall),
        "APH": _area(heading_precision, recall),
        "TP": [total[0] for total in totals],
        "FP": [total[1] for total in totals],
        "FN": [total[2][level] for total in totals],
    }


def _area(precision: list, recall: list) -> np.float32:
    table = {0.0: F(1)}
    for p, r in zip(precision, recall, strict=True):
        table[float(r)] = max(table.get(float(r), F(0)), p)
    descending = sorted(table, reverse=True)
    curve = [(F(descending[0]), table[descending[0]])]
    for r in descending[1:]:
        best = curve[-1][1]
        here = curve[-1][0]
        while F(here - F(r)) > F(F(0.05) + F(1e-6)):
            here = F(here - F(0.05))
            curve.append((here, best))
        curve.append((F(r), max(best, table[r])))
    if len(curve) > 1:
        curve[-1] = (curve[-1][0], curve[-2][1])
    area = F(0)
    for k in range(1, len(curve)):
        width, heights = F(curve[k - 1][0] - curve[k][0]), F(curve[k - 1][1] + curve[k][1])
        area = F(float(area) + 0.5 * float(width) * float(heights))
    return area
