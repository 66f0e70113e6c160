from detection3d.cli.prepare_argoverse import find_sources as find_logs
from detection3d.cli.prepare_waymo import find_sources as find_records
from detection3d.files import walk


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
