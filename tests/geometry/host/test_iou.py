import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detection3d.geometry.host.iou import MAX_SIDE, MIN_SIDE, bev_iou_matrix, bev_iou_pairs, iou_3d_matrix, iou_3d_pairs
from tests.oracles.exact_clip import common_area


def expected_bev(a: np.ndarray, b: np.ndarray) -> float:
    common = common_area(a, b)
    return common / (a[3] * a[4] + b[3] * b[4] - common)


def expected_3d(a: np.ndarray, b: np.ndarray) -> float:
    height = min(a[2] + a[5] / 2, b[2] + b[5] / 2) - max(a[2] - a[5] / 2, b[2] - b[5] / 2)
    common = common_area(a, b) * max(height, 0.0)
    return common / (a[3] * a[4] * a[5] + b[3] * b[4] * b[5] - common)


# Round headings and offsets meet special cases (parallel, touching and shared sides) far more often than chance would.
headings = st.one_of(
    st.sampled_from([0.0, math.pi / 2, -math.pi / 2, math.pi, math.pi / 4, 7 * math.pi, 1e-9]),
    st.floats(-10, 10),
)
offsets = st.one_of(st.integers(-4, 4).map(lambda k: k / 2), st.floats(-4, 4))
sides = st.one_of(st.integers(1, 8).map(lambda k: k / 2), st.floats(0.02, 10))
boxes = st.tuples(offsets, offsets, offsets, sides, sides, sides, headings)


@settings(max_examples=300, deadline=None)
@given(boxes, boxes, st.sampled_from([0.0, 70.0, -1000.0]))
def test_agrees_with_exact_clipping(a, b, shift):
    a, b = np.array(a), np.array(b)
    a[0] += shift
    b[0] += shift
    # 1e-9: the oracle's corners are rounded at the shifted place, worth 1e-13 m on sides of at least 0.02 m.
    assert bev_iou_pairs([a], [b])[0] == pytest.approx(expected_bev(a, b), abs=1e-9)
    assert iou_3d_pairs([a], [b])[0] == pytest.approx(expected_3d(a, b), abs=1e-9)


@settings(max_examples=200, deadline=None)
@given(boxes, boxes)
def test_is_symmetric_and_within_bounds(a, b):
    there, back = iou_3d_pairs([a], [b])[0], iou_3d_pairs([b], [a])[0]
    assert 0.0 <= there <= 1.0
    assert there == pytest.approx(back, abs=1e-12)


@settings(max_examples=200, deadline=None)
@given(boxes, st.sampled_from([1e-1, 1.0, 1e3]), st.floats(-1e4, 1e4))
def test_box_overlaps_itself_exactly_at_any_place_and_scale(box, scale, shift):
    box = np.array(box)
    box[:6] *= scale
    box[:2] += shift
    if box[3:6].min() <= MIN_SIDE:
        return
    # Only the last bit of length * width may differ between the clipped area and the product.
    assert bev_iou_pairs([box], [box])[0] == pytest.approx(1.0, abs=1e-11)
    assert iou_3d_pairs([box], [box])[0] == pytest.approx(1.0, abs=1e-11)


@pytest.mark.parametrize(
    ("a", "b", "bev", "volume"),
    [
        pytest.param([0, 0, 0, 4, 2, 2, 0], [0, 0, 1, 4, 2, 2, 0], 1.0, 1 / 3, id="half as high apart"),
        pytest.param([0, 0, 0, 4, 2, 2, 0], [4, 0, 0, 4, 2, 2, 0], 0.0, 0.0, id="touching at an end"),
        pytest.param([0, 0, 0, 4, 2, 2, 0], [0, 0, 2, 4, 2, 2, 0], 1.0, 0.0, id="touching at the top"),
        pytest.param([0, 0, 0, 4, 2, 2, 0], [2, 0, 0, 4, 2, 2, 0], 1 / 3, 1 / 3, id="half a length ahead"),
        pytest.param([0, 0, 0, 4, 2, 2, 0], [0, 0, 0, 4, 2, 2, math.pi / 2], 1 / 3, 1 / 3, id="crossed"),
        pytest.param([0, 0, 0, 4, 4, 4, 0], [0.5, 0.5, 0.5, 1, 1, 1, 0.3], 1 / 16, 1 / 64, id="contained"),
        pytest.param([0, 0, 0, 2, 2, 1, 0], [0, 0, 0, 2, 2, 1, math.pi / 4], 2**-0.5, 2**-0.5, id="octagon"),
        pytest.param([5, 3, 0, 4, 2, 2, 0.4], [5, 3, 0, 4, 2, 2, 0.4 + math.pi], 1.0, 1.0, id="turned round"),
    ],
)
def test_known_overlaps(a, b, bev, volume):
    assert bev_iou_pairs([a], [b])[0] == pytest.approx(bev, abs=1e-14)
    assert iou_3d_pairs([a], [b])[0] == pytest.approx(volume, abs=1e-14)


@pytest.mark.parametrize("side", [3, 4, 5])
@pytest.mark.parametrize("size", [0.0, -1.0, MIN_SIDE, MAX_SIDE])
def test_degenerate_boxes_overlap_nothing(side, size):
    box = np.array([0, 0, 0, 2.0, 2.0, 2.0, 0])
    box[side] = size
    assert iou_3d_pairs([box], [box])[0] == 0.0
    flat_is_fine = side == 5 and size < 1
    assert bev_iou_pairs([box], [box])[0] == (1.0 if flat_is_fine else 0.0)


def test_smallest_and_largest_usable_sides():
    tiny = np.array([0, 0, 0, *[np.nextafter(MIN_SIDE, 1)] * 3, 0.3])
    huge = np.array([0, 0, 0, *[np.nextafter(MAX_SIDE, 0)] * 3, 0.3])
    assert bev_iou_pairs([tiny], [tiny])[0] == pytest.approx(1.0)
    # The volume is 1e-6 and a bit, twice that less the intersection is more than the least union.
    assert iou_3d_pairs([tiny], [tiny])[0] == pytest.approx(1.0)
    assert iou_3d_pairs([huge], [huge])[0] == pytest.approx(1.0)
    assert bev_iou_pairs([tiny], [huge])[0] == pytest.approx(1e-16, rel=1e-6)


def test_matrix_holds_every_pair():
    rng = np.random.default_rng(0)
    a, b = rng.uniform(0.5, 4, (5, 7)), rng.uniform(0.5, 4, (3, 7))
    for matrix, pairs in ((bev_iou_matrix, bev_iou_pairs), (iou_3d_matrix, iou_3d_pairs)):
        result = matrix(a, b)
        assert result.shape == (5, 3)
        np.testing.assert_array_equal(result, [[pairs([p], [q])[0] for q in b] for p in a])
        assert result.max() > 0.1
        assert matrix(a[:0], b).shape == (0, 3)
        assert matrix(a, b[:0]).shape == (5, 0)


def test_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match=r"\[M, 7\].*\(3, 6\)"):
        iou_3d_matrix(np.zeros((3, 6)), np.zeros((1, 7)))
    with pytest.raises(ValueError, match="got 2 and 1"):
        bev_iou_pairs(np.ones((2, 7)), np.ones((1, 7)))
