import dataclasses
import json
import math
import subprocess
import sys

import numpy as np
import pytest

from detection3d.errors import UserError
from detection3d.evaluation import MetricConfig, evaluate
from detection3d.evaluation.breakdowns import ByObjectType
from detection3d.evaluation.files.objects import read_detections, read_ground_truth
from detection3d.evaluation.inputs import MAX_BOXES_PER_FRAME
from tests.evaluation.builders import box, found, truth
from tests.oracles.slow_metrics import slow_metrics

LEVEL_1, LEVEL_2 = "OBJECT_TYPE_TYPE_VEHICLE_LEVEL_1", "OBJECT_TYPE_TYPE_VEHICLE_LEVEL_2"


# The official area is a float32 sum of up to 20 trapezoids: perfect detections come to 1.0000001.
ROUNDING = 2e-7


def counts(row):
    return row.true_positives, row.false_positives, row.false_negatives


def test_equals_the_official_op_to_the_last_bit(shared):
    folder = shared / "waymo/metrics"
    metrics = evaluate(
        read_detections(folder / "fake_predictions.bin"), read_ground_truth(folder / "fake_ground_truths.bin")
    )
    official = json.loads((folder / "fake_official.json").read_text())
    assert metrics.frames == official["frames"]
    assert [row.name for row in metrics.rows] == list(official["breakdowns"])
    for row in metrics.rows:
        expected = official["breakdowns"][row.name]
        assert (row.name, row.ap, row.aph) == (row.name, np.float32(expected["AP"]), np.float32(expected["APH"]))
    by_type = [row for row in metrics.rows if row.breakdown == "OBJECT_TYPE" and row.level == 2]
    assert sum(row.ground_truth for row in by_type) == official["ground_truths"]
    assert sum(row.predictions for row in by_type) == official["predictions"]


def test_perfect_detections():
    boxes = [box(x) for x in (5, 15, 25)]
    row = evaluate([found(boxes)], [truth(boxes)]).row(LEVEL_2)
    assert row.ap == row.aph == pytest.approx(1.0, abs=ROUNDING)
    assert counts(row) == (3, 0, 0)
    assert (row.ground_truth, row.predictions) == (3, 3)


def test_two_detections_of_one_object():
    # At cutoffs up to 0.5 both count and precision is 1/2; above, the worse overlap is left: it still finds the object.
    metrics = evaluate([found([box(10), box(10.2)], scores=[0.5, 0.9])], [truth([box(10)])])
    row = metrics.row(LEVEL_2)
    assert counts(row) == (1, 1, 0)
    assert row.ap == pytest.approx(1.0, abs=ROUNDING)
    assert row.curve.precision[[0, 50, 51, 90]].tolist() == [0.5, 0.5, 1.0, 1.0]
    assert row.curve.recall[[0, 50, 51, 90, 91]].tolist() == [1, 1, 1, 1, 0]


def test_half_found_and_one_false():
    # Recall never exceeds 1/2, where precision is 1/2: the area is a rectangle of 1/2 by 1/2.
    row = evaluate([found([box(10), box(40)])], [truth([box(10), box(20)])]).row(LEVEL_2)
    assert counts(row) == (1, 1, 1)
    assert row.ap == pytest.approx(0.25, abs=ROUNDING)


def test_found_level_2_objects_count_at_level_1_and_missed_ones_do_not():
    objects = truth([box(10), box(20), box(30)], levels=[1, 2, 2])
    metrics = evaluate([found([box(10), box(20)])], [objects])
    assert counts(metrics.row(LEVEL_1)) == (2, 0, 0)
    assert counts(metrics.row(LEVEL_2)) == (2, 0, 1)
    assert (metrics.row(LEVEL_1).ground_truth, metrics.row(LEVEL_2).ground_truth) == (1, 3)
    assert metrics.row(LEVEL_1).ap == pytest.approx(1.0, abs=ROUNDING)
    assert metrics.row(LEVEL_2).ap == pytest.approx(2 / 3, abs=ROUNDING)


def test_unmatched_detections_in_a_no_label_zone_are_not_false():
    detections = found([box(10), box(40), box(60)], in_zone=[True, True, False])
    assert counts(evaluate([detections], [truth([box(10)])]).row(LEVEL_2)) == (1, 1, 0)


@pytest.mark.parametrize(
    ("turn", "accuracy"),
    [(0.0, 1.0), (math.pi, 0.0), (math.pi / 2, 0.5), (-math.pi / 2, 0.5), (2 * math.pi, 1.0), (0.1, 1 - 0.1 / math.pi)],
)
@pytest.mark.parametrize("heading", [0.0, 3.1, -3.1])
def test_heading_accuracy_weights_aph(turn, accuracy, heading):
    # Square footprints overlap by 0.7 at any right angle, so that only the heading differs.
    square = (10, 0, 1, 2, 2, 1.5)
    row = evaluate([found([(*square, heading + turn)])], [truth([(*square, heading)])]).row(LEVEL_2)
    assert row.ap == pytest.approx(1.0, abs=ROUNDING)
    assert row.aph == pytest.approx(accuracy, abs=ROUNDING)


def test_types_do_not_match_each_other_and_unknown_is_left_out():
    metrics = evaluate([found([box(10), box(20)], types=[2, 0])], [truth([box(10), box(20)], types=[1, 0])])
    assert counts(metrics.row(LEVEL_2)) == (0, 0, 1)
    assert counts(metrics.row("OBJECT_TYPE_TYPE_PEDESTRIAN_LEVEL_2")) == (0, 1, 0)
    assert sum(row.predictions for row in metrics.rows if row.level == 2 and row.breakdown == "OBJECT_TYPE") == 1


def test_pair_across_a_range_limit_is_false_and_missed():
    metrics = evaluate([found([box(29.9, z=0)])], [truth([box(30.0, z=0)])])
    assert counts(metrics.row("RANGE_TYPE_VEHICLE_[0, 30)_LEVEL_2")) == (0, 1, 0)
    assert counts(metrics.row("RANGE_TYPE_VEHICLE_[30, 50)_LEVEL_2")) == (0, 0, 1)
    assert counts(metrics.row(LEVEL_2)) == (1, 0, 0)


def test_frames_on_one_side_only_count():
    here, there = ("a", 1), ("b", 1)
    metrics = evaluate([found([box(10)], key=here)], [truth([box(10)], key=there)])
    assert metrics.frames == 2
    assert counts(metrics.row(LEVEL_2)) == (0, 1, 1)


def test_nothing_at_all():
    metrics = evaluate([], [])
    assert metrics.frames == 0
    assert {(float(row.ap), row.ground_truth) for row in metrics.rows} == {(0.0, 0)}


def random_frames(seed, frames=4, most=7):
    """Frames on a coarse grid, so that overlaps, scores and shards tie again and again."""
    rng = np.random.default_rng(seed)

    def boxes(count):
        centre = np.column_stack(
            [rng.choice([27.5, 28, 28.5, 29, 49.5, 60], count), rng.integers(0, 3, count), [1] * count]
        )
        size = np.column_stack([rng.choice([2, 4], count), np.full(count, 2), np.full(count, 1.5)])
        heading = rng.choice([0, math.pi / 2, -math.pi / 2, math.pi, 0.05], count)
        return np.column_stack([centre, size, heading]).astype(np.float32)

    predictions, truths = [], []
    for index in range(frames):
        d, m = rng.integers(0, most, 2)
        key = (f"segment-{index % 2}", index)
        truths.append(
            truth(boxes(m), levels=rng.integers(0, 3, m), types=rng.integers(0, 5, m) if seed % 2 else 1, key=key)
        )
        scores = rng.choice([0.0, 0.1, 0.25, 0.3, 0.7, 1.0], d)
        types = rng.integers(0, 5, d) if seed % 2 else 1
        predictions.append(found(boxes(d), scores, types, in_zone=rng.random(d) < 0.3, key=key))
    return predictions, truths


def as_plain_frames(predictions, truths):
    plain = []
    for p, t in zip(predictions, truths, strict=True):
        rows = zip(p.boxes.astype(float), p.types, p.scores, p.overlaps_no_label_zone, strict=True)
        detections = [{"box": b, "type": int(k), "score": s, "in_zone": bool(z)} for b, k, s, z in rows]
        rows = zip(t.boxes.astype(float), t.types, t.levels, strict=True)
        plain.append((p.key, detections, [{"box": b, "type": int(k), "level": int(v)} for b, k, v in rows]))
    return plain


def check_against_the_transcription(seed, cutoffs, most=7):
    predictions, truths = random_frames(seed, most=most)
    metrics = evaluate(predictions, truths, MetricConfig(score_cutoffs=cutoffs))
    expected = slow_metrics(as_plain_frames(predictions, truths), cutoffs)
    assert [row.name for row in metrics.rows] == list(expected)
    for row in metrics.rows:
        slow = expected[row.name]
        assert (row.name, row.ap, row.aph) == (row.name, slow["AP"], slow["APH"])
        assert row.curve.true_positives.tolist() == slow["TP"]
        assert row.curve.false_positives.tolist() == slow["FP"]
        assert row.curve.false_negatives.tolist() == slow["FN"]
    return metrics


@pytest.mark.parametrize("seed", range(12))
def test_equals_the_slow_transcription(seed):
    check_against_the_transcription(seed, (0.0, 0.1, 0.2, 0.3, 0.5, 0.9, 1.0))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(12, 212))
def test_equals_the_slow_transcription_at_every_cutoff(seed):
    check_against_the_transcription(seed, MetricConfig().score_cutoffs, most=14)


def test_order_of_frames_and_number_of_threads_do_not_matter():
    predictions, truths = random_frames(5, frames=30)
    expected = [(row.ap, row.aph) for row in evaluate(predictions, truths, workers=1).rows]
    assert len({aph for _, aph in expected}) > 3
    order = np.random.default_rng(0).permutation(30)
    shuffled = evaluate([predictions[k] for k in order], list(reversed(truths)), workers=3)
    assert [(row.ap, row.aph) for row in shuffled.rows] == expected


def test_config_chooses_breakdowns_and_levels():
    config = MetricConfig(breakdowns=(ByObjectType(),), levels=(2,))
    assert [row.name for row in evaluate([], [], config).rows][:2] == [
        LEVEL_2,
        LEVEL_2.replace("VEHICLE", "PEDESTRIAN"),
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"score_cutoffs": (0.5, 0.1)}, "score_cutoffs .* ascending"),
        ({"levels": ()}, "levels .* not empty"),
        ({"iou_thresholds": (0.7,)}, "each of the 5 types"),
        ({"min_heading_accuracy": float("nan")}, "min_heading_accuracy .* must be a number"),
    ],
)
def test_config_is_checked(change, message):
    with pytest.raises(UserError, match=message):
        MetricConfig(**change)


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("detections", "message"),
    [
        (found([box(10)], scores=NAN), "detection 0 has score nan"),
        (found([box(10)], scores=INF), "detection 0 has score inf"),
        (found([box(10)], scores=1.5), r"detection 0 has score 1\.5; scores must lie in \[0, 1\]"),
        (found([box(10)], types=9), "type 9; Waymo's types are 0 to 4"),
        (found([box(10)] * (MAX_BOXES_PER_FRAME + 1)), "10001 boxes in the detections, more than 10000"),
        (dataclasses.replace(found([box(10)]), scores=np.zeros(2, np.float32)), r"scores has shape \(2,\)"),
        (dataclasses.replace(found([]), boxes=np.zeros((0, 9), np.float32)), r"must be \[M, 7\], got shape \(0, 9\)"),
    ],
)
def test_unusable_detections_are_named(detections, message):
    with pytest.raises(UserError, match=message):
        evaluate([detections], [])


@pytest.mark.parametrize("column", range(7))
@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_boxes_that_are_not_finite_overlap_nothing(column, value):
    """Also where the official op ends its process; where it does not, test_official has its answers."""
    spoilt = list(box(10))
    spoilt[column] = value
    for pair in (([box(10)], [spoilt]), ([spoilt], [box(10)]), ([spoilt], [spoilt])):
        metrics = evaluate([found(pair[0])], [truth(pair[1])])
        assert counts(metrics.row(LEVEL_1)) == (0, 1, 1)
    beside = evaluate([found([spoilt, box(30)])], [truth([box(30), spoilt])])
    assert counts(beside.row(LEVEL_1)) == (1, 1, 1)


def test_unusable_ground_truth_is_named():
    short = truth([box(1), box(20)])
    for change, message in (
        ({"num_points": np.zeros(1, np.int32)}, r"num_points has shape \(1,\)"),
        ({"velocity": np.zeros((1, 3), np.float32)}, r"velocity has shape \(1, 3\); it must be \(2, 3\)"),
    ):
        with pytest.raises(UserError, match=message):
            evaluate([], [dataclasses.replace(short, **change)])
    with pytest.raises(UserError, match="GroundTruth where Detections was expected; the detections come first"):
        evaluate([truth([box(1)])], [found([box(1)])])  # pyright: ignore[reportArgumentType]
    with pytest.raises(UserError, match="difficulty level 3"):
        evaluate([], [truth([box(1)], levels=3)])


def test_a_frame_given_twice_is_refused():
    with pytest.raises(UserError, match="frame segment at 0: occurs twice in the detections"):
        evaluate([found([]), found([])], [])
    with pytest.raises(UserError, match="frame segment at 0: occurs twice in the ground truth"):
        evaluate([], [truth([]), truth([])])


def test_importing_the_evaluation_loads_no_torch():
    program = (
        "import sys, detection3d.evaluation, detection3d.evaluation.reporting.report, detection3d.cli.waymo_metrics; "
        "sys.exit('torch' in sys.modules or 'tensorflow' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], timeout=60).returncode == 0
