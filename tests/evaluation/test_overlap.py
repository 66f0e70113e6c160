import math
from fractions import Fraction

import numpy as np
import pytest

from detection3d.evaluation.exact_cross import cross
from detection3d.evaluation.overlap import type_overlaps
from tests.evaluation.builders import found, truth
from tests.oracles import polygon_iou


def overlap(a, b):
    return float(type_overlaps(found([a]), truth([b]))[0, 0])


def test_agrees_with_plain_clipping_on_boxes_in_general_position():
    rng = np.random.default_rng(0)
    a = np.column_stack([rng.normal(0, 40, (200, 2)), rng.normal(1, 0.2, 200), rng.uniform(1, 6, (200, 3))])
    a = np.column_stack([a, rng.uniform(-4, 4, 200)]).astype(np.float32)
    b = (a + rng.normal(0, 0.4, a.shape)).astype(np.float32)
    b[:, 3:6] = np.abs(b[:, 3:6]) + np.float32(0.1)
    ours = np.array([overlap(p, q) for p, q in zip(a, b, strict=True)])
    expected = [polygon_iou.iou_3d(p, q) for p, q in zip(a.astype(float), b.astype(float), strict=True)]
    np.testing.assert_allclose(ours, expected, rtol=1e-7, atol=1e-9)
    assert (ours > 0.1).mean() > 0.5


@pytest.mark.parametrize(
    ("a", "b", "official"),
    [
        pytest.param(
            (4.621945381164551, -12.702048301696777, 0, 10.998210906982422, 1.6847141981124878, 1, 2.712496757507324),
            (4.621945381164551, -12.702048301696777, 0, 5.499105453491211, 1.6847141981124878, 1, 2.712496757507324),
            1.0,
            id="one within the other along two sides: the walk takes the outer one for the intersection",
        ),
        pytest.param((0, -1, 1, 2, 2, 4, math.pi), (2, 0, 1, 3, 2, 1, 1.5 * math.pi), 2.0075297e-10, id="touching"),
        pytest.param((0, 0, 0, 4, 2, 2, 0), (0, 0, 0, 4, 2, 2, math.pi), 0.9999998807907104, id="the same, turned"),
        pytest.param((0, 0, 0, 4, 2, 2, 0.3), (0, 0, 2, 4, 2, 2, 0.3), 0.0, id="on top of each other"),
        pytest.param((0, 0, 0, 4, 2, 2, 0.3), (0, 0, 0, 2, 1, 2, 0.3), 0.25, id="one within the other"),
        pytest.param((0, 0, 0, 0, 2, 2, 0), (0, 0, 0, 4, 2, 2, 0), 0.0, id="no length"),
        pytest.param((0, 0, 0, 4, 2, -1, 0), (0, 0, 0, 4, 2, 2, 0), 0.0, id="negative height"),
        pytest.param((0, 0, 0, 4, 0.01, 2, 0), (0, 0, 0, 4, 0.01, 2, 0), 0.0, id="just too narrow"),
        pytest.param((0, 0, 0, 1e6, 2, 2, 0), (0, 0, 0, 1e6, 2, 2, 0), 0.0, id="too long"),
    ],
)
def test_official_values(a, b, official):
    assert overlap(a, b) == np.float32(official)


def test_where_the_official_program_ends_the_overlap_is_the_true_one():
    # The walk returns the outer box of twice the size for the intersection: an overlap of 2.
    b = (-81.575332641601562, 5.11917781829834, 1.2, 4.3654112815856934, 2.4806618690490723, 0.6, 1.8073433637619019)
    a = (*b[:3], 8.7308225631713867, *b[4:])
    assert overlap(a, b) == pytest.approx(0.5, rel=1e-6)


def test_types_that_differ_do_not_overlap():
    box = (0, 0, 0, 4, 2, 2, 0)
    assert type_overlaps(found([box], types=1), truth([box], types=2)).tolist() == [[0.0]]


def test_cross_product_is_exact_where_it_is_close_to_zero():
    rng = np.random.default_rng(1)
    signs = []
    for _ in range(300):
        start, direction = rng.normal(0, 30, 2), rng.normal(0, 3, 2)
        others = [start + direction * rng.uniform(-2, 2) for _ in range(3)]
        points = [tuple(float(v) for v in point) for point in (start, *others)]
        (ax, ay), (bx, by), (cx, cy), (dx, dy) = [[Fraction(v) for v in point] for point in points]
        exact = (bx - ax) * (dy - cy) - (by - ay) * (dx - cx)
        found_value = cross(*points)
        signs.append(np.sign(found_value))
        if abs(exact) < 2.0**-51:
            assert found_value == pytest.approx(float(exact), rel=1e-15, abs=0)
        assert (found_value > 0) == (exact > 0)
        assert (found_value < 0) == (exact < 0)
    assert {-1.0, 1.0} <= set(signs)
