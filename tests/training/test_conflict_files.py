"""Maps of conflict on the disk: exact, in their place, and the same after an interruption."""

from pathlib import Path

import numpy as np
import pytest
import torch

from detection3d.data.store import Store
from detection3d.errors import DataError
from detection3d.evaluation.reporting.conflict_figures import ConflictView
from detection3d.multitask import ConflictMap
from detection3d.training import loop
from detection3d.training.conflict_files import (
    conflict_view,
    forget_conflicts,
    last_conflict,
    list_conflicts,
    load_conflict,
    save_conflict,
)
from detection3d.training.loop import train
from tests.small_run import small_config, write_small_store
from tests.training.steps import CPU

RANGE = (-16.0, -8.0, -2.0, 16.0, 8.0, 4.0)


def some_view(step: int = 7, value: float = 1.0) -> ConflictView:
    mass = torch.arange(6.0, dtype=torch.float64).reshape(2, 3) + value
    return conflict_view(step, ConflictMap(mass, mass / 4, passes=1), RANGE)


def test_a_map_comes_back_as_it_was(tmp_path):
    path = save_conflict(tmp_path / "conflict", some_view())
    assert path.name == "00000007.npz"
    view = load_conflict(path)
    assert (view.step, view.extent) == (7, (-16.0, -8.0, 16.0, 8.0))
    for array in (view.mass, view.cancelled):
        assert (array.dtype, array.shape) == (np.float32, (2, 3))
    np.testing.assert_array_equal(view.mass, np.arange(6).reshape(2, 3) + 1)
    np.testing.assert_array_equal(view.cancelled, view.mass / 4)


def test_the_last_map_up_to_a_step_that_did_not_overflow(tmp_path):
    for step, value in ((2, 1.0), (4, 1.0), (6, float("nan")), (8, 1.0)):
        save_conflict(tmp_path, some_view(step, value))
    (tmp_path / "notes.npz").write_text("not ours")
    found = [last_conflict(tmp_path, step) for step in (1, 2, 5, 6, 9)]
    assert [None if view is None else view.step for view in found] == [None, 2, 4, 4, 8]
    assert last_conflict(tmp_path / "nowhere", 9) is None


@pytest.mark.parametrize("content", [b"", b"not an archive", b"cut"])
def test_a_damaged_map_is_named(tmp_path, content):
    path = save_conflict(tmp_path, some_view())
    path.write_bytes(path.read_bytes()[:100] if content == b"cut" else content)
    with pytest.raises(DataError, match=r"00000007\.npz: not a map of conflict .*; delete it"):
        load_conflict(path)


def test_maps_after_a_step_are_taken_back(tmp_path):
    for step in (2, 4, 6):
        save_conflict(tmp_path, some_view(step))
    (tmp_path / ".00000008.npz.1.tmp").write_bytes(b"half")
    forget_conflicts(tmp_path, 4)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["00000002.npz", "00000004.npz"]
    forget_conflicts(tmp_path / "nowhere", 0)


def test_an_interrupted_run_ends_with_the_same_maps(tmp_path, store, monkeypatch):
    config = small_config("training.map_every=2", "training.log_every=3", data=store)  # 6 steps, checkpoints at 3 and 6
    train(config, tmp_path / "whole", CPU)
    whole = list_conflicts(tmp_path / "whole" / "conflict")
    assert [path.name for path in whole] == ["00000002.npz", "00000004.npz", "00000006.npz"]

    real = loop.train_step

    def killed(state, *arguments):
        if state.step == 4:
            raise KeyboardInterrupt
        return real(state, *arguments)

    monkeypatch.setattr(loop, "train_step", killed)
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "run", CPU)
    monkeypatch.setattr(loop, "train_step", real)
    folder = tmp_path / "run" / "conflict"
    assert len(list_conflicts(folder)) == 2
    save_conflict(folder, some_view(5))  # as if maps had been more frequent
    train(config, tmp_path / "run", CPU)
    assert [path.name for path in list_conflicts(folder)] == [path.name for path in whole]
    for path in whole:
        assert (folder / path.name).read_bytes() == path.read_bytes()


def test_no_maps_unless_wanted(tmp_path, store):
    train(small_config("training.map_every=0", "training.steps=2", data=store), tmp_path / "run", CPU)
    assert not (tmp_path / "run" / "conflict").exists()


def test_gradient_lies_where_the_objects_are(tmp_path: Path):
    """Box and orientation are learnt at the objects alone: the map's rows run along y, its columns along x."""
    store = write_small_store(tmp_path / "store", frames=1, boxes=2)
    changes = ("training={steps: 30, batch_size: 1, learning_rate: 0.002, map_every: 30}", "augmentation={}")
    config = small_config(*changes, data=store)
    train(config, tmp_path / "run", CPU)
    view = last_conflict(tmp_path / "run" / "conflict", 30)
    labels = Store.open(store).labels(0)
    assert view is not None
    assert labels is not None
    size = 32 / view.mass.shape[0]  # metres of a cell; the map is 32 m wide
    x, y = labels.boxes[:, :2].T
    column, row = ((place + 16) // size for place in (x, y))
    there = view.mass[row.astype(int), column.astype(int)]
    mirrored = view.mass[column.astype(int), row.astype(int)]
    assert (there > 5 * np.median(view.mass)).all()
    farthest = np.abs(x - y).argmax()  # from the diagonal, where rows and columns are alike
    assert there[farthest] > 5 * mirrored[farthest]
