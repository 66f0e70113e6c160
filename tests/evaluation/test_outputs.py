import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from rich.console import Console

from detection3d.cli.run import run
from detection3d.cli.waymo_metrics import main
from detection3d.errors import DataError
from detection3d.evaluation import evaluate, prepare_ground_truth
from detection3d.evaluation.breakdowns import ByRange
from detection3d.evaluation.files.metrics_json import (
    mean_metrics,
    metrics_to_json,
    read_metrics_json,
    write_metrics_json,
)
from detection3d.evaluation.files.objects import write_detections, write_ground_truth
from detection3d.evaluation.metrics import MetricConfig
from detection3d.evaluation.reporting.metrics_table import print_metrics
from detection3d.evaluation.reporting.report import MAX_SCENES, Curve, write_report
from detection3d.evaluation.reporting.scenes import best_cutoff, judge_scene, scene_of_frame
from tests.evaluation.builders import box, found, frame, labels, truth

DETECTIONS = found(
    [box(10), box(20), box(40), box(50)], scores=[0.9, 0.8, 0.6, 0.1], in_zone=[False, False, False, True]
)
LABELS = labels([box(10), box(20), box(30)], num_points=[50, 3, 9])
METRICS = evaluate([DETECTIONS], [prepare_ground_truth(LABELS, "segment", 0)])
SCENE = scene_of_frame(frame(LABELS), DETECTIONS)


def test_json_holds_every_row_and_the_same_float32():
    content = json.loads(metrics_to_json(METRICS, {"commit": "abc"}))
    assert content["schema_version"] == 1
    assert content["frames"] == 1
    assert content["provenance"] == {"commit": "abc"}
    assert list(content["breakdowns"]) == [row.name for row in METRICS.rows]
    for row in METRICS.rows:
        entry = content["breakdowns"][row.name]
        assert (np.float32(entry["AP"]), np.float32(entry["APH"])) == (row.ap, row.aph)
    assert content["breakdowns"]["OBJECT_TYPE_TYPE_VEHICLE_LEVEL_2"]["counts"] == {
        "ground_truth": 3,
        "predictions": 4,
        "true_positives": 2,
        "false_positives": 1,
        "false_negatives": 1,
    }


def test_means_are_over_the_types_that_have_ground_truth():
    boxes = [box(10), box(20), box(30)]
    metrics = evaluate([found(boxes[:1])], [truth(boxes, types=[1, 2, 3])])
    mean = mean_metrics(metrics)[2]
    assert mean.ap == pytest.approx(0.5, abs=2e-7)
    assert (mean.over, mean.without_ground_truth) == (("VEHICLE", "PEDESTRIAN"), ("CYCLIST",))
    nothing = mean_metrics(evaluate([], []))[1]
    assert (nothing.ap, nothing.aph, nothing.over) == (None, None, ())
    assert json.loads(metrics_to_json(evaluate([], []), {}))["means"]["LEVEL_1"]["AP"] is None


def test_json_file_is_read_back_and_others_refused(tmp_path):
    path = write_metrics_json(tmp_path, METRICS, {})
    assert read_metrics_json(path)["frames"] == 1
    path.write_text("{")
    with pytest.raises(DataError, match="not JSON"):
        read_metrics_json(path)
    path.write_text('{"schema_version": 7}')
    with pytest.raises(DataError, match="schema_version is 7"):
        read_metrics_json(path)


def printed(metrics, terminal):
    text = io.StringIO()
    print_metrics(metrics, Console(file=text, force_terminal=terminal, width=120))
    return text.getvalue()


def test_table_shows_numbers_and_says_where_there_is_no_ground_truth():
    text = printed(METRICS, terminal=False)
    rows = {tuple(line.split()[:2]): line.split()[2:] for line in text.splitlines() if line.strip()}
    ap = f"{100 * METRICS.row('OBJECT_TYPE_TYPE_VEHICLE_LEVEL_2').ap:.2f}"
    assert rows["VEHICLE", "2"] == [ap, ap, "3", "4", "2", "1", "1"]
    assert rows["PEDESTRIAN", "1"][:3] == ["no", "ground", "truth"]
    assert "mean, no PEDESTRIAN, CYCLIST" in text
    assert "SIGN" not in text
    assert "\x1b" not in text
    assert "\x1b" in printed(METRICS, terminal=True)


def test_best_cutoff_is_where_f1_peaks():
    # Up to 0.60 two are right, one is false and one missed; from 0.61 to 0.80 none is false.
    assert best_cutoff(METRICS) == pytest.approx(0.61)
    assert best_cutoff(evaluate([], [])) == 0.3


def test_scene_is_judged_as_the_metrics_do():
    judged = judge_scene(SCENE, 0.05, MetricConfig())
    assert judged.matched.tolist() == [True, True, False, False]
    assert judged.excused.tolist() == [False, False, False, True]
    assert judged.found.tolist() == [True, True, False]
    at_the_cutoff = judge_scene(SCENE, float(DETECTIONS.scores[2]), MetricConfig())
    assert len(at_the_cutoff.scores) == 3
    above = judge_scene(SCENE, 0.85, MetricConfig())
    assert above.scores.tolist() == [np.float32(0.9)]
    assert above.found.tolist() == [True, False, False]


class Page(HTMLParser):
    """Collects what the tests ask of the report."""

    def __init__(self, text):
        super().__init__()
        self.images, self.links, self.text, self.open = [], [], "", []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        if tag == "img":
            self.images.append(values)
        self.links += [values[name] for name in ("src", "href") if values.get(name)]
        if tag not in ("meta", "link", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.text += data


def report(path, *arguments):
    write_report(path, *arguments)
    page = Page(path.read_text(encoding="utf-8"))
    assert page.open == [], "all elements are closed"
    assert all(link.startswith(("data:", "#")) for link in page.links), "nothing is fetched"
    assert "@import" not in path.read_text(encoding="utf-8")
    for image in page.images:
        assert image["src"].startswith("data:image/svg+xml,")
        assert image["alt"]
    page.text = re.sub(r"\s+", " ", page.text)
    return page


def test_report_shows_metrics_curves_frames_and_training(tmp_path):
    curves = [Curve("Loss", "step", "loss", {"total": ([0, 1, 2], [3.0, float("nan"), 1.0])})]
    page = report(tmp_path / "report.html", METRICS, [SCENE], "A <bold> title", {"commit": "abc123"}, curves)
    assert "A <bold> title" in page.text, "text is escaped"
    assert [image["alt"].split()[0] for image in page.images] == ["Precision", "Bird's-eye", "Loss:"]
    assert "segment · 0" in page.text
    assert "score of at least 0.61, where F1 is best, matched" in page.text
    assert "2 found, 1 missed, 0 false" in page.text
    assert "abc123" in page.text
    assert f"{100 * METRICS.row('OBJECT_TYPE_TYPE_VEHICLE_LEVEL_1').ap:.2f}" in page.text
    assert "Vehicle 30 to 50 m" in page.text
    assert (tmp_path / "report.html").stat().st_size < 500_000


def test_report_of_nothing(tmp_path):
    page = report(tmp_path / "report.html", evaluate([], []), [], "Nothing", {})
    assert page.images == []
    assert "no ground truth" in page.text
    assert "nothing to measure against" in page.text
    assert "Frames from above" not in page.text


def test_report_without_ground_truth_detections_or_points(tmp_path):
    unlabelled = scene_of_frame(frame(None, points=0), DETECTIONS)
    page = report(tmp_path / "a.html", evaluate([DETECTIONS], []), [unlabelled], "No labels", {})
    assert "3 detections, no ground truth" in page.text
    empty = scene_of_frame(frame(labels([], []), points=0), found([]))
    page = report(tmp_path / "b.html", evaluate([found([])], [truth([])]), [empty], "Empty", {})
    assert "0 found, 0 missed, 0 false" in page.text
    blind = scene_of_frame(frame(LABELS), found([]))
    page = report(tmp_path / "c.html", evaluate([], [truth([box(10)])]), [blind], "Blind", {})
    assert "0 found, 3 missed, 0 false" in page.text
    assert "score of at least 0.30, matched" in page.text, "where nothing is found, no score is best"


def test_signs_that_nobody_looked_for_are_not_missed(tmp_path):
    signs = labels([box(10), box(20)], num_points=[9, 9], types=3)
    for detections, caption in (
        (found([]), "0 found, 0 missed, 0 false"),
        (found([box(10)], types=3), "1 found, 1 missed, 0 false"),
    ):
        metrics = evaluate([detections], [prepare_ground_truth(signs, "segment", 0)])
        page = report(tmp_path / "report.html", metrics, [scene_of_frame(frame(signs), detections)], "Signs", {})
        assert caption in page.text


def test_report_says_how_many_frames_it_leaves_out(tmp_path):
    page = report(tmp_path / "report.html", METRICS, [SCENE] * (MAX_SCENES + 1), "Many", {})
    assert f"{MAX_SCENES} of {MAX_SCENES + 1} frames are shown" in page.text
    assert sum(image["alt"].startswith("Bird") for image in page.images) == MAX_SCENES


def test_metrics_that_are_not_split_by_type_make_a_report_too(tmp_path):
    metrics = evaluate(
        [DETECTIONS], [prepare_ground_truth(LABELS, "segment", 0)], MetricConfig(breakdowns=(ByRange(),))
    )
    page = report(tmp_path / "report.html", metrics, [SCENE], "By distance", {})
    assert "not split by object type" in page.text
    assert "Vehicle 30 to 50 m" in page.text
    assert "2 found, 1 missed, 1 false" in page.text


def test_same_input_gives_the_same_report(tmp_path):
    for name in ("a.html", "b.html"):
        write_report(tmp_path / name, METRICS, [SCENE], "Title", {})
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


def test_tool_prints_the_table_and_writes_both_files(tmp_path, capsys):
    write_detections(tmp_path / "d.parquet", [DETECTIONS])
    write_ground_truth(tmp_path / "g.bin", [truth([box(10), box(20), box(30)])])
    arguments = ["--predictions", str(tmp_path / "d.parquet"), "--ground-truth", str(tmp_path / "g.bin")]
    assert run(main, [*arguments, "--output", str(tmp_path / "new/results")]) == 0
    output = capsys.readouterr().out
    assert "VEHICLE" in output
    assert "report.html" in output
    assert read_metrics_json(tmp_path / "new/results/metrics.json")["frames"] == 1
    assert (tmp_path / "new/results/report.html").is_file()


def test_tool_refuses_what_cannot_be_compared(tmp_path, capsys):
    write_detections(tmp_path / "d.parquet", [DETECTIONS])
    write_ground_truth(tmp_path / "other.parquet", [truth([box(10)], key=("elsewhere", 3))])

    def stopped(predictions, ground_truth):
        files = ["--predictions", str(tmp_path / predictions), "--ground-truth", str(tmp_path / ground_truth)]
        assert run(main, [*files, "--output", str(tmp_path / "results")]) == 1
        assert not (tmp_path / "results").exists()
        return capsys.readouterr().err

    assert "(elsewhere at 3, ...); are they of the same data set?" in stopped("d.parquet", "other.parquet")
    assert "missing.bin: No such file or directory; check the path" in stopped("missing.bin", "other.parquet")
    assert "not a file of ground truth" in stopped("d.parquet", "d.parquet")
