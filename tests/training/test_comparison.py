"""What a comparison finds out before its first run, and which runs it takes for pairs."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from detection3d.errors import UserError
from detection3d.training import comparison
from detection3d.training.comparison import Means, compare
from detection3d.training.comparison_plan import make_plan
from tests.small_run import small_config, write_small_store


def attempt(data: Path, output: Path, *, processes: int = 1, speed_pairs: int = 0, settings: tuple[str, ...] = ()):
    """Start a comparison that must end before its first run."""
    plan = make_plan(small_config(*settings, data=data), ["sum", "uncertainty"], [0.001], 1, 0, output)
    return compare(plan, Means(("cpu",), processes, False, speed_pairs), Console(file=io.StringIO()))


@pytest.fixture(autouse=True)
def no_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail where a run would be started."""

    def refuse(*_: object) -> None:
        raise AssertionError("a run was started")

    monkeypatch.setattr(comparison, "run_each", refuse)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"processes": 0}, "--processes 0: give at least 1"),
        ({"speed_pairs": 5}, "--speed-pairs 5: give at least 20, or 0 to leave it out"),
        ({"settings": ("data.train=nowhere",)}, "nowhere"),
        ({"settings": ("data.validation=nowhere",)}, "nowhere"),
    ],
)
def test_what_would_fail_later_is_told_at_once(store, tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        attempt(store, tmp_path / "out", **changes)
    assert not (tmp_path / "out").exists()


def test_validation_data_without_objects_is_refused(store, tmp_path):
    empty = write_small_store(tmp_path / "empty", boxes=0)
    with pytest.raises(UserError, match="holds no objects, so methods can't be told apart on it"):
        attempt(store, tmp_path / "out", settings=(f"data.validation={empty}",))


def test_a_folder_of_something_else_is_left_alone(store, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes").write_text("mine")
    with pytest.raises(UserError, match="not empty, and not a comparison"):
        attempt(store, tmp_path / "out")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="a file stands where the comparison's folder should be"):
        attempt(store, tmp_path / "file")


def test_methods_that_start_from_different_weights_are_no_pairs(store, tmp_path, monkeypatch):
    digests = iter(["0123456789abcdef", "fedcba9876543210"])
    monkeypatch.setattr(comparison, "initial_weights", lambda *_: next(digests))
    with pytest.raises(UserError, match=r"seed 0: the methods start from different weights \(sum 0123456789ab, unce"):
        attempt(store, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_with_nothing_in_the_way_the_first_run_is_started(store, tmp_path):
    with pytest.raises(AssertionError, match="a run was started"):
        attempt(store, tmp_path / "out")
