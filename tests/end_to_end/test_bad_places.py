"""Where a run can't be written it ends with a line that says so, and what was written before is whole."""

import errno
import os
from pathlib import Path

import pytest

from detection3d import files
from detection3d.cli import train
from detection3d.cli.run import run
from detection3d.training.checkpoint import last_checkpoint
from tests.end_to_end.processes import final_state
from tests.small_run import small_settings
from tests.training.steps import differences


def train_there(store: Path, output: Path, *settings: str) -> int:
    return run(train.main, ["tiny", *small_settings(*settings, data=store), "--output", str(output), "--device", "cpu"])


def test_a_full_disk_at_a_checkpoint_leaves_the_one_before(tmp_path, store, monkeypatch, capsys):
    assert train_there(store, tmp_path / "straight") == 0
    real = files.os.fsync

    def full(descriptor: int) -> None:
        if "step_00000006" in os.readlink(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    place = tmp_path / "run" / "checkpoints"
    with monkeypatch.context() as patch:
        patch.setattr(files.os, "fsync", full)
        assert train_there(store, tmp_path / "run") == 1
    message = f"error: {place / 'step_00000006.pt'}: No space left on device; the disk is full; free some space and"
    assert message in capsys.readouterr().err
    assert last_checkpoint(place) == place / "step_00000003.pt"
    assert sorted(path.name for path in place.iterdir()) == ["last", "step_00000003.pt"]
    assert train_there(store, tmp_path / "run") == 0
    assert differences(final_state(tmp_path / "run"), final_state(tmp_path / "straight")) == []


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
@pytest.mark.parametrize("there", [False, True])
def test_a_folder_that_cannot_be_written_is_told_at_once(tmp_path, store, monkeypatch, capsys, number, there):
    output = tmp_path / "place" / "run"
    if there:
        assert train_there(store, output, "training.steps=1") == 0
        capsys.readouterr()
    before = sorted(output.rglob("*"))
    real_open, real_mkdir = os.open, Path.mkdir

    def refuse(path: object) -> None:
        if str(path).startswith(str(tmp_path / "place")):
            raise OSError(number, os.strerror(number), str(path))

    def open_for_writing(path, flags, *rest, **named):
        if flags & (os.O_WRONLY | os.O_RDWR):
            refuse(path)
        return real_open(path, flags, *rest, **named)

    def mkdir(path, *rest, **named):
        if not path.exists():
            refuse(path)
        real_mkdir(path, *rest, **named)

    monkeypatch.setattr(os, "open", open_for_writing)
    monkeypatch.setattr(Path, "mkdir", mkdir)
    assert train_there(store, output, "training.steps=1") == 1
    said, errors = capsys.readouterr()
    advice = "the file system is read-only; choose another folder" if number == errno.EROFS else "check the permissions"
    assert errors.startswith(f"error: {output}")
    assert errors.endswith(f"; {advice}\n")
    assert errors.count("\n") == 1
    assert "step 1" not in said, "before any step"
    assert sorted(output.rglob("*")) == before


def test_a_config_for_gpus_on_a_machine_without_says_what_to_do(tmp_path, store, capsys):
    settings = ("training.precision=bfloat16", "training.steps=1")
    assert train_there(store, tmp_path / "run", *settings) == 1
    errors = capsys.readouterr().err
    assert errors.startswith("error: training.precision=bfloat16 needs a CUDA device, found cpu")
    assert "add training.precision=float32 to train here" in errors
    assert not (tmp_path / "run").exists()
    assert train_there(store, tmp_path / "run", "model.backbone.backend=spconv", "training.steps=1") == 1
    assert "model.backbone.backend=spconv needs a CUDA device, found cpu; use auto or torch" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
