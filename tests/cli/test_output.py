from pathlib import Path

import pytest

from detection3d.cli.output import output_folder


def fail_in(folder: Path, *, after_writing: bool = False) -> None:
    with output_folder(folder):
        assert folder.is_dir()
        if after_writing:
            (folder / "result").touch()
        raise ValueError("failed")


def test_a_folder_that_was_made_for_nothing_is_removed(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="failed"):
        fail_in(tmp_path / "a" / "b")
    assert not (tmp_path / "a" / "b").exists()


def test_folders_with_content_and_folders_of_others_stay(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    with pytest.raises(ValueError, match="failed"):
        fail_in(tmp_path / "old")
    with pytest.raises(ValueError, match="failed"):
        fail_in(tmp_path / "new", after_writing=True)
    assert (tmp_path / "old").is_dir()
    assert (tmp_path / "new" / "result").is_file()
    with output_folder(tmp_path / "done"):
        pass
    assert list((tmp_path / "done").iterdir()) == []


def test_a_file_in_the_way_is_told_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OSError, match="file"), output_folder(path):
            raise AssertionError("the work was begun")
