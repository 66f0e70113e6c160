import json
from dataclasses import replace

import numpy as np
import pytest

from detection3d.cli.report import main
from detection3d.cli.run import run
from detection3d.evaluation import evaluate
from detection3d.evaluation.bootstrap import interval, resample_segments, resampled_metrics
from detection3d.evaluation.files.evaluated_folder import read_evaluated_folder, short_labels
from detection3d.evaluation.files.metrics_json import write_metrics_json
from detection3d.evaluation.files.objects import write_detections, write_ground_truth
from detection3d.evaluation.reporting.figures import label_text
from detection3d.evaluation.segment_counts import count_segments
from detection3d.evaluation.side_by_side import RowKey, compare_evaluations
from detection3d.types.scene import ObjectType
from tests.evaluation.builders import box, found, truth

MEAN = RowKey(None, 2)


def data(segments=20, objects=6):
    """Ground truth of vehicles and pedestrians, and detections that find all of them."""
    truths, perfect = [], []
    for segment in range(segments):
        for frame in range(2):
            key = (f"segment-{segment:02d}", frame)
            boxes = [box(10.0 * k, y=segment) for k in range(objects)]
            types = [1, 2] * (objects // 2)
            truths.append(truth(boxes, types=types, key=key))
            perfect.append(found(boxes, np.linspace(0.9, 0.5, objects), types, key=key))
    return truths, perfect


def losing(predictions, share, seed=0):
    """Leave out a share of the detections."""
    rng, result = np.random.default_rng(seed), []
    for item in predictions:
        kept = rng.random(len(item.boxes)) >= share
        result.append(
            replace(
                item,
                boxes=item.boxes[kept],
                types=item.types[kept],
                scores=item.scores[kept],
                overlaps_no_label_zone=item.overlaps_no_label_zone[kept],
            )
        )
    return result


def evaluated(folder, predictions, truths, **provenance):
    folder.mkdir(parents=True)
    write_detections(folder / "detections.parquet", predictions)
    write_ground_truth(folder / "ground_truth.parquet", truths)
    write_metrics_json(folder, evaluate(predictions, truths), provenance)
    return folder


def compared(*folders):
    return compare_evaluations([read_evaluated_folder(folder) for folder in folders])


def test_the_same_detections_show_no_difference(tmp_path):
    truths, perfect = data()
    some = losing(perfect, 0.3)
    comparison = compared(*(evaluated(tmp_path / name, some, truths) for name in "ab"))
    for value in comparison.columns[1].values.values():
        if value.value is not None:
            assert value.difference is not None
            assert (value.difference.value, value.difference.interval) == (0, (0, 0))
            assert value.difference.verdict == "no difference shown"


def test_a_clear_loss_is_called_lower_and_its_reverse_higher(tmp_path):
    truths, perfect = data()
    worse = evaluated(tmp_path / "worse", losing(perfect, 0.5), truths)
    better = evaluated(tmp_path / "better", losing(perfect, 0.05, 1), truths)
    for order, verdict in (((better, worse), "lower"), ((worse, better), "higher")):
        comparison = compared(*order)
        first, second = (column.values[MEAN, "APH"] for column in comparison.columns)
        assert second.difference is not None
        assert second.difference.verdict == verdict
        assert second.difference.value == pytest.approx(second.value - first.value)
        low, high = second.difference.interval
        assert low < second.difference.value < high
        assert first.interval[0] < first.value < first.interval[1]
        assert first.difference is None


def test_equally_good_detectors_are_hardly_ever_called_different():
    """Both lose the same share at random: of 12 pairs, a verdict at 5 % may fall on one or two."""
    truths, perfect = data(segments=25)
    counted = 0
    names = sorted({item.context_name for item in truths})
    weights = resample_segments(len(names), 300)
    for seed in range(12):
        one, two = (
            resampled_metrics(count_segments(losing(perfect, 0.3, 2 * seed + k), truths, names), weights).ap[:, 1]
            for k in (0, 1)
        )
        low, high = interval(two - one)
        counted += not low <= 0 <= high
    assert counted <= 2


def test_few_segments_give_no_verdict(tmp_path):
    truths, perfect = data(segments=9)
    comparison = compared(
        evaluated(tmp_path / "a", perfect, truths), evaluated(tmp_path / "b", losing(perfect, 0.9), truths)
    )
    value = comparison.columns[1].values[MEAN, "APH"]
    assert value.difference.value < -0.5
    assert (value.interval, value.difference.interval, value.difference.verdict) == (None, None, "too few segments")


def test_a_type_in_few_segments_has_no_verdict_and_neither_has_the_mean(tmp_path):
    truths, perfect = data()
    cyclist = {"segment-00", "segment-01"}
    truths = [replace(t, types=np.full_like(t.types, 4)) if t.context_name in cyclist else t for t in truths]
    comparison = compared(
        evaluated(tmp_path / "a", losing(perfect, 0.1), truths), evaluated(tmp_path / "b", losing(perfect, 0.6), truths)
    )
    values = comparison.columns[1].values
    assert comparison.segments_with[RowKey(ObjectType.CYCLIST, 2)] == 2
    assert comparison.segments_with[MEAN] == 2
    assert values[RowKey(ObjectType.VEHICLE, 2), "AP"].difference.verdict == "lower"
    assert values[RowKey(ObjectType.CYCLIST, 2), "AP"].difference.verdict == "too few segments"
    assert values[MEAN, "APH"].difference.verdict == "too few segments"


def test_types_without_objects_have_no_value(tmp_path):
    truths, perfect = data()
    comparison = compared(*(evaluated(tmp_path / name, perfect, truths) for name in "ab"))
    value = comparison.columns[1].values[RowKey(ObjectType.CYCLIST, 2), "AP"]
    assert (value.value, value.interval, value.difference) == (None, None, None)
    assert any("no ground truth of cyclist" in note for note in comparison.notes)


def run_tool(tmp_path, *folders):
    return run(main, [*map(str, folders), "--output", str(tmp_path / "out")])


def test_different_ground_truths_are_refused(tmp_path, capsys):
    truths, perfect = data()
    first = evaluated(tmp_path / "first", perfect, truths)

    def refusal(name, changed):
        assert run_tool(tmp_path, first, evaluated(tmp_path / name, perfect, changed)) == 1
        assert not (tmp_path / "out").exists()
        return capsys.readouterr().err

    error = refusal("fewer", truths[1:])
    assert "1 of the 40 frames with objects of first are not in the ground truth of fewer" in error
    assert "segment-00 at 0" in error
    error = refusal("more", [*truths, truth([box(1)], key=("elsewhere", 5))])
    assert (
        "1 of the 41 frames with objects of more are not in the ground truth of first, such as elsewhere at 5" in error
    )
    moved = replace(truths[3], boxes=truths[3].boxes + np.float32(0.01))
    assert "different objects in 1 of 40 frames, such as segment-01 at 1" in refusal(
        "moved", [*truths[:3], moved, *truths[4:]]
    )
    harder = replace(truths[3], levels=np.full_like(truths[3].levels, 2))
    assert "different objects in 1 of 40" in refusal("harder", [*truths[:3], harder, *truths[4:]])


def test_frames_without_objects_and_the_order_of_objects_may_differ(tmp_path):
    truths, perfect = data()
    first = evaluated(tmp_path / "a", perfect, [*truths, truth([], key=("segment-00", 9))])
    turned = [
        replace(t, boxes=t.boxes[::-1].copy(), types=t.types[::-1].copy(), levels=t.levels[::-1].copy()) for t in truths
    ]
    comparison = compared(first, evaluated(tmp_path / "b", perfect, turned))
    assert [note for note in comparison.notes if "40 frames, a over 41" in note]


def test_a_file_that_was_changed_since_is_refused(tmp_path, capsys):
    truths, perfect = data()
    one, two = (evaluated(tmp_path / name, perfect, truths) for name in "ab")
    write_detections(two / "detections.parquet", losing(perfect, 0.2))
    assert run_tool(tmp_path, one, two) == 1
    assert "the files have changed since" in capsys.readouterr().err


def test_files_are_found_by_the_provenance_of_metrics_json(tmp_path, capsys):
    truths, perfect = data()
    boxes = evaluated(tmp_path / "boxes", perfect, truths)
    apart = tmp_path / "apart"
    apart.mkdir()
    named = {"predictions": str(boxes / "detections.parquet"), "ground_truth": str(boxes / "ground_truth.parquet")}
    write_metrics_json(apart, evaluate(perfect, truths), named)
    assert len(read_evaluated_folder(apart).predictions) == 40
    (boxes / "detections.parquet").unlink()
    assert run_tool(tmp_path, apart) == 1
    assert "which its metrics.json names, is gone" in capsys.readouterr().err
    write_metrics_json(apart, evaluate(perfect, truths), {})
    assert run_tool(tmp_path, apart) == 1
    assert "names no file of predictions" in capsys.readouterr().err
    write_metrics_json(apart, evaluate(perfect, truths), {**named, "configuration": "mine.textproto"})
    assert run_tool(tmp_path, apart) == 1
    assert "measured with the configuration mine.textproto" in capsys.readouterr().err
    assert run_tool(tmp_path, tmp_path / "nowhere") == 1
    assert "there is no metrics.json" in capsys.readouterr().err


def test_the_tool_prints_and_writes_what_it_found(tmp_path, capsys):
    truths, perfect = data()
    folders = [
        evaluated(tmp_path / name / "evaluation" / "00001000", losing(perfect, share), truths, seed=k, commit="abc")
        for k, (name, share) in enumerate((("good", 0.05), ("bad", 0.5)))
    ]
    assert run_tool(tmp_path, *folders) == 0
    output = capsys.readouterr().out
    assert "bad is lower than good by" in output
    assert output.count("Mean, level 2") == 2
    content = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert content["baseline"] == "good"
    assert content["bootstrap"] == {"resamples": 1000, "seed": 0, "coverage": 0.95}
    first, second = (item["metrics"]["MEAN_LEVEL_2"]["APH"] for item in content["evaluations"])
    assert first["difference"] is None
    assert second["difference"]["verdict"] == "lower"
    assert second["value"] - first["value"] == pytest.approx(second["difference"]["value"])
    assert content["evaluations"][0]["head_errors"]["VEHICLE"]["centre_bev_m"]["mean"] == 0
    page = (tmp_path / "out" / "report.html").read_text()
    assert "bad is lower than good by" in page
    assert 'class="lower"' in page
    assert "Synthetic data" not in page


def test_one_evaluation_alone_has_intervals(tmp_path, capsys):
    truths, perfect = data()
    assert run_tool(tmp_path, evaluated(tmp_path / "alone", losing(perfect, 0.3), truths)) == 0
    content = json.loads((tmp_path / "out" / "comparison.json").read_text())
    low, high = content["evaluations"][0]["metrics"]["MEAN_LEVEL_2"]["APH"]["interval"]
    assert 0 < low < high < 1


def test_evaluations_of_nothing(tmp_path):
    for name, truths in (("a", []), ("b", [truth([], key=("s", 0))])):
        evaluated(tmp_path / name, [], truths)
    assert run_tool(tmp_path, tmp_path / "a", tmp_path / "b") == 0
    assert "no ground truth" in (tmp_path / "out" / "report.html").read_text()


def test_unusable_options_are_refused(tmp_path, capsys):
    truths, perfect = data(segments=2)
    folder = evaluated(tmp_path / "a", perfect, truths)
    assert run_tool(tmp_path, folder, folder) == 1
    assert "given twice" in capsys.readouterr().err
    assert run(main, [str(folder), "--resamples", "5"]) == 1
    assert "--resamples is 5" in capsys.readouterr().err


def test_labels_are_what_tells_the_folders_apart(tmp_path):
    def labels(*names):
        return short_labels([tmp_path / name for name in names])

    assert labels("a/evaluation/1", "b/evaluation/1") == ["a", "b"]
    assert labels("a/evaluation/1", "a/evaluation/2") == ["1", "2"]
    assert labels("a/x/1", "b/y/1") == ["a/x", "b/y"]
    assert labels("x/a") == ["a"]
    assert len(set(labels("a", "a/b"))) == 2


def test_any_folder_name_is_written_as_it_is(tmp_path, capsys):
    """As Hydra and people name them: rich would read styles in brackets, matplotlib formulas between dollars."""
    truths, perfect = data()
    names = ["run[lr=1e-3]", "[red]x[/nope]", "a$b_{$", "_under"]
    folders = [evaluated(tmp_path / name, losing(perfect, 0.1 * k), truths) for k, name in enumerate(names)]
    assert run_tool(tmp_path, *folders) == 0
    told = capsys.readouterr()
    for name in names:
        assert name in told.out
    assert told.err == ""


def test_labels_of_charts_are_shown_letter_by_letter():
    assert label_text("plain_name") == "plain_name"
    assert label_text("a$b$") == r"a\$b\$"
    assert label_text("_under").strip() == "_under"
    assert not label_text("_under").startswith("_")
