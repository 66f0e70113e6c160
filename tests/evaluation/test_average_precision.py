import numpy as np
import pytest

from detection3d.evaluation.average_precision import average_precision, precision_recall_curve


def area(points, step=0.05):
    recall, precision = np.array(points, np.float32).reshape(-1, 2).T
    return float(average_precision(precision, recall, step))


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        pytest.param([], 0.0, id="no cutoffs"),
        pytest.param([(0, 1)], 0.0, id="nothing found"),
        pytest.param([(0.04, 0.8)], 0.04 * 0.8, id="one point: level down to recall 0"),
        pytest.param([(1, 0.5), (0.5, 0.25)], 0.5, id="the envelope lifts worse precision at lower recall"),
        # Between 1 and 0.5 the gap is filled with 0.5, and a trapezoid of width 0.05 leads up to 1.
        pytest.param([(1, 0.5), (0.5, 1)], 0.45 * 0.5 + 0.05 * 0.75 + 0.5, id="gaps are filled with what is reachable"),
        pytest.param([(0.1, 0.5), (0.06, 1)], 0.04 * 0.75 + 0.06, id="narrow gaps are bridged by a line"),
        pytest.param([(0.5, 0.2), (0.5, 0.6), (0.5, 0.4)], 0.3, id="the best precision of equal recalls counts"),
    ],
)
def test_area(points, expected):
    assert area(points) == pytest.approx(expected, abs=2e-7)


def test_order_of_the_points_does_not_matter():
    rng = np.random.default_rng(0)
    points = rng.random((50, 2))
    assert area(points) == area(points[rng.permutation(50)])


def test_curve_of_counts():
    def array(*values):
        return np.array(values, np.int64)

    curve = precision_recall_curve(
        score_cutoffs=np.array([0, 0.5, 0.9, 1], np.float32),
        true_positives=array(3, 2, 0, 0),
        false_positives=array(1, 0, 1, 0),
        false_negatives=array(0, 1, 3, 3),
        heading_accuracy_sum=np.array([2, 1.5, 0, 0], np.float32),
    )
    assert curve.precision.tolist() == [0.75, 1, 1, 1]
    assert curve.heading_precision.tolist() == [0.5, 0.75, 1, 1]
    np.testing.assert_array_equal(curve.recall, np.array([1, 2 / 3, 0, 0], np.float32))
    assert curve.precision.dtype == curve.recall.dtype == np.float32
