"""Sources behind URLs: the same store as from local files, and errors that bear the files' own names."""

import errno
import shutil
import sys
import tempfile
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from detection3d.cli import prepare_argoverse, prepare_waymo
from detection3d.cli.run import run
from detection3d.data.remote import list_remote
from detection3d.data.store import Store
from detection3d.errors import UserError
from tests.data.test_preparation import contents
from tests.data.waymo.conftest import build_frame
from tests.data.waymo.made_components import NAME, components, messages, write
from tests.data.waymo.test_frames import write as write_records


@pytest.fixture
def bucket() -> Iterator[MemoryFileSystem]:
    system = fsspec.filesystem("memory")
    yield system
    system.store.clear()
    system.pseudo_dirs[:] = [""]


@pytest.fixture(autouse=True)
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where copies are fetched to."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def prepare(place: object, output: Path) -> int:
    return run(prepare_waymo.main, ["--input", str(place), "--output", str(output), "--workers", "1"])


def segments(root: Path) -> dict[str, bytes]:
    """Everything but the records, which hold the sources' times."""
    return {name: content for name, content in contents(root).items() if not name.endswith(".json")}


def test_the_same_store_from_a_url_of_v1(tmp_path: Path, bucket: MemoryFileSystem, scratch: Path, capfd) -> None:
    (tmp_path / "raw" / "part").mkdir(parents=True)
    for number, place in enumerate(("a", "part/b")):
        frame = build_frame()
        frame.context.name = f"{number}"
        write_records(tmp_path / "raw" / f"{place}.tfrecord", [frame])
    bucket.put(str(tmp_path / "raw"), "/bucket", recursive=True)
    orphan = scratch / "detection3d-4194305-x"  # above the largest process number
    orphan.mkdir()
    assert prepare(tmp_path / "raw", tmp_path / "here") == 0
    assert prepare(f"file://{tmp_path}/raw", tmp_path / "here") == 0
    assert "nothing to do: all 2 sources" in capfd.readouterr().out
    assert prepare("memory://bucket", tmp_path / "there") == 0
    assert segments(tmp_path / "there") == segments(tmp_path / "here")
    assert len(segments(tmp_path / "there")) == 2 * 3
    assert list(scratch.iterdir()) == []
    assert prepare("memory://bucket", tmp_path / "there") == 0
    assert "nothing to do: all 2 sources" in capfd.readouterr().out
    assert prepare("memory://bucket/a.tfrecord", tmp_path / "one") == 0
    assert len(Store.open(tmp_path / "one")) == 1


def test_v2_with_its_components(tmp_path: Path, bucket: MemoryFileSystem, scratch: Path, capfd) -> None:
    write(tmp_path / "raw", components(messages(build_frame)))
    bucket.put(str(tmp_path / "raw"), "/bucket/training", recursive=True)
    assert prepare(tmp_path / "raw", tmp_path / "here") == 0
    assert prepare("memory://bucket/training", tmp_path / "there") == 0
    assert segments(tmp_path / "there") == segments(tmp_path / "here")
    # A component changes, and the segment is prepared again; then one is missing, though the data set has it.
    stats = f"/bucket/training/stats/{NAME}.parquet"
    bucket.pipe(stats, bucket.cat(stats) + b"")
    bucket.store[stats].created = bucket.store[stats].modified.replace(year=2100)
    capfd.readouterr()
    assert prepare("memory://bucket/training", tmp_path / "there") == 0
    assert "prepared 1 segments" in capfd.readouterr().out
    bucket.mv(stats, "/bucket/training/stats/other.parquet")
    assert prepare("memory://bucket/training", tmp_path / "there") == 1
    told = capfd.readouterr().err
    assert f"lidar/{NAME}.parquet: stats/{NAME}.parquet: there is no such file, though stats has others" in told
    assert str(scratch) not in told
    assert list(scratch.iterdir()) == []


def test_what_is_damaged_bears_its_own_name(tmp_path: Path, bucket: MemoryFileSystem, scratch: Path, capfd) -> None:
    path = write_records(tmp_path / "good", [build_frame()])
    bucket.pipe("/bucket/good.tfrecord", path.read_bytes())
    bucket.pipe("/bucket/bad.tfrecord", path.read_bytes()[:-9])
    assert prepare("memory://bucket", tmp_path / "out") == 1
    told = capfd.readouterr().err
    assert "  bad.tfrecord, record 0: " in told or "  bad.tfrecord: " in told
    assert str(scratch) not in told
    assert len(Store.open(tmp_path / "out")) == 1


def test_transfers_that_fail_or_end_early(tmp_path: Path, bucket: MemoryFileSystem, capfd, monkeypatch) -> None:
    path = write_records(tmp_path / "good", [build_frame()])
    bucket.pipe("/bucket/good.tfrecord", path.read_bytes())

    def lose(self: object, place: str, copy: str) -> None:
        Path(copy).write_bytes(path.read_bytes()[:100])

    def refuse(self: object, place: str, copy: str) -> None:
        raise RuntimeError("403\nno access")

    for transfer, words in (
        (lose, f"100 of its {path.stat().st_size} bytes came"),
        (refuse, "it can't be fetched (403 no access)"),
    ):
        monkeypatch.setattr(MemoryFileSystem, "get_file", transfer)
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        assert prepare("memory://bucket", tmp_path / "out") == 1
        assert f"good.tfrecord: {words}" in capfd.readouterr().err


def test_a_full_disk_ends_the_preparation(
    tmp_path: Path, bucket: MemoryFileSystem, scratch, capfd, monkeypatch
) -> None:
    path = write_records(tmp_path / "good", [build_frame()])
    for name in "ab":
        bucket.pipe(f"/bucket/{name}.tfrecord", path.read_bytes())
    tries: list[str] = []

    def fill(self: object, place: str, copy: str) -> None:
        tries.append(place)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(MemoryFileSystem, "get_file", fill)
    assert prepare("memory://bucket", tmp_path / "out") == 1
    told = capfd.readouterr().err
    assert f"{scratch}/detection3d-" in told
    assert "(TMPDIR chooses another place): No space left on device; the disk is full" in told
    assert tries == ["/bucket/a.tfrecord"]


def test_file_systems_that_tell_little(bucket: MemoryFileSystem, tmp_path: Path, monkeypatch) -> None:
    path = write_records(tmp_path / "good", [build_frame()])
    bucket.pipe("/bucket/good.tfrecord", path.read_bytes())
    entries = (
        ({"LastModified": "Wed, 21 Oct 2015 07:28:00 GMT"}, 1445412480),
        ({"updated": "2015-10-21T07:28:00Z"}, 1445412480),
        ({"mtime": datetime(2015, 10, 21, 7, 28)}, 1445412480),
        ({"mtime": "yesterday", "created": 5.5}, 5.5),
        ({}, 0),
    )
    for entry, seconds in entries:
        listing = {"/bucket/good.tfrecord": {**entry, "size": None}}
        monkeypatch.setattr(MemoryFileSystem, "find", lambda *_, found=listing, **__: found)
        (file,) = list_remote("memory://bucket")
        assert (file.size, file.changed_ns) == (None, int(seconds * 1e9))
    assert prepare("memory://bucket", tmp_path / "out") == 0


def test_places_that_cannot_be_listed(tmp_path: Path, capfd, monkeypatch) -> None:
    assert prepare("memory://nowhere", tmp_path / "out") == 1
    assert "memory://nowhere: there is no such file or folder" in capfd.readouterr().err
    with pytest.raises(UserError, match=r"magic://x: it can't be reached \(Protocol not known: magic\)"):
        list_remote("magic://x")
    monkeypatch.setattr(MemoryFileSystem, "find", lambda *_, **__: 1 / 0)
    with pytest.raises(UserError, match=r"memory://x: it can't be listed \(division by zero\); check the URL"):
        list_remote("memory://x")
    monkeypatch.setitem(sys.modules, "fsspec.core", None)
    with pytest.raises(UserError, match=r"pip install 'detection3d\[remote\]'"):
        list_remote("gs://x")


def test_the_other_tool_reads_no_urls(capsys) -> None:
    with pytest.raises(SystemExit):
        prepare_argoverse.main(["--input", "gs://x", "--output", "out"])
    assert "'gs://x': this tool reads no URLs; copy the folder first" in capsys.readouterr().err
