import numpy as np
import pytest

from detection3d.errors import DataError, UserError
from detection3d.evaluation import MetricConfig, evaluate
from detection3d.evaluation.breakdowns import BREAKDOWNS, ByObjectType, ByRange
from detection3d.evaluation.metric_config_text import config_of_message, message_of_config, read_metric_config
from tests.evaluation.builders import box, found, truth

TEXT = """
breakdown_generator_ids: OBJECT_TYPE
difficulties { levels: LEVEL_1 levels: LEVEL_2 }
matcher_type: TYPE_HUNGARIAN
iou_thresholds: 0.0 iou_thresholds: 0.7 iou_thresholds: 0.5 iou_thresholds: 0.5 iou_thresholds: 0.5
box_type: TYPE_3D
score_cutoffs: 0.0
score_cutoffs: 0.5
"""


def read(tmp_path, text):
    path = tmp_path / "config.textproto"
    path.write_text(text)
    return read_metric_config(path)


def test_reads_waymos_own_file(shared):
    config = read_metric_config(shared / "waymo/metrics/config.textproto")
    official = MetricConfig()
    assert config.breakdowns == official.breakdowns
    assert config.levels == official.levels
    assert config.levels_by_breakdown == ()
    for ours, theirs in (
        (config.score_cutoffs, official.score_cutoffs),
        (config.iou_thresholds, official.iou_thresholds),
        (config.recall_step, official.recall_step),
    ):
        np.testing.assert_array_equal(np.float32(ours), np.float32(theirs))


def test_reads_text(tmp_path):
    config = read(tmp_path, TEXT + "min_precision: 0.25 min_heading_accuracy: 0.5 desired_recall_delta: 0.125")
    assert (config.min_precision, config.min_heading_accuracy, config.recall_step) == (0.25, 0.5, 0.125)
    assert config.score_cutoffs == (0, 0.5)
    assert config.breakdowns == (ByObjectType(),)


def test_levels_may_differ_and_are_level_2_where_none_are_given(tmp_path):
    config = read(tmp_path, TEXT + "breakdown_generator_ids: RANGE difficulties {}")
    assert config.breakdowns == (ByObjectType(), ByRange())
    names = [row.name for row in evaluate([], [], config).rows]
    assert names[:2] == ["OBJECT_TYPE_TYPE_VEHICLE_LEVEL_1", "OBJECT_TYPE_TYPE_VEHICLE_LEVEL_2"]
    assert names[8:10] == ["RANGE_TYPE_VEHICLE_[0, 30)_LEVEL_2", "RANGE_TYPE_VEHICLE_[30, 50)_LEVEL_2"]


def test_message_and_back():
    config = MetricConfig(
        breakdowns=tuple(BREAKDOWNS.values()),
        levels_by_breakdown=((1,), (2,), (1, 2), (2, 1), (1,), (2,)),
        iou_thresholds=(0, 0.25, 0.5, 0.5, 0.75),
        score_cutoffs=(),
        desired_cutoffs=7,
        recall_step=0.5,
        min_precision=0.125,
        min_heading_accuracy=0.5,
    )
    assert config_of_message(message_of_config(config)) == config


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("box_type", "box_tipe", r"config.textproto: .*line 6:1 .*box_tipe"),
        ("TYPE_HUNGARIAN", "TYPE_FAST", r"line 4:\d+ .*TYPE_FAST"),
        ("score_cutoffs: 0.5", "score_cutoffs: high", r"line 8"),
        ("TYPE_HUNGARIAN", "TYPE_SCORE_FIRST", "matcher_type is TYPE_SCORE_FIRST; these metrics do TYPE_HUNGARIAN"),
        ("box_type: TYPE_3D", "", "box_type is TYPE_UNKNOWN; these metrics do TYPE_3D"),
        ("TYPE_3D", "TYPE_2D", "box_type is TYPE_2D"),
        ("OBJECT_TYPE", "CAMERA", "breakdown CAMERA is none of those .* OBJECT_TYPE, RANGE"),
        ("levels: LEVEL_1", "levels: UNKNOWN", r"levels of the metrics must be 1, 2 or both.*\(0, 2\)"),
        ("iou_thresholds: 0.0", "", "one for each of the 5 types"),
        (
            "difficulties",
            "breakdown_generator_ids: RANGE difficulties",
            "2 breakdown_generator_ids, but 1 difficulties",
        ),
        (
            "difficulties",
            "difficulties {} breakdown_generator_ids: OBJECT_TYPE difficulties",
            r"each once, got \['OBJECT_TYPE', 'OBJECT_TYPE'\]",
        ),
        ("score_cutoffs: 0.0", "score_cutoffs: 0.7", "score_cutoffs of the metrics must be ascending"),
        ("score_cutoffs: 0.0\nscore_cutoffs: 0.5", "", "not empty; or give the number of desired"),
        ("score_cutoffs: 0.0", "desired_recall_delta: 0 score_cutoffs: 0.0", r"recall step .* \(0, 1\]"),
        ("box_type", "let_metric_config { enabled: true } box_type", "LET-3D-AP"),
        ("box_type", "include_details_in_measurements: true box_type", "give no details"),
    ],
)
def test_what_cannot_be_done_is_refused(tmp_path, old, new, message):
    assert TEXT.count(old) >= 1
    with pytest.raises(DataError, match=message):
        read(tmp_path, TEXT.replace(old, new, 1))


def test_files_that_are_no_text(tmp_path):
    path = tmp_path / "config"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="not a text file"):
        read_metric_config(path)
    with pytest.raises(UserError, match="can't be read"):
        read_metric_config(tmp_path / "none")


def test_quantiles_of_the_scores_as_cutoffs():
    config = MetricConfig(score_cutoffs=(), desired_cutoffs=3)
    scores = np.array([0.9, 0.1, 0.2, 0.8, 0.4, 0.3, 0.6], np.float32)
    np.testing.assert_array_equal(config.cutoffs_for(scores), np.float32([0.1, 0.4, 1]))
    np.testing.assert_array_equal(config.cutoffs_for(scores[:2]), np.float32([0, 0.5, 1]))
    np.testing.assert_array_equal(MetricConfig(score_cutoffs=(), desired_cutoffs=1).cutoffs_for(scores), [0])


def test_matches_with_a_bad_heading_may_be_left_out():
    square = (10, 0, 1, 2, 2, 1.5)
    detections, objects = found([(*square, 1.6)]), truth([(*square, 0.0)])
    name = "OBJECT_TYPE_TYPE_VEHICLE_LEVEL_2"
    row = evaluate([detections], [objects], MetricConfig(min_heading_accuracy=0.5)).row(name)
    assert (row.true_positives, row.false_positives, row.false_negatives) == (0, 0, 0)
    assert evaluate([detections], [objects], MetricConfig(min_heading_accuracy=0.4)).row(name).true_positives == 1


def test_low_precision_may_count_as_none():
    detections = found([box(10), box(30), box(50)])
    objects = truth([box(10)])
    name = "OBJECT_TYPE_TYPE_VEHICLE_LEVEL_2"
    assert evaluate([detections], [objects], MetricConfig(min_precision=0.3)).row(name).ap == pytest.approx(1 / 3)
    assert evaluate([detections], [objects], MetricConfig(min_precision=0.34)).row(name).curve.precision[0] == 0
