from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from detection3d.data.store import Store
from detection3d.errors import DataError, UserError
from detection3d.evaluation import overlaps_no_label_zone
from detection3d.evaluation.files.objects import write_detections
from detection3d.geometry.host.poses import pose_from_angles
from detection3d.training.checkpoint import load_checkpoint, save_checkpoint
from detection3d.training.inference import detect_store, load_detector, load_run_config
from detection3d.training.loop import train
from detection3d.training.run_folder import open_run
from detection3d.training.state import build_detector
from detection3d.training.step import train_step
from tests.data.made_frames import write_store
from tests.small_run import near_frame, small_config
from tests.training.steps import CPU, batches, fresh_state


def trained_checkpoint(folder: Path, store: Path, *settings: str) -> Path:
    config = small_config(*settings)
    state = fresh_state(config)
    for batch in batches(config, store, 3):
        train_step(state, batch, config)
    return save_checkpoint(folder, state.step, state.capture(), keep=1)


def test_the_averaged_weights_are_used(tmp_path, store):
    path = trained_checkpoint(tmp_path, store)
    saved = load_checkpoint(path)
    detector, step = load_detector(small_config(), path, CPU)
    assert step == 3
    assert not detector.training
    for name, value in detector.state_dict().items():
        assert torch.equal(value, saved["average"][f"module.{name}"])
    assert not torch.equal(detector.shared.weight, saved["model"]["shared.weight"])


def test_without_an_average_the_weights_themselves(tmp_path, store):
    path = trained_checkpoint(tmp_path, store, "training.ema_decay=0")
    detector, _ = load_detector(small_config("training.ema_decay=0"), path, CPU)
    saved = load_checkpoint(path)["model"]
    assert all(torch.equal(value, saved[name]) for name, value in detector.state_dict().items())


def test_weights_of_another_network_are_refused(tmp_path, store):
    path = trained_checkpoint(tmp_path, store)
    with pytest.raises(DataError, match="the weights do not fit the network of this config"):
        load_detector(small_config("model.head_channels=4"), path, CPU)


def test_every_frame_in_order_and_the_same_in_any_batch(tmp_path, store):
    path = trained_checkpoint(tmp_path, store)
    opened = Store.open(store)
    found = []
    for size in (1, 2, 5):
        config = small_config(f"training.batch_size={size}")
        done: list[int] = []
        detector, _ = load_detector(config, path, CPU)
        found.append(list(detect_store(detector, opened, config, CPU, done.append)))
        assert [item.key for item in found[-1]] == [opened.key(index) for index in range(len(opened))]
        assert done[-1] == len(opened)
        assert done == sorted(done)
    for other in found[1:]:
        for left, right in zip(found[0], other, strict=True):
            assert len(left.boxes) == 20
            np.testing.assert_allclose(left.scores, right.scores, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("task", ["classification", "box", "orientation"])
def test_a_head_that_is_not_finite_is_not_taken_for_an_empty_street(tmp_path, store, task):
    detector, _ = load_detector(small_config(), trained_checkpoint(tmp_path, store), CPU)
    with torch.no_grad():
        detector.heads[task].output.bias[0] = float("nan")  # of the vehicles alone, for the classification
    found = list(detect_store(detector, Store.open(store), small_config(), CPU))
    with pytest.raises(UserError, match=r"frame segment at 1000: (detection 0 has score nan|box 0 .*is not finite)"):
        write_detections(tmp_path / "detections.parquet", found)


def test_detections_over_points_of_a_no_label_zone_are_flagged(tmp_path, store):
    path = trained_checkpoint(tmp_path, store)
    frames = [near_frame("zones", 1000 + number, points=800) for number in range(3)]
    left = frames[0].points[:, 1] > 0
    frames[0] = replace(frames[0], in_no_label_zone=left)
    frames[1] = replace(frames[1], in_no_label_zone=np.zeros_like(left))
    frames[2] = replace(frames[2], in_no_label_zone=np.ones_like(left))
    write_store(tmp_path / "zones", {"zones": frames})
    config = small_config("training.batch_size=2")  # so that the flags' frames are counted over the batches
    detector, _ = load_detector(config, path, CPU)
    opened = Store.open(tmp_path / "zones")
    found = list(detect_store(detector, opened, config, CPU))
    for index, item in enumerate(found):
        frame = opened.frame(index)
        expected = overlaps_no_label_zone(item.boxes, frame.points[frame.in_no_label_zone, :3])
        np.testing.assert_array_equal(item.overlaps_no_label_zone, expected)
    flagged = [item.overlaps_no_label_zone.sum() for item in found]
    assert flagged[1] == 0
    assert flagged[2] > 0


def test_a_run_gives_its_own_config(tmp_path, store):
    with open_run(tmp_path / "run", small_config("seed=6")):
        pass
    config = load_run_config(tmp_path / "run", ["data.validation=elsewhere"])
    assert config == small_config("seed=6", "data.validation=elsewhere")
    with pytest.raises(UserError, match=r"not a run folder, since it holds no config.yaml"):
        load_run_config(store, [])


def test_training_and_detecting_leave_the_global_generator_to_the_checkpoint(tmp_path, store):
    """What is drawn between runs must not reach a run: its own generator comes from seed or checkpoint."""
    config = small_config("training.steps=2", data=store)
    train(config, tmp_path / "first", CPU)
    torch.rand(7)
    train(config, tmp_path / "second", CPU)
    first, second = (
        load_checkpoint(tmp_path / name / "checkpoints" / "step_00000002.pt") for name in ("first", "second")
    )
    assert torch.equal(first["generator"], second["generator"])


def test_detection_merges_the_sweeps_that_training_did(tmp_path):
    frames = [
        replace(near_frame("a", 1000 + number), pose=pose_from_angles(np.zeros(3), [number, 0, 0]))
        for number in range(4)
    ]
    write_store(tmp_path / "store", {"a": frames})
    store = Store.open(tmp_path / "store")
    config = small_config("data.sweeps=3", "decode.score_threshold=0")
    detector = build_detector(config, CPU).eval()
    seen = []
    detector.voxelizer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].values))
    assert [found.key for found in detect_store(detector, store, config, CPU)] == [frame.key for frame in frames]
    merged = torch.cat(seen)
    assert merged.shape == (400 * (1 + 2 + 3 + 3), 6)
