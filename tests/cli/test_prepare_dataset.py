"""One's own data set, from the example in the documentation to the store."""

import csv
import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from detection3d.cli import prepare_dataset, prepare_kitti
from detection3d.cli.run import run
from detection3d.data.store import Store
from detection3d.types.scene import Boxes, Frame, ObjectType
from tests.conftest import ROOT
from tests.data.made_scenes import make_drive

CATEGORIES = {ObjectType.VEHICLE: "car", ObjectType.PEDESTRIAN: "person", ObjectType.CYCLIST: "bike"}


@pytest.fixture
def example(tmp_path: Path) -> Path:
    """The example of docs/own_data.md, as it stands there."""
    text = (ROOT / "docs" / "own_data.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(code.splitlines()) <= 33
    (tmp_path / "my_data.py").write_text(code)
    return tmp_path / "my_data.py"


def labels_of(frame: Frame) -> Boxes:
    assert frame.labels is not None
    return frame.labels


def write_drive(folder: Path, frames: list[Frame], yaw_sign: float = 1.0) -> None:
    """Write a drive in the form that the example reads."""
    for part in ("points", "boxes", "poses"):
        (folder / part).mkdir(parents=True)
    for frame in frames:
        stamp, labels = str(frame.timestamp_micros), labels_of(frame)
        np.save(folder / "points" / f"{stamp}.npy", frame.points[:, :4] * (1, 1, 1, 255))
        np.savetxt(folder / "poses" / f"{stamp}.txt", frame.pose)
        with (folder / "boxes" / f"{stamp}.csv").open("w") as file:
            writer = csv.writer(file)
            writer.writerow(["category", "id", "x", "y", "z", "length", "width", "height", "yaw"])
            for box, kind, name in zip(labels.boxes.tolist(), labels.types.tolist(), labels.ids, strict=True):
                writer.writerow([CATEGORIES[ObjectType(kind)], name, *box[:6], yaw_sign * box[6]])


def command(example: Path, data: Path, *more: str) -> list[str]:
    return [f"{example}:recordings", "--input", str(data), "--workers", "1", *more]


def test_the_example_of_the_documentation(example: Path, tmp_path: Path, capfd) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    drives = {name: make_drive(name, 3, seed) for seed, name in enumerate(("monday", "tuesday"))}
    for name, frames in drives.items():
        write_drive(data / name, frames)
    assert run(prepare_dataset.main, command(example, data, "--check")) == 0
    assert "checked 2 recordings, 6 frames, 216 boxes: 0 errors, 1 suspicions" in (told := capfd.readouterr().out)
    assert "suspicion (velocity): velocities are all 0" in told  # the example's table has none
    assert not out.exists()
    assert run(prepare_dataset.main, command(example, data, "--output", str(out), "--verify")) == 0
    assert re.search(r"about 6 frames", capfd.readouterr().out)
    store = Store.open(out)
    assert [store.key(index)[0] for index in range(6)] == ["monday"] * 3 + ["tuesday"] * 3
    for index, frame in enumerate(frame for frames in drives.values() for frame in frames):
        stored = store.frame(index)
        assert stored.key == frame.key
        np.testing.assert_allclose(stored.points[:, :3], frame.points[:, :3], atol=2**-8)
        np.testing.assert_allclose(stored.points[:, 3], frame.points[:, 3], rtol=1e-3)
        np.testing.assert_array_equal(stored.pose, frame.pose)
        np.testing.assert_allclose(labels_of(stored).boxes, labels_of(frame).boxes, rtol=1e-6)
        for name in ("types", "ids", "num_points"):
            np.testing.assert_array_equal(getattr(labels_of(stored), name), getattr(labels_of(frame), name))

    # Run again, it has nothing to do; a companion that changes brings its recording anew.
    assert run(prepare_dataset.main, command(example, data, "--output", str(out))) == 0
    assert "nothing to do: all 2 sources" in capfd.readouterr().out
    os.utime(data / "tuesday" / "boxes" / f"{drives['tuesday'][1].timestamp_micros}.csv", (1, 1))
    assert run(prepare_dataset.main, command(example, data, "--output", str(out))) == 0
    assert "1 segments to prepare, 1 finished earlier" in capfd.readouterr().out
    write_drive(data / "wednesday", make_drive("wednesday", 1))
    assert run(prepare_dataset.main, command(example, data, "--output", str(out))) == 0
    assert "1 segments to prepare, 2 finished earlier" in capfd.readouterr().out


def test_every_other_frame_in_processes(example: Path, tmp_path: Path) -> None:
    """What the workers need is listed by them: a lambda can't be sent."""
    more = "[ScanRecording(each.name, each.scans, lambda scan: read(scan)) for each in recordings(folder)]"
    example.write_text(f"{example.read_text()}\n\ndef lambdas(folder):\n    return {more}\n")
    data, out = tmp_path / "data", tmp_path / "out"
    for name in ("monday", "tuesday"):
        write_drive(data / name, make_drive(name, 3))
    options = ["--input", str(data), "--output", str(out), "--workers", "2", "--every", "2"]
    assert run(prepare_dataset.main, [f"{example}:lambdas", *options]) == 0
    store = Store.open(out)
    stamps = [frame.timestamp_micros for frame in make_drive("monday", 3)][::2]
    assert [store.key(index) for index in range(4)] == [(n, t) for n in ("monday", "tuesday") for t in stamps]


def test_what_is_wrong_is_said_with_recording_and_frame(example: Path, tmp_path: Path, capfd) -> None:
    data = tmp_path / "data"
    frames = make_drive("monday", 6)
    write_drive(data / "monday", frames, yaw_sign=-1.0)
    table = data / "monday" / "boxes" / f"{frames[1].timestamp_micros}.csv"
    lines = table.read_text().splitlines()
    lines[1] = lines[1].replace("thing 0", "thing 2")
    table.write_text("\n".join(lines))
    assert run(prepare_dataset.main, command(example, data, "--check")) == 1
    told = capfd.readouterr()
    where = f"monday, frame 1 (timestamp {frames[1].timestamp_micros})"
    assert f"error (id): {where}: id 'thing 2' occurs 2 times; an id is one object's in a frame" in told.err
    assert f"error (track): {where}: object 'thing 2' is VEHICLE here and PEDESTRIAN in frame 0;" in told.err
    assert "suspicion (heading): headings are clockwise; use -stated\n    of " in told.out


def test_what_cannot_be_used_is_left_out(example: Path, tmp_path: Path, capfd) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    for name in ("monday", "tuesday"):
        write_drive(data / name, make_drive(name, 2))
    scan = sorted((data / "tuesday" / "points").glob("*.npy"))[1]
    np.save(scan, np.zeros((5, 4))[:, :2])
    assert run(prepare_dataset.main, command(example, data, "--output", str(out))) == 1
    told = capfd.readouterr().err
    assert f"tuesday: its reader failed: ValueError at {example}:" in told
    assert [store_key[0] for store_key in map(Store.open(out).key, range(2))] == ["monday"] * 2
    table = sorted((data / "monday" / "boxes").glob("*.csv"))[0]
    table.write_text(table.read_text().replace("person", "animal"))
    assert run(prepare_dataset.main, command(example, data, "--check")) == 1
    assert re.search(
        r"error \(unreadable\): monday: its reader failed: KeyError at .*: 'animal'", capfd.readouterr().err
    )


LISTINGS = {
    "raise KeyError('x')": "my.py:recordings failed: KeyError at .*my.py:4: 'x'",
    "return None": "my.py:recordings returned NoneType; return a list of recordings",
    "return []": "my.py:recordings found no recordings in .*; give the data set's folder",
    "return [folder]": "my.py:recordings returned a PosixPath without files, frames; return .*ScanRecording",
    "return [ScanRecording('a/b', [folder], print)]": "returned a recording named 'a/b'; it becomes a folder",
    "return [ScanRecording('a', [], print)]": "recording 'a' names no files",
    "import types; return [types.SimpleNamespace(name='a', files=None, frames=print)]": "'a': its files can't be used",
    "import types; return [types.SimpleNamespace(name='a', files='a.bin', frames=print)]": "it is the text 'a.bin'",
    "return [type('R', (), {'name': 'a', 'files': property(lambda self: 1 / 0), 'frames': print})()]": "R.files failed",
    "import types; return [types.SimpleNamespace(name='a', files=[folder], frames=lambda every: None)]": (
        r"frames\(1\) returned NoneType; return an iterator of frames"
    ),
    "return [ScanRecording('a', [folder], print)] * 2": "returned two recordings named 'a'; names are unique",
}


@pytest.mark.parametrize("body", LISTINGS)
def test_functions_that_cannot_be_used(tmp_path: Path, capfd, body: str) -> None:
    code = f"from detection3d.data.recording import ScanRecording\n\ndef recordings(folder):\n    {body}\n"
    (tmp_path / "my.py").write_text(code)
    assert run(prepare_dataset.main, command(tmp_path / "my.py", tmp_path, "--check")) == 1
    assert re.search(LISTINGS[body], capfd.readouterr().err)


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("my.py", "'.*my.py': give MODULE:FUNCTION or FILE.py:FUNCTION"),
        ("no.py:recordings", "no.py: there is no such file"),
        ("my.py:recording", "my.py has no function recording; it has recordings"),
        ("bad.py:recordings", r"bad.py can't be loaded: SyntaxError at .*bad.py:1: "),
    ],
)
def test_files_that_cannot_be_used(tmp_path: Path, capfd, reference: str, message: str) -> None:
    (tmp_path / "my.py").write_text("def recordings(folder):\n    return []\n")
    (tmp_path / "bad.py").write_text("def recordings(:\n")
    assert run(prepare_dataset.main, [f"{tmp_path}/{reference}", "--input", str(tmp_path), "--check"]) == 1
    assert re.search(message, capfd.readouterr().err)


@pytest.mark.parametrize("name", ["types", "random", "numpy", "queue"])
def test_a_file_may_be_named_as_a_module_is(example: Path, tmp_path: Path, name: str, monkeypatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    theirs = sys.modules.get(name)
    write_drive(tmp_path / "data" / "monday", make_drive("monday", 2, 0))
    own = example.rename(tmp_path / f"{name}.py")
    assert run(prepare_dataset.main, command(own, tmp_path / "data", "--check")) == 0
    assert sys.modules.get(name) is theirs


def test_modules(tmp_path: Path, capfd, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("my_module_of_recordings.py").write_text("def recordings(folder):\n    return []\n")
    options = ["--input", ".", "--check"]
    assert run(prepare_dataset.main, ["my_module_of_recordings:recordings", *options]) == 1
    assert "my_module_of_recordings:recordings found no recordings in ." in capfd.readouterr().err
    assert run(prepare_dataset.main, ["no_such_module:recordings", *options]) == 1
    assert "module no_such_module can't be imported (No module named" in capfd.readouterr().err
    assert run(prepare_dataset.main, ["my_module_of_recordings:recordings", "--input", "none", "--check"]) == 1
    assert "none: there is no such folder" in capfd.readouterr().err


def test_check_or_output(tmp_path: Path, capfd) -> None:
    for options in ([], ["--check", "--output", str(tmp_path)]):
        with pytest.raises(SystemExit):
            prepare_kitti.main(["--input", str(tmp_path), *options])
        assert "--check" in capfd.readouterr().err


def test_check_with_what_it_would_ignore(example: Path, tmp_path: Path, capfd) -> None:
    write_drive(tmp_path / "data" / "monday", make_drive("monday", 2, 0))
    for option, name in ((["--ray", "local"], "--ray"), (["--verify"], "--verify")):
        assert run(prepare_dataset.main, command(example, tmp_path / "data", "--check", *option)) == 1
        assert f"{name} can't be used with --check" in capfd.readouterr().err
