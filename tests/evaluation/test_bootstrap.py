import numpy as np
import pytest

from detection3d.evaluation import evaluate
from detection3d.evaluation.bootstrap import interval, resample_segments, resampled_metrics
from detection3d.evaluation.segment_counts import count_segments
from tests.evaluation.builders import box, found, truth


def random_segments(rng, segments=7, frames=3, shift=0.25):
    """Cars in a row, found with noise; some are missed, some detections are false, a third of the headings flipped."""
    predictions, truths = [], []
    for segment in range(segments):
        for frame in range(frames):
            key = (f"segment-{segment}", frame)
            count = int(rng.integers(0, 8))
            objects = [box(10.0 * k, heading=rng.uniform(-3, 3)) for k in range(count)]
            noisy = [
                (x + rng.normal(0, shift), *rest, heading + np.pi * (rng.random() < 0.3))
                for x, *rest, heading in objects
            ]
            noisy = [item for item in noisy if rng.random() < 0.8] + [box(200.0 + rng.uniform(0, 9))]
            types = rng.choice([1, 1, 2, 4], count)
            predictions.append(found(noisy, rng.uniform(0, 1, len(noisy)), rng.choice([1, 1, 2], len(noisy)), key=key))
            truths.append(truth(objects, rng.choice([1, 2], count), types, key=key))
    return predictions, truths


def names(truths):
    return sorted({item.context_name for item in truths})


@pytest.mark.parametrize("seed", range(8))
def test_the_segments_together_have_the_metrics_of_the_whole(seed):
    predictions, truths = random_segments(np.random.default_rng(seed))
    counts = count_segments(predictions, truths, names(truths))
    whole = resampled_metrics(counts, np.ones((1, len(counts.segments)), np.int64))
    for place, (kind, level) in enumerate(counts.rows):
        row = evaluate(predictions, truths).row(f"OBJECT_TYPE_TYPE_{kind.name}_LEVEL_{level}")
        if row.ground_truth:
            assert np.float32(whole.ap[0, place]) == row.ap, "the same float32"
            assert whole.aph[0, place] == pytest.approx(row.aph, abs=1e-6)
        else:
            assert np.isnan(whole.ap[0, place])


def test_a_resample_is_the_evaluation_of_its_segments():
    """Segments drawn twice are evaluated as copies under other names."""
    predictions, truths = random_segments(np.random.default_rng(3), segments=4)
    counts = count_segments(predictions, truths, names(truths))
    (ap,) = resampled_metrics(counts, np.array([[2, 0, 1, 1]])).ap

    def copies(items):
        from dataclasses import replace

        times = dict(zip(names(truths), (2, 0, 1, 1), strict=True))
        return [
            replace(item, context_name=f"{item.context_name}-{copy}")
            for item in items
            for copy in range(times[item.context_name])
        ]

    rows = evaluate(copies(predictions), copies(truths)).rows[: len(counts.rows)]
    for value, row in zip(ap, rows, strict=True):
        assert np.isnan(value) if row.ground_truth == 0 else np.float32(value) == row.ap


def test_draws_keep_the_number_of_segments_and_repeat():
    weights = resample_segments(12, 500)
    assert weights.shape == (500, 12)
    assert (weights.sum(axis=1) == 12).all()
    assert (weights == resample_segments(12, 500)).all()
    assert (weights != resample_segments(12, 500, seed=1)).any()
    # Each segment is left out of (11/12)^12 = 35 % of the resamples.
    assert (weights == 0).mean() == pytest.approx((11 / 12) ** 12, abs=0.02)


def test_the_interval_of_a_mean_covers_it_as_often_as_it_says():
    """Found shares of segments are plain means: over many data sets, the interval must hold the truth in about 95 %."""
    rng = np.random.default_rng(0)
    weights = resample_segments(30, 400)
    inside = 0
    for _ in range(300):
        values = rng.normal(2.0, 1.0, 30)
        low, high = interval(weights @ values / 30)
        inside += low <= 2.0 <= high
    assert 0.89 <= inside / 300 <= 0.98


def test_intervals_leave_out_resamples_without_objects():
    assert interval(np.full(9, np.nan)) is None
    assert interval(np.array([np.nan, 1.0, 1.0])) == (1.0, 1.0)


def test_a_segment_without_boxes_counts_nothing():
    counts = count_segments([], [], ["a"])
    assert counts.true_positives.shape == (1, 8, 101)
    assert not counts.ground_truth.any()
    assert np.isnan(resampled_metrics(counts, resample_segments(1, 5)).ap).all()
    assert resampled_metrics(count_segments([], [], []), resample_segments(0, 5)).ap.shape == (5, 8)
