"""Evaluations on the way measure what `evaluate_run` measures, and leave the training as it is."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import distributed as dist

from detection3d.config_file import load_config
from detection3d.data.store import Store
from detection3d.errors import UserError
from detection3d.evaluation.files.objects import read_detections
from detection3d.model.norm import BatchNorm
from detection3d.training import periodic_evaluation
from detection3d.training.best import Best, note_best, read_best
from detection3d.training.checkpoint import find_checkpoint, list_checkpoints, load_checkpoint
from detection3d.training.evaluation import evaluate_run
from detection3d.training.loop import train
from detection3d.training.periodic_evaluation import spaced
from detection3d.training.recorder import read_metrics
from detection3d.training.state import build_detector
from detection3d.training.team import Team
from tests.rank_group import RankGroup
from tests.small_run import small_config, small_settings
from tests.training.steps import CPU, differences

EVERY = ("training.evaluate_every=2", "training.evaluate_frames=3", "training.steps=5", "training.ema_decay=0")


def last_of(run: Path) -> dict[str, object]:
    return load_checkpoint(run / "checkpoints" / "step_00000005.pt")


def test_training_does_not_feel_it(tmp_path, store, monkeypatch):
    """Without an average the trained weights themselves are evaluated, which is harder."""
    train(small_config("training.steps=5", "training.ema_decay=0", data=store), tmp_path / "plain", CPU)
    real = periodic_evaluation.write_evaluation

    def with_numba(*arguments):
        torch.set_num_threads(2)  # as numba's threads do where they start
        return real(*arguments)

    monkeypatch.setattr(periodic_evaluation, "write_evaluation", with_numba)
    train(small_config(*EVERY, "training.evaluate_every=4", data=store), tmp_path / "run", CPU)
    assert torch.get_num_threads() == 1
    assert differences(last_of(tmp_path / "run"), last_of(tmp_path / "plain")) == []
    rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 4, 5, 5]
    assert [row["step"] for row in rows if "evaluation/LEVEL_2/APH" in row] == [4, 5]
    assert "evaluation/VEHICLE/LEVEL_2/APH" in rows[-1]
    assert not any("SIGN" in key for key in rows[-1])  # labelled, but no class of the detector
    assert [path.name for path in sorted((tmp_path / "run" / "evaluation").iterdir())] == ["00000004", "00000005"]


def test_it_measures_what_the_tool_measures(tmp_path, store):
    config = small_config("training.evaluate_every=4", "training.steps=4", data=store)
    train(config, tmp_path / "run", CPU)
    result = evaluate_run(tmp_path / "run", config, find_checkpoint(tmp_path / "run", "best"), tmp_path / "again", CPU)
    ours = tmp_path / "run" / "evaluation" / "00000004"
    assert {path.name for path in ours.iterdir()} == {path.name for path in result.folder.iterdir()}
    assert (ours / "detections.parquet").read_bytes() == (result.folder / "detections.parquet").read_bytes()
    here, there = (json.loads((folder / "metrics.json").read_text()) for folder in (ours, result.folder))
    assert here["breakdowns"] == there["breakdowns"]
    assert here["means"] == there["means"]
    for key in ("step", "checkpoint", "frames", "data_sha256", "config_sha256"):
        assert here["provenance"][key] == there["provenance"][key]


def test_some_frames_are_evenly_spaced(tmp_path, store):
    assert list(spaced(10, 0)) == list(spaced(10, 10)) == list(spaced(10, 99)) == list(range(10))
    assert list(spaced(10, 5)) == [1, 3, 5, 7, 9]
    assert list(spaced(5, 3)) == [0, 2, 4]
    assert list(spaced(1000, 1)) == [500]
    train(small_config(*EVERY, "training.evaluate_every=4", "training.steps=4", data=store), tmp_path, CPU)
    folder, opened = tmp_path / "evaluation" / "00000004", Store.open(store)
    assert [item.key for item in read_detections(folder / "detections.parquet")] == [opened.key(i) for i in (0, 2, 4)]
    metrics = json.loads((folder / "metrics.json").read_text())
    assert (metrics["frames"], metrics["provenance"]["frames_of_data"]) == (3, 5)
    assert "3 of 5 frames, evenly spaced" in (folder / "report.html").read_text()


def measure_cheaply(monkeypatch: pytest.MonkeyPatch, values: dict[int, float], killed_at: int = 0) -> None:
    """Let evaluations have these values by step, without metrics and report; one of them is killed."""

    def write(*arguments):
        step = arguments[6]
        if step == killed_at:
            raise KeyboardInterrupt
        return SimpleNamespace(metrics=step)

    monkeypatch.setattr(periodic_evaluation, "write_evaluation", write)
    monkeypatch.setattr(periodic_evaluation, "_values", lambda step, types: {"evaluation/LEVEL_2/APH": values[step]})


def test_the_best_checkpoint_is_kept_beside_the_last(tmp_path, store, monkeypatch, capsys):
    config = small_config(*EVERY, "training.keep_checkpoints=1", data=store)
    measure_cheaply(monkeypatch, {2: 0.25, 4: 0.125, 5: 0.25})
    train(config, tmp_path, CPU)
    kept = [path.name for path in list_checkpoints(tmp_path / "checkpoints")]
    assert kept == ["step_00000002.pt", "step_00000005.pt"]
    best = read_best(tmp_path / "checkpoints")
    assert best is not None
    assert (best.step, best.value, best.metric, best.frames) == (2, 0.25, "LEVEL_2/APH", 3)
    assert find_checkpoint(tmp_path, "best").name == "step_00000002.pt"
    assert find_checkpoint(tmp_path).name == find_checkpoint(tmp_path, "last").name == "step_00000005.pt"
    assert find_checkpoint(tmp_path, "step_00000002.pt") == tmp_path / "checkpoints" / "step_00000002.pt"
    with pytest.raises(UserError, match="no such checkpoint; give last, best, or one of the files in"):
        find_checkpoint(tmp_path, "step_00000003.pt")
    assert capsys.readouterr().out.count("is the best so far") == 1


def test_a_run_that_ends_in_an_evaluation_does_it_again(tmp_path, store, monkeypatch):
    config = small_config(*EVERY, "training.keep_checkpoints=1", data=store)
    values = {2: 0.25, 4: 0.5, 5: 0.125}
    measure_cheaply(monkeypatch, values, killed_at=4)
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "run", CPU)
    assert find_checkpoint(tmp_path / "run").name == "step_00000003.pt"
    measure_cheaply(monkeypatch, values)
    train(config, tmp_path / "run", CPU)
    train(config, tmp_path / "straight", CPU)
    assert differences(last_of(tmp_path / "run"), last_of(tmp_path / "straight")) == []
    for name in ("run", "straight"):
        best = read_best(tmp_path / name / "checkpoints")
        assert best is not None
        assert (best.step, best.value) == (4, 0.5)
        rows = read_metrics(tmp_path / name / "metrics.jsonl")
        shown = {row["step"]: row["evaluation/LEVEL_2/APH"] for row in rows if "evaluation/LEVEL_2/APH" in row}
        assert shown == values


def test_values_of_other_data_are_not_compared(tmp_path):
    first = Best("step_00000002.pt", 2, "LEVEL_2/APH", 0.5, 10, "a")
    assert note_best(tmp_path, first)
    worse = Best("step_00000004.pt", 4, "LEVEL_2/APH", 0.25, 10, "a")
    assert not note_best(tmp_path, worse)
    assert note_best(tmp_path, Best("step_00000004.pt", 4, "LEVEL_2/APH", 0.25, 10, "b"))
    assert note_best(tmp_path, Best("step_00000003.pt", 3, "LEVEL_2/APH", 0.125, 10, "b")), "step 4 is done again"
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "best").rename(tmp_path / "checkpoints" / "best")
    with pytest.raises(UserError, match=r"best names step_00000003\.pt, which is not there"):
        find_checkpoint(tmp_path, "best")
    with pytest.raises(UserError, match="no best checkpoint, since nothing was evaluated"):
        find_checkpoint(tmp_path / "checkpoints", "best")


def test_without_validation_data_it_is_refused():
    with pytest.raises(UserError, match=r"training\.evaluate_every is 2, but data\.validation is not set"):
        load_config("tiny", [*small_settings(), "training.evaluate_every=2"])


def train_on_rank(rank: int, store: Path, run: Path, *settings: str) -> list[int]:
    team = Team(rank, 2, dist.new_group(backend="gloo"))
    train(small_config(*EVERY, "training.evaluate_every=5", *settings, data=store), run, CPU, team)
    return [row["step"] for row in read_metrics(run / "metrics.jsonl") if "evaluation/LEVEL_2/APH" in row]


def test_ranks_share_the_frames(store: Path, tmp_path: Path):
    with RankGroup(2) as group:
        assert group.run(train_on_rank, store, tmp_path) == [[5]] * 2
    folder, opened = tmp_path / "evaluation" / "00000005", Store.open(store)
    assert [item.key for item in read_detections(folder / "detections.parquet")] == [opened.key(i) for i in (0, 2, 4)]
    assert not list(tmp_path.rglob("of_rank_*"))
    result = evaluate_run(tmp_path, small_config(data=store), find_checkpoint(tmp_path), tmp_path / "again", CPU)
    alone = {item.key: item for item in read_detections(result.folder / "detections.parquet")}
    for item in read_detections(folder / "detections.parquet"):
        assert len(item.boxes) == len(alone[item.key].boxes) == 20
        np.testing.assert_allclose(item.scores, alone[item.key].scores, rtol=1e-4, atol=1e-6)


def test_statistics_of_the_checkpoint_are_evaluated_where_each_rank_has_its_own(store: Path, tmp_path: Path):
    settings = ("training.sync_batch_norm=false", "training.learning_rate=0.1")
    with RankGroup(2) as group:
        assert group.run(train_on_rank, store, tmp_path, *settings) == [[5]] * 2
    ours = read_detections(tmp_path / "evaluation" / "00000005" / "detections.parquet")
    result = evaluate_run(tmp_path, small_config(data=store), find_checkpoint(tmp_path), tmp_path / "again", CPU)
    alone = {item.key: item for item in read_detections(result.folder / "detections.parquet")}
    assert len(ours) == 3
    for item in ours:
        np.testing.assert_allclose(item.scores, alone[item.key].scores, rtol=1e-4, atol=1e-6)


def statistics_come_back(rank: int) -> list[float]:
    detector = build_detector(small_config(), CPU)
    norms = [module for module in detector.modules() if isinstance(module, BatchNorm)]
    for norm in norms:
        norm.running_mean.fill_(rank + 1)
    with periodic_evaluation._statistics_of_the_first(detector):
        during = [float(norm.running_mean.mean()) for norm in norms]
    return sorted({*during}) + sorted({float(norm.running_mean.mean()) for norm in norms})


def test_afterwards_each_rank_has_its_own_statistics():
    with RankGroup(2) as group:
        assert group.run(statistics_come_back) == [[1, 1], [1, 2]]
