import json

import numpy as np
import pytest

from detection3d.evaluation import evaluate
from detection3d.evaluation.analysis import RANDOM_FRAMES, WORST_FRAMES, analyse
from detection3d.evaluation.files.metrics_json import metrics_to_json
from detection3d.evaluation.metrics import MetricConfig
from detection3d.evaluation.reporting.scenes import judge_scene, scenes_of_files
from detection3d.types.scene import ObjectType
from tests.evaluation.builders import box, found, truth
from tests.evaluation.test_bootstrap import random_segments


@pytest.mark.parametrize("seed", range(5))
def test_true_positives_and_detections_are_those_of_the_metrics(seed):
    predictions, truths = random_segments(np.random.default_rng(seed))
    metrics = evaluate(predictions, truths)
    analysis = analyse(predictions, truths, metrics)
    for kind in (ObjectType.VEHICLE, ObjectType.PEDESTRIAN, ObjectType.SIGN, ObjectType.CYCLIST):
        row = metrics.row(f"OBJECT_TYPE_TYPE_{kind.name}_LEVEL_2")
        errors, calibration = analysis.head_errors.get(kind), analysis.calibration.get(kind)
        assert (errors.count if errors else 0) == row.true_positives
        assert (int(calibration.counts.sum()) if calibration else 0) == row.predictions
        assert sum(analysis.coverage.objects.get(kind, {}).values()) == row.ground_truth
    assert len(analysis.pairs) > 5
    assert analysis.pairs.overlaps.min() >= 0.5


def test_detections_excused_in_a_zone_are_not_judged():
    predictions = [found([box(10), box(40), box(60)], [0.9, 0.8, 0.7], in_zone=[True, True, False])]
    truths = [truth([box(10)])]
    analysis = analyse(predictions, truths, evaluate(predictions, truths))
    assert analysis.overall_calibration.counts.sum() == 2
    assert analysis.coverage.in_no_label_zone == 2
    assert analysis.worst == (), "at the best cutoff only the right one is left, and nothing is wrong"


def test_the_worst_frames_are_those_with_most_wrong_at_the_best_cutoff():
    rng = np.random.default_rng(1)
    predictions, truths = random_segments(rng, segments=9, frames=4)
    metrics = evaluate(predictions, truths)
    analysis = analyse(predictions, truths, metrics)
    scenes = scenes_of_files([item.key for item in truths], predictions, truths)
    wrong = {}
    for scene in scenes:
        judged = judge_scene(scene, analysis.cutoff, MetricConfig(), (1, 2, 4))
        wrong[scene.detections.key] = int((~judged.found).sum() + (~judged.matched & ~judged.excused).sum())
    by_segment = {}
    for key, count in wrong.items():
        by_segment[key[0]] = max(by_segment.get(key[0], (0, None)), (count, (-key[1],)))
    expected = sorted((count for count, _ in by_segment.values()), reverse=True)[:WORST_FRAMES]
    assert [frame.wrong for frame in analysis.worst] == expected
    assert all(wrong[frame.key] == frame.wrong for frame in (*analysis.worst, *analysis.random))
    assert len({frame.key[0] for frame in analysis.worst}) == WORST_FRAMES, "one of each segment"
    assert len(analysis.random) == RANDOM_FRAMES
    assert not {frame.key for frame in analysis.random} & {frame.key for frame in analysis.worst}
    again = analyse(predictions[::-1], truths[::-1], metrics)
    assert again.shown == analysis.shown, "the order of the frames changes nothing"


def test_a_single_segment_shows_several_of_its_frames():
    predictions, truths = random_segments(np.random.default_rng(2), segments=1, frames=9)
    analysis = analyse(predictions, truths, evaluate(predictions, truths))
    assert len(analysis.worst) == WORST_FRAMES
    counts = [frame.wrong for frame in analysis.worst]
    assert counts == sorted(counts, reverse=True)
    assert counts[-1] >= max(frame.wrong for frame in analysis.random)


def test_frames_on_one_side_and_without_objects_are_counted():
    predictions = [found([box(10)], key=("a", 0)), found([], key=("b", 1)), found([box(3)], types=0, key=("a", 7))]
    truths = [truth([box(10), box(50)], [1, 2], [1, 3], key=("a", 0)), truth([], key=("c", 2))]
    truths += [truth([box(10)], key=("c", time)) for time in (3, 4, 5)]
    coverage = analyse(predictions, truths, evaluate(predictions, truths)).coverage
    assert (coverage.segments, coverage.frames) == (3, 7)
    assert (coverage.without_objects, coverage.only_detections, coverage.only_truth) == (1, 2, 4)
    assert coverage.objects[ObjectType.SIGN] == {0: 0, 1: 0, 2: 1}
    assert coverage.detections == {ObjectType.UNKNOWN: 1, ObjectType.VEHICLE: 1}


@pytest.mark.parametrize(
    ("predictions", "truths"),
    [([], []), ([found([])], [truth([])]), ([], [truth([box(10)])]), ([found([box(10)])], [])],
    ids=["nothing", "one empty frame", "no detection", "no ground truth"],
)
def test_the_sections_of_metrics_json_hold_for_empty_inputs(predictions, truths):
    metrics = evaluate(predictions, truths)
    analysis = analyse(predictions, truths, metrics)
    content = json.loads(metrics_to_json(metrics, {}, analysis.to_json()))
    assert content["schema_version"] == 1
    assert {"evaluated", "head_errors", "calibration", "frames_shown", "means", "breakdowns"} <= content.keys()
    assert content["evaluated"]["frames"] == metrics.frames
    assert content["head_errors"] == {}
