"""The metrics' benchmark: turns in processes, and how they fail."""

import dataclasses
import json
import sys
from pathlib import Path

import pytest

from detection3d.benchmark import metrics
from detection3d.benchmark.metrics_frames import DETECTIONS, OBJECTS, random_frames
from detection3d.cli.benchmark import main
from detection3d.errors import UserError
from detection3d.evaluation import evaluate


def test_frames_are_worth_measuring():
    predictions, truths = random_frames(20)
    assert {len(item.boxes) for item in predictions} == {DETECTIONS}
    assert {len(item) for item in truths} == {OBJECTS}
    row = evaluate(predictions, truths).row("OBJECT_TYPE_TYPE_VEHICLE_LEVEL_2")
    assert 0.05 < row.ap < 0.9
    assert row.false_positives > row.true_positives > 50


def test_a_turn_tells_times_and_memory(tmp_path: Path):
    turn = metrics.take_turn(Path(sys.executable), "native", metrics.write_frames(tmp_path, 3))
    assert 0 < turn.evaluate < turn.whole
    assert 0 < turn.read < turn.whole
    assert 5e7 < turn.peak_bytes < 4e9
    expected = evaluate(*random_frames(3)).row("RANGE_TYPE_PEDESTRIAN_[0, 30)_LEVEL_1")
    assert turn.areas[expected.name] == [float(expected.ap), float(expected.aph)]


def test_a_turn_that_fails_says_why(tmp_path: Path):
    files = metrics.write_frames(tmp_path, 1)
    with pytest.raises(UserError, match="can't be run"):
        metrics.take_turn(tmp_path / "no_python", "native", files)
    files.ground_truth.write_bytes(b"spoilt")
    with pytest.raises(UserError, match=r"the native backend failed .*ground_truth_1\.parquet"):
        metrics.take_turn(Path(sys.executable), "native", files)


def test_numbers_that_differ_end_the_comparison(tmp_path: Path, monkeypatch):
    turn = metrics.Turn(1.0, 0.1, 0.2, 10, {"row": [0.5, 0.5]}, {})
    other = dataclasses.replace(turn, areas={"row": [0.5, 0.25]})
    monkeypatch.setattr(metrics, "take_turn", lambda python, backend, *_: other if backend == "official" else turn)
    files = metrics.Files(tmp_path / "p", tmp_path / "g")
    assert [backend for backend, _ in metrics.compare(files, None, 2)] == ["native", "native"]
    with pytest.raises(UserError, match="numbers differ"):
        list(metrics.compare(files, Path("python"), 1))


@pytest.mark.slow
def test_the_benchmark_compares_with_the_official_op(evaluation_python: Path, tmp_path: Path, capsys):
    arguments = ["metrics", "--official", str(evaluation_python), "--frames", "300", "--rounds", "1", "--scale", "20"]
    assert main([*arguments, "--output", str(tmp_path / "figures.json")]) == 0
    assert "numbers are equal" in capsys.readouterr().out
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert set(figures["times_as_fast"]) == {"whole_s", "read_and_evaluate_s", "evaluate_s"}
    assert figures["times_as_fast"]["whole_s"] > 1
    assert figures["scale"]["peak_gb"] < 4
