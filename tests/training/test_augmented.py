"""What `inspect_data --augmented` shows is what the network gets."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from detection3d.data.object_database import build_database
from detection3d.data.store import Store
from detection3d.errors import DataError, UserError
from detection3d.training.augmented import augmented_frames
from detection3d.training.batches import training_batches
from detection3d.training.step_input import network_input
from detection3d.types.scene import Frame
from tests.data.made_frames import make_boxes, make_frame, write_store
from tests.small_run import small_config

FRAMES = 6
SETTINGS = {
    "plain": (),
    "every": ("data.every=2",),
    "balanced": ("data.sampling=class_balanced",),
    "sweeps": ("data.sweeps=3",),
    "returns": ("data.returns=[2]", "data.drop_no_label_zone_points=true"),
    "objects": ("augmentation.objects={database: DATABASE, totals: {vehicle: 9, pedestrian: 5, cyclist: 4}}",),
    "off": ("training.steps=6", "augmentation.off_for_last_steps=4"),
    "objects off": (
        "training.steps=6",
        "augmentation.objects={database: DATABASE, totals: {vehicle: 9}, off_for_last_steps: 3}",
    ),
    "both off": (
        "training.steps=6",
        "augmentation.off_for_last_steps=5",
        "augmentation.objects={database: DATABASE, totals: {vehicle: 9}}",
    ),
}


def _frame(name: str, number: int) -> Frame:
    """Boxes with points inside, and a pose of its own."""
    frame = make_frame(name, 1000 + number, 300, None)
    labels = make_boxes(6, seed=number)
    points = frame.points.copy()
    points[:240, :3] = np.repeat(labels.boxes[:, :3], 40, axis=0) + np.random.default_rng(number).normal(
        0, 0.05, (240, 3)
    )
    return replace(frame, points=points, labels=replace(labels, types=np.array([1, 2, 4, 1, 0, 1], np.uint8)))


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    root = tmp_path_factory.mktemp("store")
    write_store(
        root, {name: [_frame(name, number + start) for number in range(3)] for name, start in (("a", 0), ("b", 9))}
    )
    return Store.open(root)


@pytest.fixture(scope="module")
def database(store: Store, tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("objects") / "objects"
    build_database(store, root, min_points=3)
    return root


@pytest.mark.parametrize("kind", SETTINGS)
def test_frames_are_the_samples_of_training(store: Store, database: Path, kind: str) -> None:
    settings = [setting.replace("DATABASE", str(database)) for setting in SETTINGS[kind]]
    config = small_config("seed=11", "training.batch_size=1", "augmentation.rotation=1", *settings)
    expected = [
        (batch.keys[0], *network_input(batch, config, step))
        for step, batch in enumerate(training_batches(store, config, total_steps=FRAMES, workers=0))
    ]
    found = list(augmented_frames(store, config, FRAMES))
    assert len(found) == (4 if kind == "every" else FRAMES)
    for frame, (key, points, labels) in zip(found, expected, strict=False):
        assert frame.key == key
        np.testing.assert_array_equal(frame.points, points.values[:, :5].numpy())
        assert frame.labels is not None
        rows = labels.types[0] > 0
        known = frame.labels.types > 0
        np.testing.assert_array_equal(frame.labels.boxes[known], labels.boxes[0][rows].numpy())
        np.testing.assert_array_equal(frame.labels.types[known], labels.types[0][rows].numpy())
        np.testing.assert_array_equal(frame.labels.num_points[known], labels.num_points[0][rows].numpy())
        assert len(set(frame.labels.ids)) == len(frame.labels.ids) == len(frame.labels)


def _training(store: Store, database: Path, kind: str) -> list[torch.Tensor]:
    settings = [setting.replace("DATABASE", str(database)) for setting in SETTINGS[kind]]
    sure = ("training.batch_size=1", "training.steps=6", "augmentation.point_dropout=0")  # so that lengths tell
    config = small_config("seed=11", *sure, *settings)
    return [
        network_input(batch, config, step)[0].values
        for step, batch in enumerate(training_batches(store, config, workers=0))
    ]


def test_every_setting_reaches_training(store: Store, database: Path) -> None:
    plain = _training(store, database, "plain")
    for kind in ("every", "balanced", "sweeps", "returns", "objects", "off"):
        assert any(
            one.shape != other.shape or not torch.equal(one, other)
            for one, other in zip(_training(store, database, kind), plain, strict=True)
        ), kind
    off, objects_off, both_off = (_training(store, database, kind) for kind in ("off", "objects off", "both off"))
    objects = _training(store, database, "objects")
    assert all(len(one) == len(other) for one, other in zip(off, plain, strict=True))
    changed = [len(one) != len(other) for one, other in zip(objects_off, plain, strict=True)]
    assert changed[:3].count(True) >= 2
    assert not any(changed[3:])
    assert [len(one) != len(other) for one, other in zip(both_off, plain, strict=True)][1:] == [False] * 5
    assert any(len(one) != len(other) for one, other in zip(objects[3:], plain[3:], strict=True))


def test_one_segment_alone(store: Store) -> None:
    config = small_config("seed=11")
    assert {frame.context_name for frame in augmented_frames(store, config, 10, "b")} == {"b"}
    with pytest.raises(UserError, match="the first epoch has no frame of segment c"):
        list(augmented_frames(store, config, 10, "c"))


def test_frames_without_labels_are_refused_as_in_training(tmp_path: Path) -> None:
    write_store(tmp_path, {"segment": [make_frame("segment", 1, boxes=None)]})
    with pytest.raises(DataError, match="frame segment at 1 has no labels"):
        list(augmented_frames(Store.open(tmp_path), small_config(), 1))
