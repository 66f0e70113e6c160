"""Overlap of rotated boxes by clipping one polygon with the sides of the other, in float64, one pair at a time.

Sutherland and Hodgman (1974), for general convex polygons: it shares neither frame nor formula with the package.
"""

import math
from collections.abc import Sequence

Polygon = list[tuple[float, float]]


def bev_iou(a: Sequence[float], b: Sequence[float]) -> float:
    common = _common_area(a, b)
    return common / (a[3] * a[4] + b[3] * b[4] - common)


def iou_3d(a: Sequence[float], b: Sequence[float]) -> float:
    height = min(a[2] + a[5] / 2, b[2] + b[5] / 2) - max(a[2] - a[5] / 2, b[2] - b[5] / 2)
    common = _common_area(a, b) * max(height, 0.0)
    return common / (a[3] * a[4] * a[5] + b[3] * b[4] * b[5] - common)


def _common_area(a: Sequence[float], b: Sequence[float]) -> float:
    polygon = _corners(a, 0.0, 0.0)
    sides = _corners(b, b[0] - a[0], b[1] - a[1])
    for k in range(4):
        polygon = _keep_left(polygon, sides[k], sides[(k + 1) % 4])
    return _area(polygon)


def _corners(box: Sequence[float], x: float, y: float) -> Polygon:
    cosine, sine = math.cos(box[6]), math.sin(box[6])
    corners = []
    for along, across in ((1, 1), (-1, 1), (-1, -1), (1, -1)):
        dx, dy = along * box[3] / 2, across * box[4] / 2
        corners.append((x + cosine * dx - sine * dy, y + sine * dx + cosine * dy))
    return corners


def _keep_left(polygon: Polygon, start: tuple[float, float], end: tuple[float, float]) -> Polygon:
    def side(point: tuple[float, float]) -> float:
        return (end[0] - start[0]) * (point[1] - start[1]) - (end[1] - start[1]) * (point[0] - start[0])

    kept: Polygon = []
    for k, here in enumerate(polygon):
        before = polygon[k - 1]
        s, t = side(before), side(here)
        if s * t < 0:
            share = s / (s - t)
            kept.append((before[0] + share * (here[0] - before[0]), before[1] + share * (here[1] - before[1])))
        if t >= 0:
            kept.append(here)
    return kept


def _area(polygon: Polygon) -> float:
    total = 0.0
    for k, (x, y) in enumerate(polygon):
        following = polygon[(k + 1) % len(polygon)]
        total += x * following[1] - y * following[0]
    return max(total / 2, 0.0)
