from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detection3d.evaluation.matching import match_subset, maximum_weight_matching
from tests.oracles.slow_metrics import slow_matching


def square(largest: int, sizes: st.SearchStrategy[int]) -> st.SearchStrategy[np.ndarray]:
    def rows(n: int) -> st.SearchStrategy[np.ndarray]:
        # Half of the weights are 0, as padding and pairs below the threshold are.
        weight = st.one_of(st.just(0), st.integers(0, largest))
        return st.lists(weight, min_size=n * n, max_size=n * n).map(lambda w: np.array(w, np.int32).reshape(n, n))

    return sizes.flatmap(rows)


@settings(max_examples=200, deadline=None)
@given(st.one_of(square(2, st.integers(1, 9)), square(5, st.integers(1, 9)), square(1_000_000, st.integers(1, 9))))
def test_takes_the_same_matching_as_the_transcription(weights):
    assert maximum_weight_matching(weights).tolist() == slow_matching(weights.tolist())


@settings(max_examples=100, deadline=None)
@given(square(6, st.integers(1, 5)))
def test_weight_is_the_greatest(weights):
    columns = maximum_weight_matching(weights)
    assert sorted(columns) == list(range(len(weights)))
    best = max(sum(weights[i, j] for i, j in enumerate(order)) for order in permutations(range(len(weights))))
    assert weights[np.arange(len(weights)), columns].sum() == best


def test_large_case_with_many_ties_agrees_with_the_transcription():
    rng = np.random.default_rng(3)
    weights = rng.integers(0, 4, (40, 40)).astype(np.int32) * (rng.random((40, 40)) < 0.2)
    assert maximum_weight_matching(weights.astype(np.int32)).tolist() == slow_matching(weights.tolist())


@pytest.mark.parametrize(
    ("overlaps", "expected"),
    [
        pytest.param([[0.9], [0.8]], [0, -1], id="the better overlap wins"),
        pytest.param([[0.8], [0.9]], [-1, 0], id="whatever its place"),
        pytest.param([[0.8], [0.8]], [0, -1], id="the first one wins a tie"),
        pytest.param([[0.7000004], [0.7000006]], [-1, 0], id="weights are millionths, rounded"),
        pytest.param([[0.7000001], [0.7000004]], [0, -1], id="and a tie where they round alike"),
        pytest.param([[0.9, 0.8], [0.75, 0.3]], [1, 0], id="the sum decides, not the pair"),
        pytest.param([[0.69]], [-1], id="below the threshold"),
        pytest.param([[0.7]], [0], id="at the threshold, in float32"),
        pytest.param([[0.5, 0.9, 0.2]], [1], id="more objects than detections"),
    ],
)
def test_matches_by_overlap(overlaps, expected):
    overlaps = np.array(overlaps, np.float32)
    rows, columns = np.arange(overlaps.shape[0]), np.arange(overlaps.shape[1])
    assert match_subset(overlaps, rows, columns, np.float32(0.7)).tolist() == expected


def test_only_the_subset_takes_part():
    overlaps = np.array([[0.9, 0.0], [0.8, 0.9]], np.float32)
    threshold = np.float32(0.5)
    assert match_subset(overlaps, np.array([1]), np.array([0, 1]), threshold).tolist() == [1]
    assert match_subset(overlaps, np.array([1]), np.array([0]), threshold).tolist() == [0]
    assert match_subset(overlaps, np.array([], np.int64), np.array([0]), threshold).tolist() == []
    assert match_subset(overlaps, np.array([0, 1]), np.array([], np.int64), threshold).tolist() == [-1, -1]
