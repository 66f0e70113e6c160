"""An exported model finds what the checkpoint finds, to the bit, and its card says where it comes from."""

import json
import re
from pathlib import Path

import pytest
import torch

from detection3d.cli import evaluate
from detection3d.cli import export as export_tool
from detection3d.config_file import load_config
from detection3d.data.store import Store
from detection3d.errors import DataError, UserError
from detection3d.evaluation.files.objects import read_detections
from detection3d.training.checkpoint import find_checkpoint
from detection3d.training.evaluated_data import data_hash
from detection3d.training.inference import load_detector, load_run_config
from detection3d.training.loop import train
from tests.small_run import small_config
from tests.training.steps import CPU, differences


@pytest.fixture(scope="module")
def run(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("exported") / "run"
    train(small_config("training.steps=4", data=store), run, CPU)
    return run


def test_it_finds_the_same_to_the_bit(run, tmp_path, store):
    model = tmp_path / "model"
    assert evaluate.main([str(run), "--device", "cpu"]) == 0
    assert export_tool.main([str(run), "--output", str(model)]) == 0
    assert sorted(path.name for path in model.iterdir()) == ["config.yaml", "model.safetensors", "model_card.md"]
    ours, step = load_detector(load_run_config(model, []), find_checkpoint(model), CPU)
    theirs, _ = load_detector(load_run_config(run, []), find_checkpoint(run), CPU)
    assert step == 4
    assert differences(ours.state_dict(), theirs.state_dict()) == []
    assert evaluate.main([str(model), "--device", "cpu"]) == 0
    found = [folder / "evaluation" / "00000004" for folder in (run, model)]
    assert len(read_detections(found[0] / "detections.parquet")[0].boxes) == 20
    assert len({(folder / "detections.parquet").read_bytes() for folder in found}) == 1
    metrics = [json.loads((folder / "metrics.json").read_text()) for folder in found]
    assert metrics[0]["breakdowns"] == metrics[1]["breakdowns"]
    card = (model / "model_card.md").read_text()
    assert "| mean LEVEL_2 |" in card
    assert "| VEHICLE_LEVEL_2 |" in card
    assert "| SIGN_LEVEL_2 |" not in card  # labelled in the data, but no class of the detector
    assert data_hash(Store.open(store)) in card
    assert "Waymo Open Dataset may be used under its licence alone" in card
    assert '"kind": "graddrop"' in card
    assert "averaged, from step_00000004.pt" in card
    assert re.search(
        r"- took \d+\.\d min in its steps, \d+\.\d samples a second; peak memory of the first rank [\d.]+ GB", card
    )


def test_the_card_says_what_is_not_known(run, tmp_path, capsys):
    early = "step_00000003.pt"
    assert export_tool.main([str(run), "--checkpoint", early, "--output", str(tmp_path / "model")]) == 0
    assert "the card has no metrics, since this step was not evaluated" in capsys.readouterr().out
    card = (tmp_path / "model" / "model_card.md").read_text()
    assert "Step 3 was not evaluated." in card
    assert load_config(tmp_path / "model" / "config.yaml") == load_config(run / "config.yaml")
    assert "torch " in card


def test_a_folder_of_something_else_is_left_alone(run, tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(UserError, match="not empty, and not an exported model"):
        export_tool.main([str(run), "--output", str(tmp_path)])
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    assert export_tool.main([str(run), "--output", str(tmp_path / "model")]) == 0
    assert export_tool.main([str(run), "--output", str(tmp_path / "model")]) == 0


def test_a_damaged_model_is_named(run, tmp_path):
    assert export_tool.main([str(run), "--output", str(tmp_path)]) == 0
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"model\.safetensors: not a model that tools/export\.py wrote"):
        load_detector(load_run_config(tmp_path, []), find_checkpoint(tmp_path), CPU)


def test_the_weights_are_of_the_step_that_is_named(run, tmp_path):
    assert export_tool.main([str(run), "--checkpoint", "step_00000003.pt", "--output", str(tmp_path)]) == 0
    ours, step = load_detector(load_run_config(tmp_path, []), find_checkpoint(tmp_path), CPU)
    assert step == 3
    last, _ = load_detector(load_run_config(run, []), find_checkpoint(run), CPU)
    assert not torch.equal(ours.shared.weight, last.shared.weight)
