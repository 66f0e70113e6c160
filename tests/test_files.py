import errno
import os
import socket
import threading
from contextlib import ExitStack

import pytest

from detection3d import files
from detection3d.cli.prepare_argoverse import find_sources as find_logs
from detection3d.cli.prepare_waymo import find_sources as find_records
from detection3d.errors import UserError
from detection3d.files import locked, walk


def test_walking_follows_links_and_ends(tmp_path):
    (tmp_path / "data" / "b").mkdir(parents=True)
    (tmp_path / "elsewhere" / "c").mkdir(parents=True)
    for place in ("data/a.txt", "data/b/b.txt", "elsewhere/c/c.txt"):
        (tmp_path / place).touch()
    (tmp_path / "data" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "again").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "above").symlink_to(tmp_path / "data")
    (tmp_path / "data" / "broken").symlink_to(tmp_path / "gone")
    found = [path.relative_to(tmp_path / "data").as_posix() for path in walk(tmp_path / "data")]
    assert [name for name in found if name.endswith(".txt")] == ["a.txt", "again/c/c.txt", "b/b.txt"]
    assert "broken" in found


def test_tools_find_data_behind_links(tmp_path):
    disk = tmp_path / "disk"
    (disk / "log" / "sensors" / "lidar").mkdir(parents=True)
    (disk / "one.tfrecord").touch()
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "part").symlink_to(disk)
    assert [source.name for source in find_records(folder)] == ["part/one.tfrecord"]
    assert [source.path for source in find_logs(folder)] == [folder / "part" / "log"]


def test_a_lock_held_here_is_refused_at_once(tmp_path):
    with locked(tmp_path / "lock", "busy"):
        holder = f"process {os.getpid()} on {socket.gethostname()} holds"
        with pytest.raises(UserError, match=f"busy .{holder}"), locked(tmp_path / "lock", "busy", patience=60):
            pass


def test_the_lock_of_a_dead_machine_is_waited_for(tmp_path, capsys):
    path = tmp_path / "lock"
    held, refused = ExitStack(), pytest.raises(UserError, match=r"busy \(process 7 on node7 holds")
    held.enter_context(locked(path, "busy"))
    path.write_text("node7 7\n")
    with refused, locked(path, "busy", patience=0.2):
        pass
    assert f"{path} is held by process 7 on node7; waiting up to 0.2 s" in capsys.readouterr().err
    timer = threading.Timer(0.3, held.close)  # the server has noticed
    timer.start()
    with locked(path, "busy", patience=60):
        assert path.read_text() == f"{socket.gethostname()} {os.getpid()}\n"
    timer.join()


def test_a_file_system_without_locks_is_told(tmp_path, monkeypatch, capsys):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(files.fcntl, "flock", refuse)
    with locked(tmp_path / "lock", "busy"):
        pass
    assert "this file system has no locks (No locks available)" in capsys.readouterr().err
