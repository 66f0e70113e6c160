"""Area common to two rotated rectangles, exact: the corners are rounded to float64 once, the rest is in fractions."""

import math
from collections.abc import Sequence
from fractions import Fraction

Point = tuple[Fraction, Fraction]


def common_area(a: Sequence[float], b: Sequence[float]) -> float:
    """Area of the intersection of the footprints of boxes (x, y, z, length, width, height, heading)."""
    polygon, window = _corners(a), _corners(b)
    for k in range(4):
        start, end = window[k], window[(k + 1) % 4]
        sides = [_side(start, end, point) for point in polygon]
        clipped: list[Point] = []
        for i, point in enumerate(polygon):
            j = (i + 1) % len(polygon)
            if sides[i] >= 0:
                clipped.append(point)
            if sides[i] * sides[j] < 0:
                share = sides[i] / (sides[i] - sides[j])
                clipped.append(tuple(p + share * (q - p) for p, q in zip(point, polygon[j], strict=True)))
        polygon = clipped
        if not polygon:
            return 0.0
    pairs = zip(polygon, polygon[1:] + polygon[:1], strict=True)
    return float(sum((x0 * y1 - x1 * y0 for (x0, y0), (x1, y1) in pairs), Fraction(0)) / 2)


def _corners(box: Sequence[float]) -> list[Point]:
    x, y, _, length, width, _, heading = (float(value) for value in box)
    cosine, sine = Fraction(math.cos(heading)), Fraction(math.sin(heading))
    half_length, half_width = Fraction(length) / 2, Fraction(width) / 2
    return [
        (
            Fraction(x) + cosine * along * half_length - sine * across * half_width,
            Fraction(y) + sine * along * half_length + cosine * across * half_width,
        )
        for along, across in ((1, 1), (-1, 1), (-1, -1), (1, -1))
    ]


def _side(start: Point, end: Point, point: Point) -> Fraction:
    return (end[0] - start[0]) * (point[1] - start[1]) - (end[1] - start[1]) * (point[0] - start[0])
