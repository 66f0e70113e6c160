"""A crash, a full disk or a damaged file must never cost the checkpoint before."""

import errno
import os
import pickle
from pathlib import Path

import pytest
import torch

from detection3d import files
from detection3d.errors import DataError, UserError
from detection3d.training.checkpoint import (
    find_checkpoint,
    fitting,
    last_checkpoint,
    list_checkpoints,
    load_checkpoint,
    save_checkpoint,
)


def save(folder: Path, *steps: int, keep: int = 10) -> list[Path]:
    return [save_checkpoint(folder, step, {"weights": torch.arange(1000.0) + step}, keep) for step in steps]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_what_is_saved_is_loaded(tmp_path):
    state = {
        "model": {"a": torch.randn(3, 4), "step": torch.tensor(7)},
        "average": None,
        "rates": [0.1, 2],
        "name": "x",
    }
    path = save_checkpoint(tmp_path / "new" / "checkpoints", 7, state, keep=1)
    loaded = load_checkpoint(path)
    assert loaded["step"] == 7
    assert torch.equal(loaded["model"]["a"], state["model"]["a"])
    assert torch.equal(loaded["model"]["step"], state["model"]["step"])
    assert (loaded["average"], loaded["rates"], loaded["name"]) == (None, [0.1, 2], "x")
    assert (path.name, (path.parent / "last").read_text()) == ("step_00000007.pt", "step_00000007.pt")


def test_keeps_the_newest(tmp_path):
    save(tmp_path, 2, 4, 12, 100, keep=2)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step_00000012.pt", "step_00000100.pt"]
    assert last_checkpoint(tmp_path) == tmp_path / "step_00000100.pt"


def test_never_removes_the_one_just_written(tmp_path):
    save(tmp_path, 4, 6, 8)
    (tmp_path / "last").write_text("step_00000004.pt")  # as if a crash had come between the file and its pointer
    (path,) = save(tmp_path, 5, keep=1)
    assert last_checkpoint(tmp_path) == path
    assert path.is_file()


@pytest.mark.parametrize("failing", ["write", "fsync", "replace"])
def test_a_full_disk_leaves_the_earlier_one_and_no_rest(tmp_path, monkeypatch, failing):
    (earlier,) = save(tmp_path, 3)
    before = contents(tmp_path)

    def full(*_: object, **__: object) -> None:
        assert any(path.name.endswith(".tmp") for path in tmp_path.iterdir())
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if failing == "write":
        monkeypatch.setattr(Path, "open", _half_open(Path.open))
    elif failing == "fsync":
        monkeypatch.setattr(files.os, "fsync", full)
    else:
        monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space left on device") as caught:
        save(tmp_path, 6, keep=1)
    assert caught.value.filename == str(tmp_path / "step_00000006.pt")
    monkeypatch.undo()
    assert contents(tmp_path) == before
    assert last_checkpoint(tmp_path) == earlier
    assert load_checkpoint(earlier)["step"] == 3


def _half_open(real):
    """`Path.open` whose files take half of what is written and then find the disk full."""

    class Half:
        def __init__(self, file):
            self.file = file

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def write(self, content):
            self.file.write(content[: len(content) // 2])
            self.file.flush()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    return lambda path, mode="r", **options: Half(real(path, mode, **options)) if "w" in mode else real(path, mode)


def test_a_crash_between_the_file_and_its_pointer_loses_nothing(tmp_path, monkeypatch):
    earlier, later = save(tmp_path, 3, 6)
    (tmp_path / "last").write_text(earlier.name)
    assert last_checkpoint(tmp_path) == earlier
    (tmp_path / "last").write_text("step_00000099.pt")
    assert last_checkpoint(tmp_path) == later
    (tmp_path / "last").write_bytes(b"\xff\x00")
    assert last_checkpoint(tmp_path) == later
    (tmp_path / "last").unlink()
    assert last_checkpoint(tmp_path) == later


def test_rests_of_a_killed_process_go_with_the_next_checkpoint(tmp_path):
    save(tmp_path, 3)
    (tmp_path / ".step_00000006.pt.4711.tmp").write_bytes(b"half")
    assert last_checkpoint(tmp_path) == tmp_path / "step_00000003.pt"
    save(tmp_path, 6)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last", "step_00000003.pt", "step_00000006.pt"]


def test_other_files_are_no_checkpoints(tmp_path):
    for name in ("step_1.pt", "step_00000001.pt.bak", "best.pt"):
        (tmp_path / name).write_bytes(b"")
    assert list_checkpoints(tmp_path) == []
    assert last_checkpoint(tmp_path) is None
    assert last_checkpoint(tmp_path / "nowhere") is None


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda content: content[: len(content) // 2], "not a checkpoint, or cut off"),
        (lambda content: content[:-1], "not a checkpoint, or cut off"),
        (lambda content: b"", "not a checkpoint, or cut off"),
        (lambda content: b"hello", "not a checkpoint, or cut off"),
        (lambda content: content[:2000] + bytes([content[2000] ^ 1]) + content[2001:], "does not match its checksum"),
    ],
)
def test_a_damaged_one_is_refused_with_a_way_out(tmp_path, damage, reason):
    _, path = save(tmp_path, 3, 6)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=reason) as caught:
        load_checkpoint(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "delete it to use the one before" in str(caught.value)
    path.unlink()
    assert last_checkpoint(tmp_path) == tmp_path / "step_00000003.pt"


@pytest.mark.parametrize("bit", [0x01, 0x08, 0x80])
def test_no_flipped_bit_ends_in_a_traceback(tmp_path, bit):
    path = save_checkpoint(tmp_path, 3, {"weights": torch.arange(4.0)}, keep=1)
    content = path.read_bytes()
    refused = 0
    for place in range(len(content)):
        path.write_bytes(content[:place] + bytes([content[place] ^ bit]) + content[place + 1 :])
        try:
            loaded = load_checkpoint(path)
        except DataError:
            refused += 1
        else:  # a byte without a meaning, such as a file's date
            assert loaded["step"] == 3
            assert torch.equal(loaded["weights"], torch.arange(4.0)), f"byte {place}"
    assert refused > len(content) // 4


class Malice:
    def __reduce__(self):
        return os.mkdir, ("must-not-exist",)


def test_a_checkpoint_runs_no_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"schema": 1, "step": 1, "model": Malice()}, "step_00000001.pt")
    with pytest.raises(DataError, match="not a checkpoint of detection3d"):
        load_checkpoint(Path("step_00000001.pt"))
    Path("pickled.pt").write_bytes(pickle.dumps(Malice()))
    with pytest.raises(DataError, match="not a checkpoint"):
        load_checkpoint(Path("pickled.pt"))
    assert not Path("must-not-exist").exists()


@pytest.mark.parametrize("content", [{"schema": 2, "step": 1}, {"step": 1}, [1, 2]])
def test_another_version_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(DataError, match="not a checkpoint of this version"):
        load_checkpoint(tmp_path / "a.pt")


def test_finding_one_says_what_is_missing(tmp_path):
    with pytest.raises(UserError, match="no such run folder"):
        find_checkpoint(tmp_path / "nowhere")
    with pytest.raises(UserError, match="no checkpoint in"):
        find_checkpoint(tmp_path)
    (path,) = save(tmp_path / "checkpoints", 1)
    assert find_checkpoint(tmp_path) == path
    assert find_checkpoint(tmp_path, str(tmp_path / "checkpoints" / "last")) == path  # the pointer, by its path


def test_a_file_of_something_else_is_not_to_be_deleted(tmp_path):
    torch.save({"model_state": {}}, tmp_path / "checkpoint_epoch_80.pth")
    with pytest.raises(DataError, match=r"give one that tools/train.py wrote$"):
        load_checkpoint(tmp_path / "checkpoint_epoch_80.pth")


def test_a_full_device_is_not_taken_for_a_wrong_checkpoint(tmp_path):
    with pytest.raises(torch.OutOfMemoryError), fitting(tmp_path / "a", "{reason}"):
        raise torch.OutOfMemoryError("CUDA out of memory")
    with pytest.raises(DataError, match="last words; delete it"), fitting(tmp_path / "a", "{reason}; delete it"):
        raise RuntimeError("many\nlines\n\tlast words\n")
