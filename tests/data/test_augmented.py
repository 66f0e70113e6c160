from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from detection3d.config import Config
from detection3d.data.augment import augment
from detection3d.data.augmented import augmented_frame
from detection3d.data.loader import build_loader
from detection3d.data.store import Store
from detection3d.data.unpack import unpack
from detection3d.errors import DataError
from detection3d.geometry.host.poses import transform_points
from detection3d.types.scene import Frame
from tests.data.made_frames import make_frame, write_store
from tests.small_run import small_config

FRAMES = 5


@pytest.fixture
def store(tmp_path: Path) -> Store:
    frames = [make_frame("segment", 1000 + number, 300, 4) for number in range(FRAMES)]
    write_store(tmp_path, {"segment": [replace(frame, no_label_zones=(zone_at_boxes(frame),)) for frame in frames]})
    return Store.open(tmp_path)


def zone_at_boxes(frame: Frame) -> np.ndarray:
    """A zone with its corners at the boxes' centres, so that it must go where they go."""
    assert frame.labels is not None
    centres = frame.labels.boxes[:, :3].astype(np.float64)
    return transform_points(frame.pose, np.column_stack([centres[:, :2], np.zeros(len(centres))]))[:, :2]


@pytest.mark.parametrize("epoch", [0, 2])
@pytest.mark.parametrize("overrides", [(), ("data.returns=[2]", "data.drop_no_label_zone_points=true")])
def test_frames_are_those_that_training_sees(store: Store, overrides: tuple[str, ...], epoch: int) -> None:
    config = small_config("seed=11", *overrides)
    seen = training_samples(store, config, epoch)
    for number in range(FRAMES):
        frame = augmented_frame(store, number, config, epoch)
        points, boxes, velocity = seen[frame.key]
        np.testing.assert_array_equal(frame.points, points)
        assert frame.labels is not None
        np.testing.assert_array_equal(frame.labels.boxes, boxes)
        np.testing.assert_array_equal(frame.labels.velocity[:, :2], velocity)


def training_samples(store: Store, config: Config, epoch: int) -> dict[tuple[str, int], tuple[np.ndarray, ...]]:
    """Return points, boxes and velocities of an epoch's samples by key, on the way that the training goes."""
    samples = {}
    batches = build_loader(
        store, global_batch_size=1, seed=config.seed, total_steps=FRAMES * (epoch + 1), start_step=FRAMES * epoch
    )
    data = config.data
    for batch in batches:
        points = unpack(batch.points, returns=data.returns, drop_no_label_zone=data.drop_no_label_zone_points)
        points, labels = augment(
            points, batch.labels, config=config.augmentation, seed=config.seed, sample_index=batch.sample_index
        )
        tensors = (points.values, labels.boxes[0], labels.velocity[0])
        samples[batch.keys[0]] = tuple(tensor.numpy() for tensor in tensors)
    return samples


def test_what_belongs_to_a_point_stays_with_it(store: Store) -> None:
    before, frame = store.frame(3), augmented_frame(store, 3, small_config("augmentation.point_dropout=0.9"))
    assert 0 < len(frame.points) < len(before.points)
    # Intensity and elongation aren't touched, and no two points share both.
    places = {tuple(values): place for place, values in enumerate(before.points[:, 3:].tolist())}
    assert len(places) == len(before.points)
    left = [places[tuple(values)] for values in frame.points[:, 3:].tolist()]
    np.testing.assert_array_equal(frame.lidar, before.lidar[left])
    np.testing.assert_array_equal(frame.return_number, before.return_number[left])
    np.testing.assert_array_equal(frame.in_no_label_zone, before.in_no_label_zone[left])


def test_zones_go_where_the_boxes_go(store: Store) -> None:
    for number in range(FRAMES):
        before, frame = store.frame(number).labels, augmented_frame(store, number, small_config())
        assert before is not None
        assert frame.labels is not None
        np.testing.assert_array_equal(frame.pose, np.eye(4))
        np.testing.assert_allclose(frame.no_label_zones[0], frame.labels.boxes[:, :2], atol=2e-3)
        assert np.abs(frame.labels.boxes[:, :2] - before.boxes[:, :2]).max() > 1


def test_other_seeds_and_epochs_differ_and_the_generator_stays(store: Store) -> None:
    state = torch.get_rng_state()
    first, again, epoch, seed = (
        augmented_frame(store, 0, small_config(f"seed={seed}"), epoch).points[:5]
        for seed, epoch in ((1, 0), (1, 0), (1, 1), (2, 0))
    )
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, epoch)
    assert not np.array_equal(first, seed)
    assert torch.equal(state, torch.get_rng_state())


def test_frames_without_labels_are_refused_as_in_training(tmp_path: Path) -> None:
    write_store(tmp_path, {"segment": [make_frame("segment", 1, boxes=None)]})
    with pytest.raises(DataError, match="frame segment at 1 has no labels"):
        augmented_frame(Store.open(tmp_path), 0, small_config())
