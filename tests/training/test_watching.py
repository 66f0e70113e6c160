"""Traces and W&B, neither of which the training may feel."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from detection3d.config_file import load_config
from detection3d.errors import UserError
from detection3d.training.checkpoint import load_checkpoint
from detection3d.training.loop import train
from detection3d.training.profiling import parse_steps
from detection3d.training.start import Start
from tests.conftest import ROOT
from tests.small_run import environment, small_config, small_settings, tool
from tests.training.steps import CPU, differences

SIX = Path("checkpoints") / "step_00000006.pt"


@pytest.fixture(scope="module")
def plain(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("plain") / "run"
    train(small_config(data=store), run, CPU)
    return run


def test_a_trace_holds_the_steps_and_changes_nothing(tmp_path, store, plain, capsys):
    train(small_config(data=store), tmp_path, CPU, start=Start(profile=(2, 3)))
    path = tmp_path / "profile" / "steps_2_to_3_of_rank_0.json"
    assert f"a trace of 2 steps is in {path}" in capsys.readouterr().out
    events = json.loads(path.read_text())["traceEvents"]
    assert sum(event.get("name") == "Optimizer.step#AdamW.step" for event in events) == 2
    assert differences(load_checkpoint(tmp_path / SIX), load_checkpoint(plain / SIX)) == []


@pytest.mark.parametrize(("steps", "said"), [((5, 9), "a trace of 2 steps is in"), ((7, 9), "no trace was made")])
def test_a_run_that_ends_meanwhile_traces_what_there_was(tmp_path, store, capsys, steps, said):
    train(small_config(data=store), tmp_path, CPU, start=Start(profile=steps))
    assert said in capsys.readouterr().out
    assert (tmp_path / "profile").exists() == (steps[0] == 5)


@pytest.mark.parametrize("text", ["3", "0:2", "5:4", "a:b", "1:", ":2"])
def test_other_words_are_refused(text):
    with pytest.raises(UserError, match="write FIRST:LAST"):
        parse_steps(text)
    assert parse_steps("4:4") == (4, 4)


def test_a_missing_wandb_is_told(tmp_path, store, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"logging\.wandb is set, but wandb is not installed: pip install"):
        train(small_config("logging.wandb=project", data=store), tmp_path, CPU)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="wandb is not installed")
def test_wandb_takes_the_numbers_offline(tmp_path, store, plain):
    """The real package: a run that is stopped and goes on is one run there, and its bits are those without it."""
    run = tmp_path / "run"
    command = tool("train", "tiny", *small_settings(data=store), "--output", run, "--device", "cpu", "--wandb", "lidar")
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    variables = environment(WANDB_MODE="offline", PYTHONPATH=path)
    for _ in range(2):
        (run / SIX).unlink(missing_ok=True)
        done = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    assert load_config(run / "config.yaml").logging.wandb == "lidar"
    assert differences(load_checkpoint(run / SIX), load_checkpoint(plain / SIX)) == []
    identity = (run / "wandb_id").read_text()
    folders = sorted(path.name for path in (run / "wandb").glob("offline-run-*"))
    assert len(folders) == 2
    assert all(name.endswith(identity) for name in folders)
    content = b"".join(path.read_bytes() for path in (run / "wandb").glob("offline-run-*/*.wandb"))
    assert b"fork/conflict_share" in content
    assert b"time/forward" in content
