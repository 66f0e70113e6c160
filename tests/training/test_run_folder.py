import json
import os
from pathlib import Path

import pytest
import torch

from detection3d.config_file import dump_config, load_config
from detection3d.errors import DataError, UserError
from detection3d.evaluation import provenance
from detection3d.training.checkpoint import save_checkpoint
from detection3d.training.run_folder import add_provenance, describe_environment, open_run
from tests.small_run import small_config


def test_a_new_run_holds_its_config(tmp_path):
    config = small_config("seed=5")
    with open_run(tmp_path / "deep" / "run", config) as folder:
        assert load_config(folder.config) == config


def test_the_same_settings_go_on(tmp_path):
    for _ in range(2):
        with open_run(tmp_path, small_config("seed=5")) as folder:
            pass
    assert load_config(folder.config).seed == 5


def test_changed_settings_are_refused_and_listed(tmp_path):
    with open_run(tmp_path, small_config()) as folder:
        before = folder.config.read_bytes()
    changed = small_config("training.learning_rate=0.5", "multitask.method=sum", "classes.0.types=[SIGN]")
    with pytest.raises(UserError) as caught, open_run(tmp_path, changed):
        pass
    lines = str(caught.value).splitlines()
    assert lines[0] == f"{tmp_path} holds a run with other settings, so it can't go on:"
    assert "  training.learning_rate: 0.002 -> 0.5" in lines
    assert "  multitask.method.kind: graddrop -> sum" in lines
    assert "  classes.0.types.0: VEHICLE -> SIGN" in lines
    advice = "start a new run in another folder (--output), or use the same settings"
    assert lines[-1] == f"{advice}; it has no checkpoint yet, so deleting {tmp_path} costs no training"
    assert folder.config.read_bytes() == before
    save_checkpoint(folder.checkpoints, 1, {}, keep=1)
    with pytest.raises(UserError, match=r"or use the same settings$"), open_run(tmp_path, changed):
        pass


def test_an_exported_model_is_no_place_for_a_run(tmp_path):
    (tmp_path / "config.yaml").write_text(dump_config(small_config()))
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match="an exported model; choose another"), open_run(tmp_path, small_config()):
        pass


@pytest.mark.parametrize(
    "setting",
    [
        "data.workers=3",
        "data.validation=elsewhere",
        "training.log_every=7",
        "training.checkpoint_every=9",
        "training.keep_checkpoints=1",
        "decode.score_threshold=0.5",
    ],
)
def test_what_does_not_touch_the_steps_may_change(tmp_path, setting):
    with open_run(tmp_path, small_config()):
        pass
    with open_run(tmp_path, small_config(setting)) as folder:
        assert load_config(folder.config) == small_config(setting)


@pytest.mark.parametrize("setting", ["data.train=elsewhere", "training.steps=7", "training.ema_decay=0", "seed=1"])
def test_what_touches_the_steps_may_not(tmp_path, setting):
    with open_run(tmp_path, small_config()):
        pass
    with pytest.raises(UserError, match=setting.split("=")[0]), open_run(tmp_path, small_config(setting)):
        pass


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(UserError, match="not empty, and not a run of detection3d"), open_run(tmp_path, small_config()):
        pass
    assert os.listdir(tmp_path) == ["thesis.tex"]


def test_a_file_in_the_way(tmp_path):
    (tmp_path / "run").write_text("")
    refusal = pytest.raises(UserError, match="a file stands where the run's folder should be")
    with refusal, open_run(tmp_path / "run", small_config()):
        pass


def test_a_run_killed_at_its_very_start_can_start_again(tmp_path):
    (tmp_path / ".lock").write_text("")
    (tmp_path / ".config.yaml.4711.tmp").write_text("seed: ")
    with open_run(tmp_path, small_config()) as folder:
        assert sorted(path.name for path in folder.root.iterdir()) == [".lock", "config.yaml"]


def test_two_trainings_at_once_are_refused(tmp_path):
    refusal = pytest.raises(UserError, match="another process is training in it")
    with open_run(tmp_path, small_config()), refusal, open_run(tmp_path, small_config()):
        pass
    with open_run(tmp_path, small_config()):
        pass


def test_each_start_adds_its_provenance(tmp_path):
    config = small_config("seed=5")
    with open_run(tmp_path, config) as folder:
        for step in (0, 3):
            add_provenance(folder, config, torch.device("cpu"), step)
    starts = json.loads(folder.provenance.read_text())
    assert [(start["step"], start["seed"]) for start in starts] == [(0, 5), (3, 5)]
    assert starts[0]["packages"]["torch"].split("+")[0] == torch.__version__.split("+")[0]


def test_a_damaged_provenance_is_named(tmp_path):
    with open_run(tmp_path, small_config()) as folder:
        folder.provenance.write_text("{")
        with pytest.raises(DataError, match=r"provenance.json: not JSON .*; delete it to go on without"):
            add_provenance(folder, small_config(), torch.device("cpu"), 0)


def test_an_installed_package_has_no_commit(tmp_path, monkeypatch):
    """Even where it lies in a checkout of something else, such as a virtual environment in a project's folder."""
    os.system(f"git init -q {tmp_path}")
    installed = tmp_path / "site-packages" / "provenance.py"
    installed.parent.mkdir()
    installed.write_bytes(Path(provenance.__file__).read_bytes())
    monkeypatch.setattr(provenance, "__file__", str(installed))
    os.system(f"cd {tmp_path} && touch a && git add a && git -c user.name=a -c user.email=a@b commit -q -m a")
    assert describe_environment(torch.device("cpu"))["commit"] is None
