from fractions import Fraction

import numpy as np
import pytest

from detection3d.evaluation import overlaps_zone_outline
from detection3d.geometry.host.boxes import corners_bev
from detection3d.geometry.host.poses import pose_from_angles, transform_points

HERE = np.eye(4)
SQUARE = np.array([(0, 0), (10, 0), (10, 10), (0, 10)], float)
# A U, open to the top.
CUP = np.array([(0, 0), (10, 0), (10, 10), (7, 10), (7, 3), (3, 3), (3, 10), (0, 10)], float)


def box(x, y, length=2.0, width=1.0, heading=0.0):
    return (x, y, 1.0, length, width, 1.5, heading)


@pytest.mark.parametrize(
    ("zone", "where", "expected"),
    [
        pytest.param(SQUARE, box(5, 5), True, id="within the zone"),
        pytest.param(SQUARE, box(5, 5, 40, 40), True, id="around the zone"),
        pytest.param(SQUARE, box(-0.9, 5), True, id="across a side"),
        pytest.param(SQUARE, box(-1.1, 5), False, id="beside a side"),
        pytest.param(SQUARE, box(5, -3, 30, 0.5), False, id="along a side"),
        pytest.param(SQUARE, box(5, 5, 40, 0.1), True, id="through the zone, no corner of either in the other"),
        pytest.param(SQUARE, box(-1, -1, 2.9, 1.0, np.pi / 4), True, id="a turned corner within"),
        pytest.param(SQUARE, box(-1, -1, 2.7, 1.0, np.pi / 4), False, id="the turned corner just outside"),
        pytest.param(CUP, box(5, 7), False, id="in the opening of the cup"),
        pytest.param(CUP, box(5, 7, 3, 4.2), False, id="filling the opening"),
        pytest.param(CUP, box(5, 7, 4.2, 1), True, id="from wall to wall"),
        pytest.param(CUP, box(1.5, 7), True, id="in the wall"),
        pytest.param(CUP[::-1], box(1.5, 7), True, id="whichever way the corners go"),
    ],
)
def test_zones_with_known_answers(zone, where, expected):
    assert overlaps_zone_outline(np.array([where]), [zone], HERE).tolist() == [expected]


def test_every_zone_counts():
    boxes = np.array([box(5, 5), box(105, 5), box(50, 5)])
    assert overlaps_zone_outline(boxes, [SQUARE, SQUARE + np.array([100, 0])], HERE).tolist() == [True, True, False]
    assert overlaps_zone_outline(boxes, [], HERE).tolist() == [False] * 3
    assert overlaps_zone_outline(np.zeros((0, 7)), [SQUARE], HERE).tolist() == []


def test_zones_are_seen_from_the_vehicle():
    pose = pose_from_angles((0.02, -0.01, 2.0), (4000.0, -7000.0, 30.0))
    rng = np.random.default_rng(0)
    boxes = np.array([box(*rng.uniform(-15, 15, 2), heading=rng.uniform(-3, 3)) for _ in range(200)])
    there = transform_points(pose, np.column_stack([CUP, np.zeros(len(CUP))]))[:, :2]
    expected = overlaps_zone_outline(boxes, [CUP], HERE)
    assert 10 < expected.sum() < 190
    # The tilt of the vehicle moves the zone by millimetres.
    assert (overlaps_zone_outline(boxes, [there], pose) == expected).mean() > 0.98
    assert not overlaps_zone_outline(boxes, [there], HERE).any()


def test_agrees_with_exact_arithmetic_on_random_zones():
    rng = np.random.default_rng(2)
    answers = []
    for _ in range(150):
        angles = np.sort(rng.uniform(0, 2 * np.pi, int(rng.integers(3, 9))))
        zone = np.column_stack([np.cos(angles), np.sin(angles)]) * rng.uniform(1, 10, (len(angles), 1))
        boxes = np.array([box(*rng.uniform(-10, 10, 2), *rng.uniform(0.5, 6, 2), rng.uniform(-4, 4)) for _ in range(8)])
        found = overlaps_zone_outline(boxes, [zone], HERE).tolist()
        assert found == [exactly(corners, zone) for corners in corners_bev(boxes)]
        answers += found
    assert 0.2 < np.mean(answers) < 0.8


def exactly(corners, zone):
    """By sides that cross, and corners of one within the other, in fractions."""
    p, q = ([tuple(Fraction(float(v)) for v in point) for point in outline] for outline in (corners, zone))
    sides_p, sides_q = (list(zip(outline, outline[1:] + outline[:1], strict=True)) for outline in (p, q))
    crossing = any(
        turn(*s, t[0]) * turn(*s, t[1]) <= 0 and turn(*t, s[0]) * turn(*t, s[1]) <= 0 for s in sides_p for t in sides_q
    )
    return crossing or winding(q, p[0]) != 0 or winding(p, q[0]) != 0


def turn(a, b, c):
    return (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])


def winding(outline, point):
    number = 0
    for a, b in zip(outline, outline[1:] + outline[:1], strict=True):
        if a[1] <= point[1] < b[1] and turn(a, b, point) > 0:
            number += 1
        elif b[1] <= point[1] < a[1] and turn(a, b, point) < 0:
            number -= 1
    return number


def test_a_zone_without_an_area_is_refused():
    with pytest.raises(ValueError, match=r"\[P, 2\] with P of at least 3, got shape \(2, 2\)"):
        overlaps_zone_outline(np.zeros((1, 7)), [SQUARE[:2]], HERE)
