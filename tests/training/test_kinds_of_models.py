"""Whole runs of every kind of model: some steps, and detections that can be written and read."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from detection3d.data.store import Store
from detection3d.evaluation.files.objects import read_detections, write_detections
from detection3d.training.checkpoint import last_checkpoint
from detection3d.training.inference import detect_store, load_detector
from detection3d.training.loop import train
from detection3d.training.recorder import read_metrics
from tests.data.made_frames import write_store
from tests.small_run import near_frame, small_config
from tests.training.steps import CPU

PILLARS = (
    "model.backbone={kind: pillar, channels: [8, 8]}",
    "model.voxel_size=[0.5,0.5,6]",
    "model.neck={layers: [1, 1], strides: [1, 2], channels: [8, 8], upsampled_channels: [8, 8]}",
)
ALL_OUTPUTS = (
    "model.heads={classification: [heatmap, quality], box: [offset, height, size, velocity], orientation: [heading]}",
    "loss.iou_weight=1",
    "classes.0.quality_exponent=0.68",
    "data.sweeps=2",
    "decode.local_maxima=true",
)


@pytest.mark.parametrize("pillars", [True, False])
@pytest.mark.parametrize("outputs", [ALL_OUTPUTS, ()])
def test_a_run(tmp_path, pillars, outputs):
    poses = [np.eye(4) for _ in range(4)]
    for number, pose in enumerate(poses):
        pose[0, 3] = number
    frames = [replace(near_frame("segment", 1000 + number), pose=pose) for number, pose in enumerate(poses)]
    write_store(tmp_path / "store", {"segment": frames})
    changes = [*(PILLARS if pillars else ()), *outputs, "training.steps=4", "training.checkpoint_every=4"]
    config = small_config(*changes, data=tmp_path / "store")
    train(config, tmp_path / "run", CPU)
    rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert all(np.isfinite(row[f"loss/{task}"]) for row in rows for task in ("classification", "box", "orientation"))
    checkpoint = last_checkpoint(tmp_path / "run" / "checkpoints")
    assert checkpoint is not None
    detector, step = load_detector(config, checkpoint, torch.device("cpu"))
    assert step == 4
    found = list(detect_store(detector, Store.open(tmp_path / "store"), config, CPU))
    assert len(found) == 4
    assert all(0 < len(item.boxes) <= 20 for item in found)
    write_detections(tmp_path / "detections.parquet", found)
    for read, written in zip(read_detections(tmp_path / "detections.parquet"), found, strict=True):
        assert (read.velocity is None) == (not outputs)
        if written.velocity is not None:
            np.testing.assert_array_equal(read.velocity, written.velocity)
