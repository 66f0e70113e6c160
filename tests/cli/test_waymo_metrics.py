import dataclasses
import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from detection3d.cli.compilation import Compilation, find_cache, watch_compilation
from detection3d.cli.run import run
from detection3d.cli.waymo_metrics import main
from detection3d.evaluation import MetricConfig
from detection3d.evaluation.breakdowns import BREAKDOWNS
from detection3d.evaluation.files.objects import write_detections, write_ground_truth
from detection3d.evaluation.metric_config_text import message_of_config
from detection3d.protos import waymo_pb2
from tests.conftest import ROOT
from tests.evaluation.builders import box, found, truth

KINDS = ("VEHICLE", "PEDESTRIAN", "SIGN", "CYCLIST")


def files(tmp_path, predictions, ground_truth, suffix=".parquet"):
    paths = tmp_path / f"predictions{suffix}", tmp_path / f"ground_truth{suffix}"
    write_detections(paths[0], predictions)
    write_ground_truth(paths[1], ground_truth)
    return ["--predictions", str(paths[0]), "--ground-truth", str(paths[1]), "--output", str(tmp_path / "results")]


def content(tmp_path):
    assert (tmp_path / "results/report.html").stat().st_size > 1000
    return json.loads((tmp_path / "results/metrics.json").read_text())


@pytest.mark.parametrize("suffix", [".parquet", ".bin"])
def test_truth_against_itself_is_perfect(tmp_path, suffix):
    rng = np.random.default_rng(0)
    predictions, truths = [], []
    for index in range(5):
        boxes = [box(*rng.uniform(-60, 60, 2), heading=rng.uniform(-3, 3)) for _ in range(12)]
        types = [1, 2, 4, 1, 2, 4, 1, 2, 4, 1, 1, 2]  # no sign
        predictions.append(found(boxes, types=types, key=("segment", index)))
        truths.append(truth(boxes, types=types, key=("segment", index)))
    assert main(files(tmp_path, predictions, truths, suffix)) == 0
    rows = content(tmp_path)["breakdowns"]
    for kind in KINDS:
        row = rows[f"OBJECT_TYPE_TYPE_{kind}_LEVEL_2"]
        expected = 0.0 if kind == "SIGN" else pytest.approx(1.0, abs=2e-7)
        assert (row["AP"], row["APH"]) == (expected, expected)
        assert row["counts"]["false_positives"] == row["counts"]["false_negatives"] == 0


@pytest.mark.parametrize("predictions", [[], [found([])]], ids=["no frame", "a frame without boxes"])
def test_no_prediction_at_all_gives_zeros(tmp_path, capsys, predictions):
    assert main(files(tmp_path, predictions, [truth([box(10), box(20)])])) == 0
    assert "report" in capsys.readouterr().out
    rows = content(tmp_path)["breakdowns"]
    assert {(row["AP"], row["APH"], row["counts"]["true_positives"]) for row in rows.values()} == {(0, 0, 0)}
    assert rows["OBJECT_TYPE_TYPE_VEHICLE_LEVEL_2"]["counts"]["false_negatives"] == 2


def test_frames_of_one_side_and_unknown_types_are_counted_and_told(tmp_path, capsys):
    predictions = [found([box()], key=("a", index)) for index in range(3)] + [found([box(), box(20)], types=[0, 1])]
    truths = [truth([box()]), truth([box(), box(30)], types=[0, 0], key=("b", 1)), truth([], key=("b", 2))]
    assert main(files(tmp_path, predictions, truths)) == 0
    told = capsys.readouterr().out
    assert "3 frames of the predictions are unknown to the ground truth: their detections count as false" in told
    assert "2 frames of the ground truth have no predictions" in told
    assert "1 detections are of type UNKNOWN" in told
    assert "2 objects of the ground truth are of type UNKNOWN" in told
    provenance = content(tmp_path)["provenance"]
    assert {name: provenance[name] for name in provenance if "only" in name or "unknown" in name} == {
        "frames_of_predictions_only": 3,
        "frames_of_ground_truth_only": 2,
        "detections_of_unknown_type": 1,
        "objects_of_unknown_type": 2,
    }
    assert content(tmp_path)["breakdowns"]["OBJECT_TYPE_TYPE_VEHICLE_LEVEL_2"]["counts"] == {
        "ground_truth": 1,
        "predictions": 4,
        "true_positives": 0,
        "false_positives": 4,
        "false_negatives": 1,
    }


def test_boxes_that_are_not_finite_are_counted_told_and_left_out_of_the_pictures(tmp_path, capsys):
    arguments = files(tmp_path, [found([box(), box(20), box(30)])], [truth([box(), box(30)])])
    for side, places in (("predictions", {1: "center_x", 2: "length"}), ("ground_truth", {1: "heading"})):
        path = tmp_path / f"{side}.bin"
        if side == "predictions":
            write_detections(path, [found([box(), box(20), box(30)])])
        else:
            write_ground_truth(path, [truth([box(), box(30)])])
        spoilt = waymo_pb2.Objects.FromString(path.read_bytes())
        for place, name in places.items():
            setattr(spoilt.objects[place].object.box, name, float("nan"))
        path.write_bytes(spoilt.SerializeToString())
    assert main([text.replace(".parquet", ".bin") for text in arguments]) == 0
    told = capsys.readouterr().out
    assert "2 detections hold NaN or infinite numbers: they overlap nothing and count as false" in told
    assert "1 objects of the ground truth hold NaN" in told
    counts = content(tmp_path)["breakdowns"]["OBJECT_TYPE_TYPE_VEHICLE_LEVEL_2"]["counts"]
    assert (counts["true_positives"], counts["false_positives"], counts["false_negatives"]) == (1, 2, 1)


def test_the_report_shows_the_frames_that_the_metrics_name(tmp_path):
    predictions = [found([box(), box(20)], key=(f"segment-{index}", index)) for index in range(3)]
    assert main(files(tmp_path, predictions, [truth([box()], key=("segment-1", 1))])) == 0
    shown = content(tmp_path)["frames_shown"]
    assert len(shown["worst"]) == 3
    report = (tmp_path / "results/report.html").read_text()
    for frame in shown["worst"]:
        assert f"{frame['context_name']} · {frame['timestamp_micros']}" in report


def test_labels_without_points_are_counted_and_told(tmp_path, capsys):
    arguments = files(tmp_path, [found([box(), box(20)])], [truth([box(), box(20)])], ".bin")
    path = tmp_path / "ground_truth.bin"
    labels = waymo_pb2.Objects.FromString(path.read_bytes())
    labels.objects[1].object.num_lidar_points_in_box = 0
    path.write_bytes(labels.SerializeToString())
    assert main(arguments) == 0
    assert "1 labels have no lidar point and are left out, as officially" in capsys.readouterr().out
    assert content(tmp_path)["provenance"]["labels_without_points"] == 1


def test_a_pipe_is_refused(tmp_path, capsys):
    arguments = files(tmp_path, [found([box()])], [truth([box()])])
    os.mkfifo(tmp_path / "pipe")
    arguments[1] = str(tmp_path / "pipe")
    assert run(main, arguments) == 1
    assert "a pipe or a device, which can be read only once" in capsys.readouterr().err


def test_nothing_odd_is_not_mentioned(tmp_path, capsys):
    assert main(files(tmp_path, [found([box()])], [truth([box()])])) == 0
    assert "note" not in capsys.readouterr().out


def test_files_without_a_common_frame_are_refused(tmp_path, capsys):
    arguments = files(tmp_path, [found([box()], key=("a", 1))], [truth([box()], key=("b", 1))])
    assert run(main, arguments) == 1
    assert "are they of the same data set?" in capsys.readouterr().err


def test_the_configuration_decides(tmp_path, capsys):
    config = MetricConfig()
    path = tmp_path / "config.textproto"
    path.write_text(str(message_of_config(dataclasses.replace(config, iou_thresholds=(0, 0.2, 0.5, 0.5, 0.5)))))
    arguments = files(tmp_path, [found([box(10)])], [truth([box(12)])])  # they overlap by 1/3
    name = "OBJECT_TYPE_TYPE_VEHICLE_LEVEL_2"
    assert main(arguments) == 0
    assert content(tmp_path)["breakdowns"][name]["AP"] == 0
    assert main([*arguments, "--config", str(path)]) == 0
    assert content(tmp_path)["breakdowns"][name]["AP"] == pytest.approx(1.0, abs=2e-7)
    assert content(tmp_path)["provenance"]["configuration"] == str(path)


def test_the_official_configuration_from_a_file_is_called_so(tmp_path):
    path = tmp_path / "config.textproto"
    path.write_text(str(message_of_config(MetricConfig())))
    assert main([*files(tmp_path, [found([box()])], [truth([box()])]), "--config", str(path)]) == 0
    assert content(tmp_path)["provenance"]["configuration"] == "official"


@pytest.mark.parametrize(
    "change",
    [
        {"breakdowns": tuple(BREAKDOWNS.values())},
        {"levels": (2,)},
        {"levels_by_breakdown": ((2,), (1, 2))},
        {"score_cutoffs": (), "desired_cutoffs": 5},
        {"score_cutoffs": (0.5,)},
    ],
)
def test_every_configuration_gives_a_report(tmp_path, change):
    path = tmp_path / "config.textproto"
    path.write_text(str(message_of_config(dataclasses.replace(MetricConfig(), **change))))
    predictions = [found([box(), box(20), box(40)], scores=[0.9, 0.4, 0.7])]
    assert main([*files(tmp_path, predictions, [truth([box(), box(21)])]), "--config", str(path)]) == 0
    assert content(tmp_path)["breakdowns"]["OBJECT_TYPE_TYPE_VEHICLE_LEVEL_2"]["AP"] > 0


def test_breakdowns_other_than_by_type_alone(tmp_path, capsys):
    path = tmp_path / "config.textproto"
    text = str(message_of_config(MetricConfig())).replace("OBJECT_TYPE", "VELOCITY").replace(": RANGE", ": SIZE")
    path.write_text(text)
    assert main([*files(tmp_path, [found([box()])], [truth([box()])]), "--config", str(path)]) == 0
    told = capsys.readouterr().out
    assert "VEHICLE small" in told
    assert "VEHICLE SLOW" in told or "VEHICLE MEDIUM" in told
    assert set(content(tmp_path)["breakdowns"]) > {"SIZE_TYPE_VEHICLE_small_LEVEL_1"}


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda p, g: p.write_bytes(b"not a message"), "predictions.parquet"),
        (lambda p, g: p.write_bytes(g.read_bytes()), "predictions.parquet: not a file of detections"),
        (lambda p, g: g.unlink(), "ground_truth.parquet"),
    ],
)
def test_unusable_files_are_named(tmp_path, capsys, spoil, message):
    arguments = files(tmp_path, [found([box()])], [truth([box()])])
    spoil(tmp_path / "predictions.parquet", tmp_path / "ground_truth.parquet")
    assert run(main, arguments) == 1
    assert message in capsys.readouterr().err


def test_compilation_is_counted_when_it_happens():
    import numba

    @numba.njit
    def twice(x):
        return 2 * x

    with watch_compilation() as compilation:
        twice(3)
    assert compilation.functions == 1
    assert 0 < compilation.seconds < 30
    assert "1 functions compiled in" in str(compilation)
    with watch_compilation() as compilation:
        twice(3)
    assert str(compilation) == str(Compilation()) == "nothing to compile, it was cached"


def test_compiled_code_goes_to_a_temporary_folder_where_nothing_else_can_be_written_to(tmp_path, monkeypatch):
    monkeypatch.setenv("NUMBA_CACHE_DIR", "")  # what the function sets goes with it
    assert find_cache() is None  # beside the modules
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    folder = find_cache()
    assert folder is not None
    assert folder.parent == tmp_path
    assert os.environ["NUMBA_CACHE_DIR"] == str(folder)
    assert find_cache() is None  # it has been told


@pytest.mark.slow
def test_the_official_backend_gives_the_same(tmp_path: Path, shared: Path, evaluation_python: Path):
    folder = shared / "waymo/metrics"
    results = {}
    for backend in ("native", "official"):
        arguments = [
            "--predictions",
            folder / "fake_predictions.bin",
            "--ground-truth",
            folder / "fake_ground_truths.bin",
        ]
        arguments += ["--config", folder / "config.textproto", "--backend", backend, "--output", tmp_path / backend]
        subprocess.run(
            [evaluation_python, ROOT / "tools/waymo_metrics.py", *arguments],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            check=True,
            timeout=300,
        )
        results[backend] = json.loads((tmp_path / backend / "metrics.json").read_text())
    assert results["official"]["breakdowns"] == results["native"]["breakdowns"]
    assert results["official"]["provenance"]["tensorflow"].startswith("2.")
