"""Every tool in turn, on synthetic and on real scans, and the files that a run leaves."""

import json
import re
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from detection3d.cli import evaluate, make_synthetic, prepare_argoverse, prepare_waymo, train
from detection3d.config_file import load_config
from detection3d.data.store import Store
from detection3d.evaluation.files.objects import read_detections, read_ground_truth
from detection3d.model.heads import TASKS
from detection3d.training.recorder import read_metrics
from tests.small_run import small_config, small_settings

STEPS = 4
LOADS = re.compile(r"""(?:src|href|data|action)\s*=\s*["']?\s*(?:https?:)?//|url\(\s*["']?\s*(?:https?:)?//|@import""")


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two segments of two frames, prepared."""
    folder = tmp_path_factory.mktemp("synthetic")
    count = ["--segments", "2", "--frames", "2", "--interval", "1", "--workers", "1"]
    assert make_synthetic.main(["--output", str(folder / "raw"), "--rig", "tiny", "--seed", "3", *count]) == 0
    command = ["--input", str(folder / "raw"), "--output", str(folder / "store"), "--workers", "1", "--verify"]
    assert prepare_waymo.main(command) == 0
    return folder / "store"


@pytest.fixture(scope="module")
def run(synthetic: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained and evaluated once."""
    torch.set_num_threads(1)  # the conftest's fixture comes later, and numba's threads have set torch's anew
    run = tmp_path_factory.mktemp("runs") / "run"
    settings = small_settings(f"training.steps={STEPS}", "training.map_every=2", data=synthetic)
    assert train.main(["tiny", "--output", str(run), "--device", "cpu", *settings]) == 0
    assert evaluate.main([str(run), "--device", "cpu"]) == 0
    return run


def test_the_store_holds_the_synthetic_frames(synthetic):
    store = Store.open(synthetic)
    assert len(store) == 4
    assert len({store.key(index)[0] for index in range(4)}) == 2
    assert all(len(store.frame(index).points) > 1000 and len(store.labels(index)) > 3 for index in range(4))


def test_the_run_folder_holds_the_whole_story(run, synthetic):
    settings = (f"training.steps={STEPS}", "training.map_every=2")
    assert load_config(run / "config.yaml") == small_config(*settings, data=synthetic)
    (start,) = json.loads((run / "provenance.json").read_text())
    assert (start["step"], start["seed"]) == (0, 0)
    assert {"time", "command", "commit", "python", "packages", "device", "cores", "threads"} <= start.keys()
    assert (run / "checkpoints" / "last").read_text() == f"step_{STEPS:08d}.pt"
    rows = read_metrics(run / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    names = {f"loss/{task}" for task in TASKS} | {f"fork/gradient_norm/{task}" for task in TASKS}
    names |= {"fork/cosine/classification/box", "fork/cosine/classification/orientation", "fork/cosine/box/orientation"}
    names |= {"fork/conflict_share", "time/step", "time/data", "memory/GB", "optimizer/learning_rate"}
    assert all(names <= row.keys() for row in rows)
    board = EventAccumulator(str(run / "tensorboard")).Reload()
    assert names <= set(board.Tags()["scalars"])
    assert [event.step for event in board.Scalars("loss/box")] == [row["step"] for row in rows]


def test_the_evaluation_holds_detections_metrics_and_report(run, synthetic):
    folder = run / "evaluation" / f"{STEPS:08d}"
    store = Store.open(synthetic)
    keys = sorted(store.key(index) for index in range(len(store)))
    detections = read_detections(folder / "detections.parquet")
    assert sorted(item.key for item in detections) == keys
    assert sum(len(item.boxes) for item in detections) > 20
    assert sorted(item.key for item in read_ground_truth(folder / "ground_truth.parquet")) == keys

    metrics = json.loads((folder / "metrics.json").read_text())
    assert {"schema_version", "breakdowns", "means", "provenance"} <= metrics.keys()
    kinds = ("VEHICLE", "PEDESTRIAN", "CYCLIST")
    rows = {f"OBJECT_TYPE_TYPE_{kind}_LEVEL_{level}" for kind in kinds for level in (1, 2)}
    assert rows <= metrics["breakdowns"].keys()
    assert all({"AP", "APH", "counts"} <= metrics["breakdowns"][row].keys() for row in rows)
    assert metrics["provenance"]["step"] == STEPS
    assert metrics["provenance"]["checkpoint"] == f"step_{STEPS:08d}.pt"
    assert metrics["provenance"]["frames"] == 4

    report = (folder / "report.html").read_text()
    assert report.count('src="data:image/') >= 4 + 3  # a bird's-eye view of each frame, and curves
    for title in ("Gradient norms at the fork", "Purity of the sign at the fork", "Where the tasks conflict"):
        assert title in report
    assert f"step {STEPS // 2 * 2}, over all samples and channels" in report  # the last map
    assert "Synthetic data.</b> Every segment was" in re.sub(r"\s+", " ", report)
    assert metrics["evaluated"]["synthetic_segments"] == metrics["evaluated"]["segments"] == 2
    assert metrics["evaluated"]["frames"] == 4
    assert {"config_sha256", "data_sha256", "commit", "seed"} <= metrics["provenance"].keys()
    shown = metrics["frames_shown"]
    for frame in (*shown["worst"], *shown["random"]):
        assert f"{frame['context_name']} · {frame['timestamp_micros']}" in report
    for words in (
        "Lidar returns used",
        "Labels left out for lack of lidar points",
        "Objects outside the model's range",
    ):
        assert words.replace("'", "&#39;") in report
    assert not LOADS.findall(report)


def test_the_search_for_loads_finds_them():
    for load in ('<script src="https://a/b.js">', "<link href='//cdn/x.css'>", "url(http://a)", "@import 'x'"):
        assert LOADS.search(load)


def test_evaluating_twice_gives_the_same(run, tmp_path):
    assert evaluate.main([str(run), "--output", str(tmp_path), "--device", "cpu"]) == 0
    first, second = (
        json.loads((folder / "metrics.json").read_text()) for folder in (run / "evaluation" / f"{STEPS:08d}", tmp_path)
    )
    for metrics in (first, second):
        for moody in ("time", "command", "threads"):
            metrics["provenance"].pop(moody)
    assert first == second


def test_the_report_names_the_run_that_was_given_as_a_dot(run, tmp_path, monkeypatch):
    monkeypatch.chdir(run)
    assert evaluate.main([".", "--output", str(tmp_path), "--device", "cpu"]) == 0
    assert f"<title>{run.name}, step {STEPS}</title>" in (tmp_path / "report.html").read_text()


def test_evaluating_with_other_settings_of_the_decoder(run, tmp_path):
    command = [str(run), "--output", str(tmp_path), "decode.score_threshold=1.0", "--device", "cpu"]
    assert evaluate.main(command) == 0
    assert sum(len(item.boxes) for item in read_detections(tmp_path / "detections.parquet")) == 0
    assert "decode" in (run / "config.yaml").read_text()
    assert load_config(run / "config.yaml").decode.score_threshold == 0.0


def test_the_trained_run_does_nothing_more(run, capsys):
    before = (run / "metrics.jsonl").read_bytes()
    config = load_config(run / "config.yaml")
    assert train.main([str(run / "config.yaml"), "--output", str(run), "--device", "cpu"]) == 0
    assert f"trained {STEPS} steps" in capsys.readouterr().out
    assert (run / "metrics.jsonl").read_bytes() == before
    assert load_config(run / "config.yaml") == config


def test_the_argoverse_files_take_the_same_way(shared, tmp_path):
    store = tmp_path / "store"
    source = ["--input", str(shared / "real" / "argoverse2"), "--output", str(store), "--workers", "1"]
    assert prepare_argoverse.main(source) == 0
    torch.set_num_threads(1)
    settings = small_settings("training.steps=2", data=store)
    assert train.main(["tiny", *settings, "--output", str(tmp_path / "run"), "--device", "cpu"]) == 0
    assert evaluate.main([str(tmp_path / "run"), "--device", "cpu"]) == 0
    metrics = json.loads((tmp_path / "run" / "evaluation" / "00000002" / "metrics.json").read_text())
    assert metrics["provenance"]["frames"] == 3
