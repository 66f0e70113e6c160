import dataclasses

import numpy as np
import pytest

from detection3d.evaluation import MetricConfig, evaluate
from detection3d.evaluation.breakdowns import BREAKDOWNS, AllButSign, BySize, ByVelocity, OneShard
from tests.evaluation.builders import box, found, truth


def moving(objects, speeds):
    velocity = np.array([(0.6 * speed, -0.8 * speed, 5.0) for speed in speeds], np.float32)
    return dataclasses.replace(objects, velocity=velocity)


def counts(metrics, name):
    row = metrics.row(name)
    return row.true_positives, row.false_positives, row.false_negatives


def measured(split, detections, objects):
    return evaluate([detections], [objects], MetricConfig(breakdowns=(split,)))


def test_speed_decides_where_an_object_counts_and_every_detection_may_match_it():
    objects = moving(truth([box(10), box(20), box(30)]), [0.0, 2.0, 20.0])
    metrics = measured(ByVelocity(), found([box(10), box(20)]), objects)
    assert counts(metrics, "VELOCITY_TYPE_VEHICLE_STATIONARY_LEVEL_2") == (1, 0, 0)
    assert counts(metrics, "VELOCITY_TYPE_VEHICLE_MEDIUM_LEVEL_2") == (1, 0, 0)
    assert counts(metrics, "VELOCITY_TYPE_VEHICLE_VERY_FAST_LEVEL_2") == (0, 0, 1)
    assert counts(metrics, "VELOCITY_TYPE_VEHICLE_SLOW_LEVEL_2") == (0, 0, 0)
    assert counts(metrics, "VELOCITY_TYPE_PEDESTRIAN_STATIONARY_LEVEL_2") == (0, 0, 0)
    assert metrics.row("VELOCITY_TYPE_VEHICLE_SLOW_LEVEL_2").predictions == 2


def test_false_detections_count_where_the_object_that_they_overlap_most_does_else_everywhere():
    objects = moving(truth([box(10), box(14.5)]), [2.0, 20.0])
    # The second one overlaps the slower object by 1/3 and the faster one by less; the third one overlaps nothing.
    metrics = measured(ByVelocity(), found([box(10), box(12), box(80)]), objects)
    assert counts(metrics, "VELOCITY_TYPE_VEHICLE_MEDIUM_LEVEL_2") == (1, 2, 0)
    assert counts(metrics, "VELOCITY_TYPE_VEHICLE_VERY_FAST_LEVEL_2") == (0, 1, 1)
    assert counts(metrics, "VELOCITY_TYPE_VEHICLE_STATIONARY_LEVEL_2") == (0, 1, 0)


@pytest.mark.parametrize(
    ("speed", "part"),
    [(0.19, "STATIONARY"), (0.21, "SLOW"), (1.0, "MEDIUM"), (2.99, "MEDIUM"), (3.01, "FAST"), (10.01, "VERY_FAST")],
)
def test_parts_of_velocity(speed, part):
    metrics = measured(ByVelocity(), found([]), moving(truth([box()]), [speed]))
    assert counts(metrics, f"VELOCITY_TYPE_VEHICLE_{part}_LEVEL_2") == (0, 0, 1)


def test_an_object_of_unknown_velocity_stands_still():
    for velocity in (None, np.full((1, 3), np.nan, np.float32)):
        metrics = measured(ByVelocity(), found([]), dataclasses.replace(truth([box()]), velocity=velocity))
        assert counts(metrics, "VELOCITY_TYPE_VEHICLE_STATIONARY_LEVEL_2") == (0, 0, 1)


def test_size_goes_by_the_longest_side():
    below = float(np.nextafter(np.float32(7), np.float32(0)))
    objects = truth([(10, 0, 0, below, 2, 2, 0), (30, 0, 0, 2, 7, 2, 0), (50, 0, 0, 2, 2, 8, 0)])
    metrics = measured(BySize(), found([(10, 0, 0, 7, 2, 2, 0)]), objects)
    assert counts(metrics, "SIZE_TYPE_VEHICLE_small_LEVEL_2") == (0, 0, 1)
    assert counts(metrics, "SIZE_TYPE_VEHICLE_large_LEVEL_2") == (0, 1, 2)


def test_shards_of_several_types():
    objects = truth([box(10), box(20), box(30), box(40)], types=[1, 2, 3, 0])
    # 0.6 is enough for the pedestrian and not for the vehicle; a sign at the pedestrian's place is false.
    moved = [box(11), box(21), box(30), box(20)]
    detections = found(moved, types=[1, 2, 3, 3])
    one = measured(OneShard(), detections, objects)
    assert counts(one, "ONE_SHARD_LEVEL_2") == (2, 2, 2)
    split = measured(AllButSign(), detections, objects)
    assert counts(split, "ALL_BUT_SIGN_LEVEL_2") == (1, 1, 2)
    assert counts(split, "SIGN_LEVEL_2") == (1, 1, 0)


def test_detections_of_unknown_type_are_false_where_they_count_at_all():
    metrics = evaluate(
        [found([box(10)], types=0)],
        [truth([box(10)], types=0)],
        MetricConfig(breakdowns=tuple(BREAKDOWNS.values())),
    )
    assert counts(metrics, "ONE_SHARD_LEVEL_2") == (0, 1, 1)
    assert counts(metrics, "ALL_BUT_SIGN_LEVEL_2") == (0, 1, 1)
    others = [row for row in metrics.rows if row.breakdown not in ("ONE_SHARD", "ALL_BUT_SIGN")]
    assert {(row.predictions, row.ground_truth) for row in others} == {(0, 0)}


def test_truth_against_itself_is_perfect_in_every_breakdown():
    rng = np.random.default_rng(0)
    boxes = [box(*rng.uniform(-60, 60, 2), heading=rng.uniform(-3, 3)) for _ in range(40)]
    types = rng.integers(1, 5, 40)
    objects = moving(truth(boxes, types=types), rng.uniform(0, 12, 40))
    metrics = evaluate([found(boxes, types=types)], [objects], MetricConfig(breakdowns=tuple(BREAKDOWNS.values())))
    present = [row for row in metrics.rows if row.ground_truth]
    assert len(present) > 40
    assert {float(row.ap) for row in present} | {float(row.aph) for row in present} <= {
        1.0,
        float(np.float32(1 + 1e-7)),
    }
