"""Several sweeps in one sample, against plain numpy on the frames themselves."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from detection3d.config_file import load_config
from detection3d.data.argoverse import read_log
from detection3d.data.collate import collate
from detection3d.data.loader import build_loader, evaluation_batches
from detection3d.data.store import Store
from detection3d.data.unpack import unpack
from detection3d.errors import UserError
from detection3d.geometry.host.poses import pose_from_angles
from detection3d.model.detector import Detector
from detection3d.multitask import Sum, TaskFork
from detection3d.types.scene import Frame
from tests.data.made_frames import make_frame, write_store

TIMES = {"a": (1_000_000, 1_100_000, 1_250_000, 1_300_000), "b": (7_000_000,)}


def _frame(name: str, number: int, time: int) -> Frame:
    """A frame of a vehicle that drives in a curve, far from the origin."""
    angles = np.array([0.01 * number, -0.02, 2.5 + 0.3 * number])
    pose = pose_from_angles(angles, np.array([41_000.0 + 1.5 * number, -9_000.0 + 0.7 * number, 12.0]))
    return replace(make_frame(name, time, points=30 + number), pose=pose)


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    root = tmp_path_factory.mktemp("store")
    segments = {name: [_frame(name, n, t) for n, t in enumerate(times)] for name, times in TIMES.items()}
    write_store(root, segments)
    return Store.open(root)


def _expected(store: Store, newest: int, sweeps: int) -> np.ndarray:
    """Go through the global frame, frame by frame, in float64."""
    last = store.frame(newest)
    rows = []
    for back in range(sweeps):
        frame = store.frame(newest - back) if newest - back >= 0 else last
        if back and (newest - back < 0 or frame.context_name != last.context_name):
            break
        homogeneous = np.column_stack([frame.points[:, :3].astype(np.float64), np.ones(len(frame.points))])
        there = np.linalg.solve(last.pose, frame.pose @ homogeneous.T).T[:, :3]
        age = np.full(len(there), (last.timestamp_micros - frame.timestamp_micros) / 1e6)
        rows.append(np.column_stack([there, frame.points[:, 3:], age]))
    return np.concatenate(rows)


@pytest.mark.parametrize("sweeps", [2, 3, 10])
def test_points_of_earlier_sweeps_come_into_the_newest_frame_with_their_age(store, sweeps):
    frames = [3, 0, 4, 2]
    batch = collate(store, frames, range(4), sweeps)
    points = unpack(batch.points)
    expected = [_expected(store, frame, sweeps) for frame in frames]
    assert batch.points.counts.tolist() == [len(rows) for rows in expected]
    assert points.batch_index.tolist() == [n for n, rows in enumerate(expected) for _ in rows]
    # coordinates up to 80 m in float32, turned once, after a transform rounded to float32
    np.testing.assert_allclose(points.values.numpy(), np.concatenate(expected), rtol=0, atol=5e-5)
    assert batch.points.sweeps is not None
    assert batch.points.sweeps.age[:2].tolist() == [0.0, pytest.approx(0.05)]


def test_the_newest_sweep_keeps_every_bit(store):
    alone, merged = (unpack(collate(store, [3], [0], sweeps).points).values for sweeps in (1, 4))
    assert alone.shape[1] == 5
    assert torch.equal(merged[: len(alone), :5], alone)
    assert (merged[: len(alone), 5] == 0).all()


def test_returns_and_zones_are_chosen_in_all_sweeps(store):
    batch = collate(store, [3], [0], 3)
    frames = [store.frame(number) for number in (3, 2, 1)]
    for returns in ([1], [2]):
        wanted = sum(int(((f.return_number == returns[0]) & ~f.in_no_label_zone).sum()) for f in frames)
        assert len(unpack(batch.points, returns=returns, drop_no_label_zone=True).values) == wanted


@pytest.mark.parametrize("workers", [0, 1])
def test_the_loader_merges_sweeps(store, workers):
    for batch in evaluation_batches(store, batch_size=2, workers=workers, sweeps=2):
        frames = [number for number in range(5) for key in batch.keys if store.key(number) == key]
        assert torch.equal(batch.points.xyz, collate(store, frames, frames, 2).points.xyz)
    (batch,) = build_loader(store, global_batch_size=3, seed=0, total_steps=1, sweeps=3, workers=workers)
    assert batch.points.sweeps is not None


def test_a_detector_takes_the_age(store):
    config = load_config("tiny", ["data.sweeps=3"])
    detector = Detector(config, TaskFork(("classification", "box", "orientation"), Sum()), torch.device("cpu")).eval()
    points = unpack(collate(store, [3], [0], 3).points)
    points = replace(points, values=points.values * torch.tensor([0.1, 0.1, 0.03, 1, 1, 1]))  # into its range
    voxels = detector.voxelizer(points, 1)
    assert voxels.features.shape == (len(voxels.indices), 6)
    assert len(voxels.indices) > 50
    cell = voxels.indices[:, [3, 2, 1]].double()
    low, size = np.array(config.model.point_range[:3]), np.array(config.model.voxel_size)
    for row in range(len(cell)):
        inside = (np.floor((points.values[:, :3].double().numpy() - low) / size) == cell[row].numpy()).all(1)
        assert float(voxels.features[row, 5]) == pytest.approx(float(points.values[inside, 5].mean()), abs=1e-6)
    with torch.no_grad():
        now = detector.detect(points, 1).maps["classification"]
        aged = replace(points, values=points.values + torch.tensor([0, 0, 0, 0, 0, 1.0]))
        older = detector.detect(aged, 1).maps["classification"]
    assert not torch.equal(now, older)


def test_data_without_poses_or_without_sequences_can_not_be_merged(tmp_path):
    still = [replace(make_frame("a", time), pose=np.eye(4)) for time in range(3)]
    moving = [replace(frame, context_name="b", pose=_frame("b", n, n).pose) for n, frame in enumerate(still * 2)]
    moving = [replace(frame, timestamp_micros=n) for n, frame in enumerate(moving)]
    write_store(tmp_path / "still", {"a": still, "b": moving})
    write_store(tmp_path / "single", {"a": [make_frame("a", 1)], "b": [make_frame("b", 1)]})
    everywhere = (-75.0, -75.0, -2.0, 75.0, 75.0, 4.0)
    with pytest.raises(UserError, match=r"data.sweeps is 2, but the frames of a in .*still have no poses"):
        Store.open(tmp_path / "still").require([1, 2], everywhere, 2)
    with pytest.raises(UserError, match=r"every segment of .*single is a single frame"):
        Store.open(tmp_path / "single").require([1, 2], everywhere, 2)
    Store.open(tmp_path / "still").require([1, 2], everywhere, 1)


def test_real_sweeps_of_a_turning_vehicle_fall_into_place(shared, tmp_path):
    """Walls and cars of the sweep before lie on those of the newest only if the vehicle's motion is taken out."""
    log = shared / "real" / "argoverse2" / "7fab2350-7eaf-3b7e-a39d-6937a4c1bede"
    write_store(tmp_path, {log.name: list(read_log(log))})
    store = Store.open(tmp_path)
    merged = unpack(collate(store, [1], [0], 2).points).values.double()
    newest, before = merged[merged[:, 5] == 0, :3], merged[merged[:, 5] > 0, :3]
    apart = unpack(collate(store, [0], [0]).points).values.double()[:, :3]
    raised = (apart[:, 2] > 0.5) & (apart[:, :2].norm(dim=1) < 40) & (apart[:, :2].norm(dim=1) > 4)
    chosen = raised.nonzero()[::20, 0]
    moved, unmoved = (
        torch.cdist(points[chosen], newest[newest[:, 2] > 0.3]).min(1).values.median() for points in (before, apart)
    )
    assert float(moved) < 0.6 * float(unmoved) < 0.1
