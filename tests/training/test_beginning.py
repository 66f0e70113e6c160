"""A run begins with other weights where they fit, keeps frozen parts, and goes on with changed settings if told to."""

import json
from pathlib import Path

import pytest
import torch

from detection3d.errors import DataError, UserError
from detection3d.training.checkpoint import load_checkpoint
from detection3d.training.export import export
from detection3d.training.initialize import Initialization, initialize
from detection3d.training.loop import train
from detection3d.training.optimizer import build_optimization
from detection3d.training.recorder import read_metrics
from detection3d.training.start import Start
from detection3d.training.state import build_state
from detection3d.training.step import train_step
from detection3d.training.weights import read_weights
from tests.small_run import small_config
from tests.training.steps import CPU, batches, differences, fresh_state


@pytest.fixture(scope="module")
def trained(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("trained") / "run"
    train(small_config("training.steps=3", data=store), run, CPU)
    return run


def without_fork(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value for name, value in tensors.items() if not name.startswith("fork.")}


def assert_same(first: Path, second: Path, name: str) -> None:
    ours, theirs = (load_checkpoint(run / "checkpoints" / name) for run in (first, second))
    assert differences(ours, theirs) == []


@pytest.mark.parametrize("kind", ["run", "checkpoint", "pointer", "exported"])
def test_all_weights_of_the_same_network_are_taken(trained, tmp_path, kind):
    checkpoint = trained / "checkpoints" / "step_00000003.pt"
    last = trained / "checkpoints" / "last"
    place = {"run": trained, "checkpoint": checkpoint, "pointer": last, "exported": tmp_path / "model"}[kind]
    if kind == "exported":
        export(trained, small_config(), checkpoint, place)
    state = fresh_state(small_config("seed=4"))
    found = initialize(state, place)
    averaged = without_fork(read_weights(checkpoint).tensors)
    assert state.average is not None
    for module in (state.model, state.average.module):
        assert differences(without_fork(module.state_dict()), averaged) == []
    assert set(found.loaded) == averaged.keys()
    assert (found.skipped, found.step, found.averaged) == ({}, 3, True)
    assert int(state.model.fork.step) == state.step == 0


def test_what_does_not_fit_is_left_and_listed(trained, tmp_path, store, capsys):
    config = small_config("model.head_channels=4", "training.steps=2", data=store)
    train(config, tmp_path, CPU, start=Start(initialize_from=trained))
    content = json.loads((tmp_path / "initialized.json").read_text())
    assert content["skipped"]["heads.box.output.weight"] == "shape (6, 8, 3, 3) there, (6, 4, 3, 3) here"
    assert all(name.startswith("heads.") for name in content["skipped"])
    assert "shared.weight" in content["loaded"]
    said = capsys.readouterr().out
    assert f"initialised from {trained / 'checkpoints' / 'step_00000003.pt'} (step 3, averaged weights)" in said
    assert "  not taken: heads.box.output.weight: shape (6, 8, 3, 3) there, (6, 4, 3, 3) here" in said


def test_names_on_one_side_alone_are_listed(trained):
    state = fresh_state(small_config("model.backbone.blocks=[0,0,0,0]"))
    assert "this network has none of that name" in initialize(state, trained).skipped.values()
    more = small_config("model.neck={layers: [2], strides: [1], channels: [8], upsampled_channels: [8]}")
    assert "not in the file; it keeps its first value" in initialize(fresh_state(more), trained).skipped.values()


def test_another_network_is_told_in_a_few_lines():
    skipped = {f"backbone.{index}": "this network has none of that name" for index in range(100)}
    lines = Initialization("a.pt", 1, averaged=True, loaded=("a",), skipped=skipped).describe().splitlines()
    assert len(lines) == 14
    assert lines[-1] == "  and 88 more not taken; initialized.json in the run's folder has them all"


def test_nothing_that_fits_is_an_error(trained):
    config = small_config(
        "model.backbone={channels: [5,5,5,5], blocks: [0,1,0,0], out_channels: 5}",
        "model.neck={layers: [1], strides: [1], channels: [5], upsampled_channels: [5]}",
        "model.shared_channels=5",
        "model.head_channels=5",
        "classes=[{name: a, types: [VEHICLE], nms_iou: 0.2}]",
        "multitask.method=sum",
    )
    state = fresh_state(config)
    for weights in (state.model.heads["box"].output, state.model.heads["orientation"].output):
        weights.bias = None  # the one thing that fits any network
    with pytest.raises(UserError, match=r"none of its \d+ tensors fits the weights of this network \(.*shape"):
        initialize(state, trained)


def test_a_place_without_weights_is_named(tmp_path):
    state = fresh_state(small_config())
    with pytest.raises(UserError, match="no such checkpoint or folder"):
        initialize(state, tmp_path / "nowhere")
    with pytest.raises(UserError, match="no checkpoint in"):
        initialize(state, tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"hello")
    with pytest.raises(DataError, match=r"not a model that tools/export\.py wrote"):
        initialize(state, tmp_path)


def test_a_resumed_run_is_not_initialised_again(trained, tmp_path, store, capsys):
    start = Start(initialize_from=trained)
    config = small_config("training.steps=4", "training.checkpoint_every=2", data=store)
    train(config, tmp_path / "straight", CPU, start=start)
    plain = small_config("training.steps=4", "training.checkpoint_every=2", data=store)
    train(config, tmp_path / "run", CPU, start=start)
    (tmp_path / "run" / "checkpoints" / "step_00000004.pt").unlink()
    capsys.readouterr()
    train(plain, tmp_path / "run", CPU, start=start)
    assert "--initialize-from is for new runs and not used: this one goes on from" in capsys.readouterr().out
    assert_same(tmp_path / "run", tmp_path / "straight", "step_00000004.pt")


def test_forgetting_it_before_the_first_checkpoint_is_told(trained, tmp_path, store):
    config = small_config("training.steps=1", data=store)
    train(config, tmp_path, CPU, start=Start(initialize_from=trained))
    for path in (tmp_path / "checkpoints").iterdir():
        path.unlink()
    with pytest.raises(UserError, match=r"the run began with the weights of .*; give --initialize-from again"):
        train(config, tmp_path, CPU)


@pytest.mark.parametrize("names", ["[backbone, neck]", "[heads.box, shared_norm]"])
def test_frozen_parts_stay_to_the_bit(store, names):
    config = small_config(f"training.freeze={names}", "training.weight_decay=0.5")
    state = fresh_state(config)
    assert state.average is not None
    before = {name: value.clone() for name, value in state.model.state_dict().items()}
    for batch in batches(config, store, 3):
        train_step(state, batch, config)
    changed = [name.lstrip("/") for name in differences(state.model.state_dict(), before)]
    averaged = [name.lstrip("/") for name in differences(state.average.module.state_dict(), before)]
    frozen = tuple(f"{name}." for name in config.training.freeze)
    assert not [name for name in {*changed, *averaged} if name.startswith(frozen)]
    for name, _ in state.model.named_parameters():
        assert (name in changed) != name.startswith(frozen), name
    telemetry = state.fork.read_telemetry()
    assert telemetry is not None, "gradients still meet at the fork"
    assert (telemetry.gradient_norm > 0).all()


def test_a_frozen_module_of_another_name_is_refused():
    with pytest.raises(UserError, match="the detector has no module 'bakbone'; did you mean 'backbone'"):
        fresh_state(small_config("training.freeze=[bakbone]"))
    with pytest.raises(UserError, match="no module 'xyz'; parts are voxelizer, backbone, neck, shared"):
        fresh_state(small_config("training.freeze=[xyz]"))
    with pytest.raises(UserError, match="the fork is no layer"):
        fresh_state(small_config("training.freeze=[fork]"))
    everything = "[backbone, neck, shared, shared_norm, heads]"
    with pytest.raises(UserError, match="leaves nothing to train"):
        fresh_state(small_config(f"training.freeze={everything}", "multitask.method=sum"))


def test_a_method_without_effect_is_refused(store):
    settings = "training.freeze=[backbone, neck, shared, shared_norm]"
    message = r"multitask\.method=gradient_penalty would do nothing; set multitask\.method=sum"
    with pytest.raises(UserError, match=message):
        fresh_state(small_config(settings, "multitask.method=gradient_penalty"))
    config = small_config(settings, "multitask.method=sum")
    state = fresh_state(config)
    (batch,) = batches(config, store, 1)
    assert not train_step(state, batch, config).left_out
    assert state.fork.read_telemetry() is None


def test_a_run_tells_that_random_weights_are_frozen(tmp_path, store, capsys):
    config = small_config("training.freeze=[backbone]", "training.steps=1", data=store)
    train(config, tmp_path, CPU)
    assert "M weights; they are random, since the run begins without --initialize-from" in capsys.readouterr().out


CHANGES = ("training.steps=8", "training.learning_rate=0.004", "training.weight_decay=0.1", "training.clip_norm=1")


def test_allowed_changes_take_hold_and_are_noted(tmp_path, store, capsys):
    before, after = small_config("training.steps=4", data=store), small_config(*CHANGES, data=store)
    train(before, tmp_path, CPU)
    with pytest.raises(UserError) as caught:
        train(after, tmp_path, CPU)
    listed = [line.strip() for line in str(caught.value).splitlines()[1:-1]]
    assert listed == [
        "training.clip_norm: 35.0 -> 1.0",
        "training.learning_rate: 0.002 -> 0.004",
        "training.steps: 4 -> 8",
        "training.weight_decay: 0.01 -> 0.1",
    ]
    assert "--allow-changes goes on with the new ones" in str(caught.value)
    train(after, tmp_path, CPU, start=Start(allow_changes=True))
    assert "goes on with changed settings (--allow-changes):\n  training.clip_norm" in capsys.readouterr().out
    starts = json.loads((tmp_path / "provenance.json").read_text())
    assert ["changes" in start for start in starts] == [False, True]
    assert (starts[1]["step"], starts[1]["changes"]) == (4, listed)
    rates = [row["optimizer/learning_rate"] for row in read_metrics(tmp_path / "metrics.jsonl")]
    assert len(rates) == 8
    schedule = build_optimization(fresh_state(after).model, after.training)
    wanted = []
    for _ in range(8):
        wanted.append(schedule.schedule.get_last_lr()[0])
        schedule.optimizer.step()
        schedule.schedule.step()
    assert rates[4:] == pytest.approx(wanted[4:], rel=1e-12)
    saved = load_checkpoint(tmp_path / "checkpoints" / "step_00000008.pt")
    assert [group["weight_decay"] for group in saved["optimizer"]["param_groups"]] == [0.1, 0.0]


def test_fewer_steps_than_are_done_are_refused(tmp_path, store):
    train(small_config("training.steps=3", data=store), tmp_path, CPU)
    before = (tmp_path / "config.yaml").read_text()
    with pytest.raises(UserError, match=r"is at step 3, beyond training.steps=2; give more"):
        train(small_config("training.steps=2", data=store), tmp_path, CPU, start=Start(allow_changes=True))
    assert (tmp_path / "config.yaml").read_text() == before


def test_a_kill_after_allowed_changes_loses_none_of_them(tmp_path, store, monkeypatch):
    before, after = small_config("training.steps=4", data=store), small_config(*CHANGES, data=store)
    for name in ("straight", "killed"):
        train(before, tmp_path / name, CPU)
    train(after, tmp_path / "straight", CPU, start=Start(allow_changes=True))
    with monkeypatch.context() as patch:
        patch.setattr("detection3d.training.loop.train_step", lambda *_: exec("raise KeyboardInterrupt"))
        with pytest.raises(KeyboardInterrupt):
            train(after, tmp_path / "killed", CPU, start=Start(allow_changes=True))
    train(after, tmp_path / "killed", CPU)
    assert_same(tmp_path / "killed", tmp_path / "straight", "step_00000008.pt")


def test_a_change_of_the_network_is_never_allowed(tmp_path, store):
    config = small_config("training.steps=1", data=store)
    train(config, tmp_path, CPU)
    written = (tmp_path / "config.yaml").read_bytes()
    for setting in ("model.head_channels=4", "training.freeze=[backbone]"):
        other = small_config("training.steps=1", setting, data=store)
        with pytest.raises(UserError, match="holds a run with other settings") as caught:
            train(other, tmp_path, CPU, start=Start(allow_changes=True))
        assert "--allow-changes" not in str(caught.value)
    uncertain = small_config("training.steps=1", "multitask.method=uncertainty", data=store)
    with pytest.raises(DataError, match="is not of this run's network and settings"):
        train(uncertain, tmp_path, CPU, start=Start(allow_changes=True))
    assert (tmp_path / "config.yaml").read_bytes() == written
    assert build_state(config, CPU).step == 0
