import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from detection3d.cli import prepare_argoverse, prepare_waymo
from detection3d.cli.run import run
from detection3d.data import store_manifest, store_writer
from detection3d.data.preparation import Source, prepare
from detection3d.data.preparation_estimate import estimate
from detection3d.data.store import SegmentRecord, Store, StoreSettings, verify
from detection3d.data.waymo import read_segment
from detection3d.errors import DataError, UserError
from tests.conftest import ROOT
from tests.data.made_frames import read_recipe, write_recipe
from tests.small_run import group_ends


def recipes(folder: Path, count: int = 3, **recipe: object) -> list[Source]:
    folder.mkdir(exist_ok=True)
    return [write_recipe(folder / f"s{number}.json", **recipe) for number in range(count)]


def contents(root: Path) -> dict[str, bytes]:
    """Everything that belongs to the store; manifests of the same segments are the same. A lock names its process."""
    files = (path for path in root.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


def test_prepares_every_source_and_does_nothing_the_second_time(tmp_path):
    sources = recipes(tmp_path / "in")
    seen = []
    outcome = prepare(sources, tmp_path / "out", report=lambda progress, result: seen.append((progress, result)))
    assert (len(outcome.prepared), outcome.skipped, outcome.left_out) == (3, 0, ())
    assert [(progress.done, progress.total, progress.frames) for progress, _ in seen] == [
        (1, 3, 3),
        (2, 3, 6),
        (3, 3, 9),
    ]
    store = Store.open(tmp_path / "out")
    assert [store.key(index) for index in range(9)] == [(f"s{s}", 1000 + f) for s in range(3) for f in range(3)]
    assert verify(tmp_path / "out") == []

    before = contents(tmp_path / "out")
    modified = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "segments").rglob("*")}
    again = prepare(sources, tmp_path / "out")
    assert (len(again.prepared), again.skipped) == (0, 3)
    assert contents(tmp_path / "out") == before
    assert modified == {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "segments").rglob("*")}


def test_a_changed_source_is_prepared_again_and_the_others_are_not(tmp_path):
    sources = recipes(tmp_path / "in")
    prepare(sources, tmp_path / "out")
    write_recipe(sources[1].path, frames=5)
    outcome = prepare(sources, tmp_path / "out")
    assert [record.context_name for record in outcome.prepared] == ["s1"]
    assert len(Store.open(tmp_path / "out")) == 3 + 5 + 3
    assert verify(tmp_path / "out") == []


def test_a_cut_segment_is_prepared_again(tmp_path):
    sources = recipes(tmp_path / "in")
    prepare(sources, tmp_path / "out")
    os.truncate(tmp_path / "out" / "segments" / "s2" / "points.bin", 100)
    assert [record.context_name for record in prepare(sources, tmp_path / "out").prepared] == ["s2"]
    assert verify(tmp_path / "out") == []


def test_goes_on_with_the_rest_and_lists_what_it_left_out(tmp_path):
    sources = recipes(tmp_path / "in", 6)
    write_recipe(sources[0].path, fail_at=2)
    write_recipe(sources[1].path, crash_at=0)
    write_recipe(sources[2].path, points=0)
    write_recipe(sources[3].path, frames=0)
    write_recipe(sources[4].path, context_name="s5")
    outcome = prepare(list(reversed(sources)), tmp_path / "out")
    reasons = [(entry.name, entry.record, entry.reason) for entry in outcome.left_out]
    assert reasons[0] == ("s0.json", 2, "the record's checksum is wrong")
    assert reasons[1][2].startswith("unexpected KeyError at made_frames.py:")
    assert reasons[2][2].startswith("no lidar points in any of its 3 frames")
    assert reasons[3][2] == "it holds no frames"
    assert reasons[4][0] == "s4.json"
    assert "segment 's5' is in the store already" in reasons[4][2]
    assert len(outcome.prepared) == 1

    store = Store.open(tmp_path / "out")
    assert {store.key(index)[0] for index in range(len(store))} == {"s5"}
    assert sorted(path.name for path in (tmp_path / "out" / "segments").iterdir()) == ["s5"]
    mended = [write_recipe(source.path) for source in sources]
    assert prepare(mended, tmp_path / "out").manifest.left_out == ()
    assert len(Store.open(tmp_path / "out")) == 18


def test_a_missing_source_is_left_out(tmp_path):
    source = Source("gone", tmp_path / "gone", read_recipe)
    (entry,) = prepare([source], tmp_path / "out").left_out
    assert entry.reason.startswith("can't be read")


def test_other_settings_need_another_folder(tmp_path):
    sources = recipes(tmp_path / "in", 1)
    prepare(sources, tmp_path / "out")
    before = contents(tmp_path / "out")
    with pytest.raises(
        UserError, match="segment s0 was prepared with --returns 1,2 --every 1, now asked for: --returns 1 --"
    ):
        prepare(sources, tmp_path / "out", settings=StoreSettings(returns=(1,)))
    assert contents(tmp_path / "out") == before


def test_two_preparations_at_once_are_refused(tmp_path):
    first, second = recipes(tmp_path / "in", 2)
    refused = []

    def prepare_another(progress, result):
        with pytest.raises(UserError, match="another preparation is writing into it") as caught:
            prepare([second], tmp_path / "out")
        refused.append(caught.value)

    prepare([first], tmp_path / "out", report=prepare_another)
    assert len(refused) == 1
    assert len(prepare([second], tmp_path / "out").prepared) == 1


def test_the_output_is_a_file(tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(UserError, match="a file stands where the output folder should be"):
        prepare(recipes(tmp_path / "in", 1), tmp_path / "out")


def test_a_full_disk_stops_it_and_earlier_results_stay(tmp_path, monkeypatch):
    sources = recipes(tmp_path / "in")
    prepare(sources[:1], tmp_path / "out")
    before = contents(tmp_path / "out")

    def full(self, content):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(store_writer.SegmentWriter, "_append", full)
        with pytest.raises(OSError, match="No space left on device") as caught:
            prepare(sources, tmp_path / "out")
    assert caught.value.filename == str(tmp_path / "out")
    after = contents(tmp_path / "out")
    after.pop("unfinished.json")
    assert after == before
    assert len(Store.open(tmp_path / "out")) == 3
    prepare(sources, tmp_path / "out")
    assert len(Store.open(tmp_path / "out")) == 9


def test_an_interrupted_input_is_not_forgotten_by_a_run_over_another(tmp_path, monkeypatch):
    first, second = recipes(tmp_path / "a", 2)
    monkeypatch.setattr(store_writer.SegmentWriter, "_publish", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        prepare([first], tmp_path / "out")
    monkeypatch.undo()
    outcome = prepare([second], tmp_path / "out")
    assert [(entry.name, entry.reason) for entry in outcome.manifest.left_out] == [
        ("s0.json", "its preparation was interrupted; run it again")
    ]
    assert prepare([first], tmp_path / "out").manifest.left_out == ()


def test_a_store_whose_changed_source_was_interrupted_asks_for_no_deletion(tmp_path, monkeypatch):
    sources = recipes(tmp_path / "in", 2)
    prepare(sources, tmp_path / "out")
    write_recipe(sources[0].path, frames=5)

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(store_manifest, "write_manifest", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepare(sources, tmp_path / "out")
    monkeypatch.undo()
    with pytest.raises(DataError, match="the manifest says") as caught:
        Store.open(tmp_path / "out")
    assert "delete" not in str(caught.value)
    assert "run the preparation again" in str(caught.value)
    assert prepare(sources, tmp_path / "out").skipped == 2
    assert len(Store.open(tmp_path / "out")) == 5 + 3


@pytest.mark.parametrize("content", ["", '{"schema_version": 1}'])
@pytest.mark.parametrize("record", ["manifest.json", "unfinished.json", "segments/s0/segment.json"])
def test_a_damaged_record_says_what_to_delete_and_that_helps(tmp_path, record, content):
    sources = recipes(tmp_path / "in", 2)
    prepare(sources, tmp_path / "out")
    before = contents(tmp_path / "out")
    (tmp_path / "out" / record).write_text(content)
    with pytest.raises(DataError) as caught:
        prepare(sources, tmp_path / "out")
    (advised,) = re.findall(r"delete (\S+) and run the preparation again", str(caught.value))
    shutil.rmtree(advised) if Path(advised).is_dir() else Path(advised).unlink()
    prepare(sources, tmp_path / "out")
    assert contents(tmp_path / "out") == before


def test_processes_write_the_same_store(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT)  # spawned processes import the reader by its name
    sources = recipes(tmp_path / "in", 4)
    write_recipe(sources[2].path, fail_at=1)
    alone, together = (prepare(sources, tmp_path / str(workers), workers=workers) for workers in (1, 2))
    assert together.left_out == alone.left_out
    assert contents(tmp_path / "2") == contents(tmp_path / "1")


KILLED = """
import sys
from pathlib import Path
from detection3d.data.preparation import prepare
from tests.data.made_frames import Source, read_recipe

if __name__ == "__main__":
    files = sorted(Path(sys.argv[1]).iterdir())
    sources = [Source(path.name, path, read_recipe) for path in files]
    say_done = lambda progress, result: print("done", flush=True)
    prepare(sources, Path(sys.argv[2]), workers=int(sys.argv[3]), report=say_done)
"""


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_after_kill_9_a_second_run_completes_the_store(tmp_path, workers, monkeypatch):
    sources = recipes(tmp_path / "in", 4, frames=4, pause=0.05)
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    command = [sys.executable, script, tmp_path / "in", tmp_path / "out", str(workers)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, start_new_session=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"done\n"
        time.sleep(0.12)  # into the next segment, past its first frame
        process.send_signal(signal.SIGKILL)
    left = sorted(path.name for path in (tmp_path / "out" / "segments").iterdir())
    assert any(name.startswith(".") for name in left)
    assert 1 <= len([name for name in left if not name.startswith(".")]) < 4
    with pytest.raises(UserError, match="its preparation did not finish"):
        Store.open(tmp_path / "out")
    if workers > 1:
        assert group_ends(process.pid, seconds=3), "the workers outlived the process that was killed"

    outcome = prepare(sources, tmp_path / "out")
    assert outcome.skipped >= 1
    prepare(sources, tmp_path / "undisturbed")
    assert contents(tmp_path / "out") == contents(tmp_path / "undisturbed")
    assert verify(tmp_path / "out") == []


def test_the_waymo_tool_on_real_format_files(tmp_path, shared, capfd):
    source = shared / "waymo" / "encoded" / "v1"
    command = ["--input", str(source), "--output", str(tmp_path / "out"), "--workers", "1", "--verify"]
    assert run(prepare_waymo.main, command) == 0
    assert "verified: every file matches its checksum" in capfd.readouterr().out
    store = Store.open(tmp_path / "out")
    frames = list(read_segment(next(source.glob("*.tfrecord"))))
    assert len(store) == len(frames) == 3
    for index, frame in enumerate(frames):
        stored = store.frame(index)
        assert stored.key == frame.key
        assert np.abs(stored.points[:, :3] - frame.points[:, :3]).max() <= 2.0**-8
        np.testing.assert_array_equal(stored.lidar, frame.lidar)
        assert stored.labels.ids == frame.labels.ids
    assert run(prepare_waymo.main, command) == 0
    assert "nothing to do: all 1 sources" in capfd.readouterr().out


def test_frames_without_lidar_are_refused_by_the_waymo_tool(tmp_path, shared, capfd):
    command = ["--input", str(shared / "waymo" / "frames"), "--output", str(tmp_path / "out"), "--workers", "1"]
    assert run(prepare_waymo.main, command) == 1
    assert "no_label_zones_two_frames.tfrecord: no lidar points in any of its 2 frames" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--returns", "first", "'first': choose 1, 2 or 1,2"),
        ("--returns", "", "'': choose 1, 2 or 1,2"),
        ("--returns", "2,3", "'2,3': choose 1, 2 or 1,2"),
        ("--workers", "all", "'all': give a whole number of at least 1"),
        ("--workers", "0", "'0': give a whole number of at least 1"),
        ("--every", "-1", "'-1': give a whole number of at least 1"),
        ("--range", "far", "'far': give a distance above 0 in metres"),
        ("--range", "nan", "'nan': give a distance above 0 in metres"),
    ],
)
def test_options_that_cannot_be_used_are_told_in_words(option, value, message, capsys):
    with pytest.raises(SystemExit):
        prepare_waymo.main(["--input", "in", "--output", "out", option, value])
    assert capsys.readouterr().err.endswith(f"error: argument {option}: {message}\n")


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_every_second_frame_out_to_a_range(tmp_path, shared, capfd, version):
    source = shared / "waymo" / "encoded" / version
    command = ["--input", str(source), "--output", str(tmp_path / "out"), "--workers", "1", "--every", "2"]
    command += ["--range", "30.5", "--returns", "2"]
    assert run(prepare_waymo.main, command) == 0
    assert re.search(r"about 2 frames, \S+ GB .*; \S+ GB are free", capfd.readouterr().out)
    store = Store.open(tmp_path / "out")
    assert store.settings == StoreSettings(returns=(2,), every=2, reach=30.5)
    frames = list(read_segment(next((shared / "waymo" / "encoded" / "v1").glob("*.tfrecord"))))
    assert [store.key(index) for index in range(len(store))] == [frames[0].key, frames[2].key]
    for index, frame in enumerate((frames[0], frames[2])):
        near = (np.abs(frame.points[:, :2]) <= 30.5).all(axis=1) & (frame.return_number == 2)
        stored = store.frame(index)
        assert 0 < near.sum() < (frame.return_number == 2).sum()
        np.testing.assert_array_equal(stored.lidar, frame.lidar[near])
        assert np.abs(stored.points[:, :3] - frame.points[near, :3]).max() <= 2.0**-8
        assert sorted(stored.labels.ids) == sorted(frame.labels.ids)  # boxes count whether or not their points do
    assert run(prepare_waymo.main, [*command[:-4], "--range", "40"]) == 1
    assert (
        "was prepared with --returns 2 --every 2 --range 30.5, now asked for: --returns 1,2 --every 2 --range 40;"
        in capfd.readouterr().err
    )


def test_an_estimate_needs_a_source_that_can_be_read(tmp_path):
    sources = [replace(source, count=lambda _: 3) for source in recipes(tmp_path / "in", count=6)]
    settings = StoreSettings(every=2)
    expected = estimate(sources, settings)
    assert expected is not None
    assert expected.frames == 12
    assert expected.size == 12 * 200 * 11
    sources[0].path.unlink()
    write_recipe(sources[1].path, fail_at=0)
    write_recipe(sources[2].path, crash_at=0)  # an error of ours, told when it is the source's turn
    assert estimate(sources[1:], settings) is not None
    assert estimate(sources[1:2], settings) is None
    assert estimate(recipes(tmp_path / "in"), settings) is None  # they don't tell how many frames they hold
    assert estimate([], settings) is None


def test_a_store_that_may_not_fit_is_told(tmp_path, shared, capfd, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    source = shared / "waymo" / "encoded" / "v1"
    assert run(prepare_waymo.main, ["--input", str(source), "--output", str(tmp_path / "out"), "--workers", "1"]) == 0
    assert f"note: {tmp_path / 'out'} may become full" in capfd.readouterr().err


def test_a_damaged_store_fails_the_tool(tmp_path, shared, capfd):
    source = shared / "waymo" / "encoded" / "v1"
    command = ["--input", str(source), "--output", str(tmp_path / "out"), "--workers", "1", "--verify"]
    assert run(prepare_waymo.main, command) == 0
    points = next((tmp_path / "out").rglob("points.bin"))
    content = bytearray(points.read_bytes())
    content[1000] ^= 8
    points.write_bytes(content)
    assert run(prepare_waymo.main, command) == 1
    assert "points.bin: " in capfd.readouterr().err


@pytest.mark.parametrize(
    ("main", "make", "message"),
    [
        (prepare_waymo.main, lambda folder: folder / "nowhere", "there is no such file or folder"),
        (prepare_waymo.main, lambda folder: folder, r"no segment in it (it is empty)"),
        (prepare_argoverse.main, lambda folder: folder / "nowhere", "there is no such folder"),
        (prepare_argoverse.main, lambda folder: folder, "no folder in it holds sensors/lidar"),
    ],
)
def test_no_input(tmp_path, capfd, main, make, message):
    (tmp_path / "in").mkdir()
    assert run(main, ["--input", str(make(tmp_path / "in")), "--output", str(tmp_path / "out")]) == 1
    assert message in capfd.readouterr().err
    assert not (tmp_path / "out").exists()


def test_no_tfrecord_among_other_files(tmp_path, capfd):
    (tmp_path / "notes.txt").write_text("")
    assert run(prepare_waymo.main, ["--input", str(tmp_path), "--output", str(tmp_path / "out")]) == 1
    assert "(1 other files, such as notes.txt)" in capfd.readouterr().err


def test_files_that_are_nearly_tfrecords_are_named(tmp_path, capfd):
    for name in ("a.tfrecord", "b.tfrecord_.gstmp", "LICENSE"):
        (tmp_path / name).write_text("")
    assert [source.name for source in prepare_waymo.find_sources(tmp_path)] == ["a.tfrecord"]
    assert capfd.readouterr().err.startswith("note: 1 files are passed over, as their names don't end in .tfrecord: b.")


def test_a_file_that_is_no_tfrecord_is_listed(tmp_path, capfd):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.tfrecord").write_text("this is not a record")
    command = ["--input", str(tmp_path / "in"), "--output", str(tmp_path / "out"), "--workers", "1"]
    assert run(prepare_waymo.main, command) == 1
    assert "a.tfrecord: not a TFRecord file" in capfd.readouterr().err


def test_the_argoverse_tool(tmp_path, shared, capfd):
    source = shared / "real" / "argoverse2"
    assert run(prepare_argoverse.main, ["--input", str(source), "--output", str(tmp_path), "--workers", "1"]) == 0
    note = (
        "note: adcf7d18-0510-35b0-a2fa-b4cea13a6d76: has no city_SE3_egovehicle.feather; its poses become the identity"
    )
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith(note)
    assert len(Store.open(tmp_path)) == 3
    records = json.loads((tmp_path / "manifest.json").read_text())["segments"]
    names = [SegmentRecord.model_validate(record).source.name for record in records]
    assert names == sorted(path.name for path in source.iterdir())
