"""The disk full at every flush, two preparations at once, files that can't be opened, and frames without any point."""

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from detection3d.cli import prepare_waymo
from detection3d.cli.run import run
from detection3d.data.loader import evaluation_batches
from detection3d.data.store import Store, verify
from detection3d.data.waymo import read_segment
from detection3d.errors import DataError
from tests.conftest import ROOT
from tests.data.damage.segments import FRAMES, prepare, record_bytes, segment, segment_bytes
from tests.data.test_preparation import contents
from tests.data.waymo.conftest import HEIGHT, WIDTH, compress
from tests.small_run import environment, run_tool, tool

FLUSHES = 20
"""How often the preparation of two segments flushes a file or a folder: 8 times each, and twice for each record."""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    for name in ("first", "second"):
        (tmp_path / "in" / f"{name}.tfrecord").write_bytes(b"".join(segment_bytes(tmp_path, name)))
    return tmp_path / "in"


class Disk:
    """Stands for `os.fsync`, and fails once."""

    def __init__(self, fails_at: int, error: int) -> None:
        self.calls, self._fails_at, self._error = 0, fails_at, error

    def fsync(self, descriptor: int) -> None:
        self.calls += 1
        if self.calls == self._fails_at + 1:
            raise OSError(self._error, os.strerror(self._error))


def test_the_number_of_flushes(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk(-1, errno.ENOSPC)
    monkeypatch.setattr(os, "fsync", disk.fsync)
    assert prepare(source, tmp_path / "out").status == 0
    assert disk.calls == FLUSHES


@pytest.mark.parametrize("flush", range(FLUSHES))
def test_a_disk_that_is_full_at_any_flush(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flush: int
) -> None:
    """Where and why is told, no frame is lost, and running it again makes the very store."""
    monkeypatch.setattr(os, "fsync", Disk(-1, 0).fsync)
    prepare(source, tmp_path / "undisturbed")
    monkeypatch.setattr(os, "fsync", Disk(flush, errno.ENOSPC).fsync)
    failed = prepare(source, tmp_path / "out")
    assert failed.status == 1
    assert f"error: {tmp_path / 'out'}" in failed.errors
    assert "No space left on device; the disk is full; free some space and run the same command again" in failed.errors
    if (tmp_path / "out" / "manifest.json").exists():
        assert len(Store.open(tmp_path / "out")) == 2 * FRAMES
    else:
        with pytest.raises(DataError, match="its preparation did not finish"):
            Store.open(tmp_path / "out")
    monkeypatch.setattr(os, "fsync", Disk(-1, 0).fsync)
    assert prepare(source, tmp_path / "out").status == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "undisturbed")


@pytest.mark.parametrize("error", [errno.EDQUOT, errno.EROFS, errno.EFBIG])
def test_other_errors_of_the_output_stop_it(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    monkeypatch.setattr(os, "fsync", Disk(2, error).fsync)
    failed = prepare(source, tmp_path / "out")
    assert failed.status == 1
    assert f"error: {tmp_path / 'out'}: {os.strerror(error)}; " in failed.errors


def test_the_system_s_limit_of_a_file_s_size(source: Path, tmp_path: Path) -> None:
    """A limit of the kernel, none that is simulated: the write itself fails, in the midst of a segment's points."""
    command = tool("prepare_waymo", "--input", source, "--output", tmp_path / "out", "--workers", 1)
    limited = [sys.executable, "-c", LIMITED, *command]
    result = subprocess.run(limited, capture_output=True, text=True, timeout=120, env=environment(), check=False)
    assert result.returncode == 1
    assert "File too large; files may not become that large here" in result.stderr
    assert "Traceback" not in result.stderr
    with pytest.raises(DataError, match="its preparation did not finish"):
        Store.open(tmp_path / "out")
    assert prepare(source, tmp_path / "out").status == 0
    assert len(Store.open(tmp_path / "out")) == 2 * FRAMES


LIMITED = """
import os, resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))
os.execv(sys.argv[1], sys.argv[1:])
"""


WAITS = """
import sys
from pathlib import Path
from detection3d.cli.prepare_waymo import find_sources
from detection3d.data.preparation import prepare

def wait(progress, result):
    print("a segment is done", flush=True)
    sys.stdin.readline()

prepare(find_sources(Path(sys.argv[1])), Path(sys.argv[2]), workers=1, report=wait)
"""


def test_a_second_preparation_is_refused_and_the_first_one_s_store_is_whole(source: Path, tmp_path: Path) -> None:
    """Two processes; the first waits after its first segment until the second has been refused."""
    output = tmp_path / "out"
    script = [sys.executable, "-c", WAITS, str(source), str(output)]
    with subprocess.Popen(script, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment()) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == b"a segment is done\n"
        second = run_tool("prepare_waymo", "--input", source, "--output", output, cwd=ROOT)
        assert second.returncode == 1
        assert f"error: {output}: another preparation is writing into it; wait for it or" in second.stderr
        first.communicate(b"\n\n", timeout=60)
        assert first.returncode == 0
    assert prepare(source, tmp_path / "undisturbed").status == 0
    assert contents(output) == contents(tmp_path / "undisturbed")


def strange_files(folder: Path) -> dict[str, str]:
    """Make what is no file of records, and return the reasons."""
    (folder / "empty folder.tfrecord").mkdir()
    (folder / "folder.tfrecord").mkdir()
    (folder / "folder.tfrecord" / "notes.txt").write_text("")
    (folder / "nowhere.tfrecord").symlink_to(folder / "gone")
    (folder / "itself.tfrecord").symlink_to(folder / "itself.tfrecord")
    (folder / "empty.tfrecord").touch()
    return {
        "empty folder.tfrecord": "Is a directory",
        "folder.tfrecord": "Is a directory",
        "nowhere.tfrecord": "No such file",
        "itself.tfrecord": "Too many levels of symbolic links",
        "empty.tfrecord": "the file is empty (0 bytes)",
    }


def test_what_is_no_file_is_left_out_and_listed(source: Path, tmp_path: Path) -> None:
    reasons = strange_files(source)
    prepared = prepare(source, tmp_path / "out")
    assert prepared.status == 1
    assert f"{len(reasons)} sources could not be used" in prepared.errors
    for name, reason in reasons.items():
        assert reason in prepared.reason(name)
    assert len(Store.open(tmp_path / "out")) == 2 * FRAMES


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may read everything")
def test_a_file_that_may_not_be_read_is_left_out_and_listed(source: Path, tmp_path: Path) -> None:
    (source / "first.tfrecord").chmod(0)
    prepared = prepare(source, tmp_path / "out")
    assert prepared.status == 1
    assert "Permission denied" in prepared.reason("first.tfrecord")
    assert len(Store.open(tmp_path / "out")) == FRAMES


def test_a_folder_named_like_a_file_that_holds_files_is_searched(tmp_path: Path) -> None:
    inner = tmp_path / "in" / "archive.tfrecord"
    inner.mkdir(parents=True)
    (inner / "a.tfrecord").write_bytes(b"".join(segment_bytes(tmp_path, "a")))
    assert [source.name for source in prepare_waymo.find_sources(tmp_path / "in")] == ["archive.tfrecord/a.tfrecord"]


def test_two_files_of_one_segment(source: Path, tmp_path: Path) -> None:
    shutil.copy(source / "first.tfrecord", source / "third.tfrecord")
    prepared = prepare(source, tmp_path / "out")
    assert prepared.status == 1
    assert "segment 'first' is in the store already, from another source" in prepared.reason("third.tfrecord")
    assert len(Store.open(tmp_path / "out")) == 2 * FRAMES


def test_a_name_that_is_too_long_for_a_folder(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.tfrecord").write_bytes(b"".join(segment_bytes(tmp_path, "x" * 300)))
    prepared = prepare(tmp_path / "in", tmp_path / "out")
    assert prepared.status == 1
    assert "File name too long" in prepared.reason("a.tfrecord")


def test_a_frame_without_any_point_goes_through_everything(tmp_path: Path) -> None:
    """It is legal: all of its range images are there, and no pixel has a range."""
    frames = segment("quiet")
    nothing = compress(np.full((HEIGHT, WIDTH, 4), -1, np.float32))
    for laser in frames[1].lasers:
        laser.ri_return1.range_image_compressed = laser.ri_return2.range_image_compressed = nothing
    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / "quiet.tfrecord"
    path.write_bytes(b"".join(record_bytes(tmp_path, [frame.SerializeToString() for frame in frames])))
    points = [len(frame.points) for frame in read_segment(path)]
    assert points[1] == 0
    assert min(points[0], points[2]) > 0
    assert run(prepare_waymo.main, ["--input", str(path), "--output", str(tmp_path / "out"), "--workers", "1"]) == 0
    store = Store.open(tmp_path / "out")
    assert [len(store.packed(index)) for index in range(FRAMES)] == points
    assert [len(store.labels(index) or ()) for index in range(FRAMES)] == [2, 2, 2]
    assert verify(tmp_path / "out") == []
    (batch,) = evaluation_batches(store, batch_size=FRAMES)
    assert batch.points.counts.tolist() == points
