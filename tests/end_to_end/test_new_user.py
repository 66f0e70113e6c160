"""What goes wrong in a first hour: a message that says what to do, no traceback, earlier results intact."""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from detection3d.cli import evaluate, prepare_waymo, train
from detection3d.cli.device import choose_device
from detection3d.cli.run import run
from detection3d.data.store import Store
from detection3d.data.synthetic.encode import compress_matrix
from detection3d.data.waymo.matrices import decode_matrix
from detection3d.data.waymo.records import RecordWriter, read_records
from detection3d.errors import UserError
from detection3d.evaluation.files.objects import read_detections
from detection3d.protos import waymo_pb2
from detection3d.training.checkpoint import last_checkpoint, load_checkpoint
from tests.data.made_frames import write_store
from tests.end_to_end.processes import start_training, wait_for_step
from tests.small_run import environment, near_frame, run_tool, small_settings

TOOLS = sorted(path.stem for path in (Path(__file__).parents[2] / "tools").glob("*.py"))


def refused(result: subprocess.CompletedProcess[str], status: int = 1) -> str:
    """The message of a tool that ended as it should."""
    assert result.returncode == status, result
    assert "Traceback" not in result.stdout + result.stderr
    return result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["tyni"],
            "error: tyni: no such config file; shipped configs: real_scans, reference_pillar, reference_voxel, small,",
        ),
        (["tiny", "training.setps=5"], "training.setps: unknown key; did you mean 'training.steps'?"),
        (["tiny", "training.steps=soon"], "training.steps: Input should be a valid integer (found 'soon')"),
        (["tiny", "training.steps", "5"], "override 'training.steps': write key=value, such as training.steps=100"),
        (["tiny", "data.train=nowhere"], "error: nowhere: there is no such folder; give that of a store made by"),
    ],
)
def test_training_refuses_what_it_cannot_use(tmp_path, arguments, message):
    (tmp_path / "empty").mkdir()
    assert message in refused(run_tool("train", *arguments, cwd=tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["empty"], "no run folder is left behind"


def test_evaluating_refuses_what_it_cannot_use(tmp_path, capfd):
    (tmp_path / "run").mkdir()
    for arguments, message in (
        (["nowhere"], "nowhere: no such run folder; it is what tools/train.py writes with --output"),
        ([str(tmp_path / "run")], "no checkpoint in"),
        (
            [str(tmp_path / "run"), "--checkpoint", "a.pt"],
            "a.pt: no such checkpoint; give last, best, or one of the files in",
        ),
    ):
        assert run(evaluate.main, arguments) == 1
        assert message in capfd.readouterr().err


def test_a_folder_that_is_no_store(tmp_path, capfd):
    command = ["tiny", f"data.train={tmp_path}", "--output", str(tmp_path / "out"), "--device", "cpu"]
    assert run(train.main, command) == 1
    assert "no manifest.json in it, so it is not a prepared store; make one with" in capfd.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_device_that_is_not_there():
    with pytest.raises(UserError, match="--device gpu: not a device; use cpu, cuda or cuda:N"):
        choose_device("gpu")
    for wanted in ("mps", "meta"):
        with pytest.raises(UserError, match=f"--device {wanted}: not supported; use cpu, cuda or cuda:N"):
            choose_device(wanted)


def test_a_file_where_a_folder_should_be(tmp_path, store, capfd):
    (tmp_path / "run").write_text("")
    command = ["tiny", *small_settings(data=store), "--device", "cpu", "--output"]
    assert run(train.main, [*command, str(tmp_path / "run")]) == 1
    assert "a file stands where the run's folder should be" in capfd.readouterr().err
    assert run(train.main, [*command, str(tmp_path / "run" / "deeper")]) == 1
    assert "a file stands where a folder is expected" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda record: record[: len(record) // 2], "bad.tfrecord, record 0: "),
        (lambda record: b"this is not a record", "bad.tfrecord: not a TFRecord file"),
        (lambda record: b"", "bad.tfrecord: the file is empty (0 bytes)"),
        (lambda record: record[:1000] + bytes([record[1000] ^ 1]) + record[1001:], "bad.tfrecord, record 0: "),
    ],
)
def test_damaged_records_are_listed_and_the_rest_is_prepared(tmp_path, shared, content, message):
    folder = tmp_path / "raw"
    folder.mkdir()
    whole = next((shared / "waymo" / "encoded" / "v1").glob("*.tfrecord"))
    shutil.copy(whole, folder / "good.tfrecord")
    (folder / "bad.tfrecord").write_bytes(content(whole.read_bytes()[:100_000]))
    errors = refused(run_tool("prepare_waymo", "--input", "raw", "--output", "out", "--workers", 1, cwd=tmp_path))
    assert "1 sources could not be used:" in errors
    assert message in errors
    assert len(Store.open(tmp_path / "out")) == 3


def test_frames_without_lidar_leave_an_earlier_store_as_it_was(tmp_path, shared):
    write_store(tmp_path / "out", {"earlier": [near_frame("earlier", 1)]})
    before = (tmp_path / "out" / "segments" / "earlier" / "points.bin").read_bytes()
    raw = shared / "waymo" / "frames"
    errors = refused(run_tool("prepare_waymo", "--input", raw, "--output", "out", "--workers", 1, cwd=tmp_path))
    assert "no_label_zones_two_frames.tfrecord: no lidar points in any of its 2 frames" in errors
    assert "remove it from the input" in errors
    assert (tmp_path / "out" / "segments" / "earlier" / "points.bin").read_bytes() == before
    assert len(Store.open(tmp_path / "out")) == 1


def test_an_empty_frame_among_good_ones_goes_all_the_way(tmp_path, shared):
    """No beam of a frame comes back: it is kept, with its labels, and nothing is found in it."""
    whole = next((shared / "waymo" / "encoded" / "v1").glob("*.tfrecord"))
    (tmp_path / "raw").mkdir()
    with RecordWriter(tmp_path / "raw" / "a.tfrecord") as writer:
        for number, record in enumerate(read_records(whole)):
            frame = waymo_pb2.Frame.FromString(bytes(record))
            if number == 1:
                for laser in frame.lasers:
                    for image in (laser.ri_return1, laser.ri_return2):
                        shape = decode_matrix(image.range_image_compressed, 4, "image").shape
                        image.range_image_compressed = compress_matrix(np.full(shape, -1, np.float32))
            writer.write(frame.SerializeToString())
    command = ["--input", str(tmp_path / "raw"), "--output", str(tmp_path / "out"), "--workers", "1"]
    assert prepare_waymo.main(command) == 0
    store = Store.open(tmp_path / "out")
    assert [len(store.frame(index).points) > 0 for index in range(3)] == [True, False, True]
    torch.set_num_threads(1)  # numba's threads have set torch's anew
    settings = small_settings("training.steps=2", "decode.score_threshold=0.001", data=tmp_path / "out")
    assert train.main(["tiny", *settings, "--output", str(tmp_path / "run"), "--device", "cpu"]) == 0
    assert evaluate.main([str(tmp_path / "run"), "--device", "cpu"]) == 0
    found = read_detections(tmp_path / "run" / "evaluation" / "00000002" / "detections.parquet")
    assert store.key(1) in {item.key for item in found}


def test_a_store_without_labels_cannot_be_evaluated(tmp_path, store, capfd):
    command = ["tiny", *small_settings("training.steps=1", data=store), "--device", "cpu"]
    assert run(train.main, [*command, "--output", str(tmp_path / "run")]) == 0
    write_store(tmp_path / "bare", {"bare": [replace(near_frame("bare", 1), labels=None)]})
    arguments = [str(tmp_path / "run"), f"data.validation={tmp_path / 'bare'}", "--device", "cpu"]
    assert run(evaluate.main, arguments) == 1
    assert "frame bare at 1 has no labels, so nothing can be evaluated on it" in capfd.readouterr().err
    assert not list((tmp_path / "run").rglob("detections.parquet")), "told before the work"


def test_changed_settings_do_not_touch_a_finished_run(tmp_path, store, capfd):
    command = ["tiny", *small_settings("training.steps=2", data=store), "--device", "cpu"]
    output = ["--output", str(tmp_path / "run")]
    assert run(train.main, [*command, *output]) == 0
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert run(train.main, [*command, "seed=1", *output]) == 1
    assert "seed: 0 -> 1\nstart a new run in another folder (--output)" in capfd.readouterr().err
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before


def test_a_damaged_checkpoint_can_be_left_behind(tmp_path, store, capfd):
    command = ["tiny", *small_settings("training.checkpoint_every=1", data=store), "--device", "cpu"]
    command += ["--output", str(tmp_path / "run")]
    assert run(train.main, command) == 0
    path = last_checkpoint(tmp_path / "run" / "checkpoints")
    assert path is not None
    whole = path.read_bytes()
    path.write_bytes(whole[:-1000])
    for main, arguments in ((train.main, command), (evaluate.main, [str(tmp_path / "run")])):
        assert run(main, arguments) == 1
        assert "delete it to use the one before" in capfd.readouterr().err
    path.unlink()
    assert run(train.main, command) == 0
    np.testing.assert_equal(load_checkpoint(path)["step"], 6)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=700k", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"a small disk can't be mounted here: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="only root mounts a small disk")
def test_a_full_disk_while_saving(small_disk, store):
    output = small_disk / "run"
    settings = small_settings("training.checkpoint_every=1", data=store)
    command = ["tiny", *settings, "--output", output, "--device", "cpu"]
    errors = refused(run_tool("train", *command, cwd=small_disk.parent))
    assert "No space left on device; the disk is full; free some space and run the same command again" in errors
    assert f"error: {output / 'checkpoints'}" in errors
    path = last_checkpoint(output / "checkpoints")
    assert path is not None
    step = load_checkpoint(path)["step"]
    assert step >= 1
    assert not list(output.rglob("*.tmp"))

    subprocess.run(["mount", "-o", "remount,size=8m", str(small_disk)], check=True)
    result = run_tool("train", *command, cwd=small_disk.parent)
    assert result.returncode == 0, result.stderr
    assert f"training on from step {step}" in result.stdout


def test_ctrl_c_while_training(tmp_path, store):
    output = tmp_path / "run"
    command = ["tiny", *small_settings(data=store), "--output", str(output)]
    with start_training(command, tmp_path, wait_from=1, seconds=0.5) as process:
        wait_for_step(process, output, 1)
        os.killpg(process.pid, signal.SIGINT)  # as the terminal does: to every process of the group
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 130
    # At the end of step 1, where the signal comes right after its log, else of the step that it interrupts.
    stopped = re.fullmatch(r"error: stopped at step ([12]), saved in .*; run the same command to go on\n", errors)
    assert stopped is not None, errors
    step = int(stopped[1])
    assert load_checkpoint(output / "checkpoints" / f"step_{step:08d}.pt")["step"] == step


LOADED = "import sys; import {module}; print(*sorted({{'torch', 'numba', 'matplotlib'}} & set(sys.modules)))"


@pytest.mark.parametrize(
    ("module", "allowed"),
    [
        ("detection3d", set()),
        ("detection3d.evaluation", {"numba", "matplotlib"}),
        ("detection3d.data.waymo", {"numba"}),
        ("detection3d.data.argoverse", {"numba"}),
        ("detection3d.config_file", set()),
    ],
)
def test_importing_a_part_loads_no_torch(tmp_path, module, allowed):
    script = LOADED.format(module=module)
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert set(result.stdout.split()) <= allowed


HELP = """
import runpy, sys
sys.argv = [sys.argv[1], "--help"]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    heavy = {"torch", "numba", "matplotlib", "pyarrow"} & set(sys.modules)
    print(*sorted(heavy), file=sys.stderr)
"""


@pytest.mark.parametrize("tool", TOOLS)
def test_help_answers_without_loading_anything_heavy(tmp_path, tool):
    path = Path(__file__).parents[2] / "tools" / f"{tool}.py"
    result = subprocess.run(
        [sys.executable, "-c", HELP, str(path)], capture_output=True, text=True, cwd=tmp_path, env=environment()
    )
    assert result.returncode == 0
    assert result.stdout.startswith("usage: ")
    assert result.stderr.split() == []
