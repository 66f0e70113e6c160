import math

import numpy as np
import pytest

from detection3d.evaluation.calibration import calibrate
from detection3d.evaluation.head_errors import MatchedBoxes, box_errors, head_errors, head_errors_by_type
from detection3d.types.scene import ObjectType


def pairs(detected, truth, types=1):
    count = len(detected)
    return MatchedBoxes(
        np.array(detected, np.float32).reshape(-1, 7),
        np.array(truth, np.float32).reshape(-1, 7),
        np.broadcast_to(types, count).astype(np.uint8),
        np.full(count, 0.75, np.float32),
    )


def test_planted_errors_come_back():
    truth = [(10, 5, 1, 4, 2, 1.5, 0.5)] * 2
    detected = [(10.3, 4.6, 1.25, 4.5, 1.75, 1.5, 0.6), (10, 5, 0.75, 4, 2, 1.75, 0.5)]
    found = head_errors(pairs(detected, truth))
    assert found is not None
    assert found.count == 2
    assert found.overlap == 0.75
    assert found.centre_mean == pytest.approx(0.25, abs=1e-6)
    assert found.centre_median == pytest.approx(0.25, abs=1e-6)
    assert found.centre_p95 == pytest.approx(0.475, abs=1e-6)
    assert (found.z_mean, found.z_bias) == (0.25, 0)
    assert found.size_mean == (0.25, 0.125, 0.125)
    assert found.size_bias == (0.25, -0.125, 0.125)
    assert found.heading_mean == pytest.approx(0.05, abs=1e-6)
    assert found.flipped == 0


@pytest.mark.parametrize("turns", [-2, 0, 1])
def test_headings_are_compared_around_the_circle(turns):
    base = (0, 0, 0, 4, 2, 1.5)
    truth = [(*base, 3.1), (*base, -1.0), (*base, 0.0), (*base, 0.0)]
    off = 2 * math.pi * turns
    detected = [(*base, -3.1 + off), (*base, -1.0 + math.pi + off), (*base, 1.5 + off), (*base, -1.65 + off)]
    errors = box_errors(pairs(detected, truth))
    assert errors.heading == pytest.approx([2 * math.pi - 6.2, math.pi, 1.5, 1.65], abs=3e-6)
    assert errors.flipped.tolist() == [False, True, False, True]
    found = head_errors(pairs(detected, truth))
    assert found is not None
    assert (found.flipped, found.flipped_share) == (2, 0.5)
    assert found.heading_mean_unflipped == pytest.approx((2 * math.pi - 6.2 + 1.5) / 2, abs=3e-6)
    assert found.to_json()["heading_deg"]["mean_without_flipped"] == pytest.approx(
        math.degrees((2 * math.pi - 6.2 + 1.5) / 2), abs=2e-4
    )


def test_all_flipped_leaves_no_mean_of_the_others():
    one = (0, 0, 0, 4, 2, 1.5)
    found = head_errors(pairs([(*one, 3.0)], [(*one, 0.0)]))
    assert found is not None
    assert found.heading_mean_unflipped is None
    assert found.to_json()["heading_deg"]["mean_without_flipped"] is None


def test_types_are_kept_apart_and_missing_ones_left_out():
    one = (0.0, 0, 0, 4, 2, 1.5, 0)
    moved = (1.0, 0, 0, 4, 2, 1.5, 0)
    found = head_errors_by_type(pairs([one, moved, moved], [one] * 3, [1, 1, 4]), list(ObjectType))
    assert list(found) == [ObjectType.VEHICLE, ObjectType.CYCLIST]
    assert found[ObjectType.VEHICLE].centre_mean == 0.5
    assert found[ObjectType.CYCLIST].centre_mean == 1.0
    assert head_errors(pairs([], [])) is None


def test_calibration_equals_the_plain_sums():
    rng = np.random.default_rng(0)
    scores = rng.uniform(0, 1, 2000).astype(np.float32)
    matched = rng.uniform(0, 1, 2000) < scores**2
    found = calibrate(scores, matched)
    expected = 0.0
    for k in range(10):
        inside = (scores >= np.float32(k / 10)) & ((scores < np.float32((k + 1) / 10)) | (k == 9))
        assert found.counts[k] == inside.sum()
        assert found.matched[k] == pytest.approx(matched[inside].mean())
        assert found.scores[k] == pytest.approx(scores[inside].mean(dtype=np.float64))
        expected += inside.sum() / 2000 * abs(scores[inside].mean(dtype=np.float64) - matched[inside].mean())
    assert found.error == pytest.approx(expected)
    assert 0.1 < expected < 0.25


def test_honest_scores_have_no_calibration_error():
    scores = np.repeat(np.float32([0.25, 0.75]), 4)
    assert calibrate(scores, np.array([1, 0, 0, 0, 1, 1, 1, 0], np.bool_)).error == 0
    assert calibrate(scores, np.zeros(8, np.bool_)).error == 0.5


def test_limits_of_the_bins_and_no_detections():
    edges = np.arange(11, dtype=np.float32) / np.float32(10)
    assert calibrate(edges, np.ones(11, np.bool_)).counts.tolist() == [1] * 9 + [2]
    nothing = calibrate(np.zeros(0, np.float32), np.zeros(0, np.bool_))
    assert nothing.error is None
    assert nothing.to_json()["bins"][3] == {"detections": 0, "mean_score": None, "matched_share": None}
