"""A run so small that a step takes some 50 ms: settings, frames, and the tools as processes."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from detection3d.config import Config
from detection3d.config_file import load_config
from detection3d.types.scene import Frame
from tests.conftest import ROOT
from tests.data.made_frames import make_frame, write_store

SETTINGS = (
    "data.workers=0",
    "model.point_range=[-16,-16,-2,16,16,4]",
    "model.voxel_size=[0.25,0.25,0.25]",
    "model.backbone={channels: [4,4,8,8], blocks: [0,1,0,0], out_channels: 8}",
    "model.neck={layers: [1], strides: [1], channels: [8], upsampled_channels: [8]}",
    "model.shared_channels=8",
    "model.head_channels=8",
    "multitask.method={kind: graddrop}",
    "augmentation={flip_x: 0.5, flip_y: 0.5, rotation: 0.5, scale: 0.05, translation: 0.1, point_dropout: 0.1}",
    "training={steps: 6, batch_size: 2, learning_rate: 0.002, warmup: 0.3, ema_decay: 0.9, log_every: 1,"
    " checkpoint_every: 3, keep_checkpoints: 5}",
    "decode={score_threshold: 0.0, max_peaks: 20, max_detections: 20}",
)


def small_config(*overrides: str, data: Path | None = None) -> Config:
    return load_config("tiny", small_settings(*overrides, data=data))


def small_settings(*overrides: str, data: Path | None = None) -> list[str]:
    where = "null" if data is None else str(data)
    return [*SETTINGS, f"data.train={where}", f"data.validation={where}", *overrides]


def near_frame(context_name: str, timestamp: int, points: int = 400, boxes: int | None = 4) -> Frame:
    """A frame whose points and boxes lie inside the small range."""
    frame = make_frame(context_name, timestamp, points, boxes)
    values = frame.points * np.float32([0.18, 0.18, 0.02, 1, 1])
    labels = frame.labels
    if labels is not None:
        inside = labels.boxes * np.float32([0.2, 0.2, 0.02, 1, 1, 1, 1])
        labels = replace(labels, boxes=inside, num_points=labels.num_points + 1)
    return replace(frame, points=values, labels=labels)


def write_small_store(root: Path, frames: int = 5, **changes: int | None) -> Path:
    write_store(root, {"segment": [near_frame("segment", 1000 + number, **changes) for number in range(frames)]})
    return root


def tool(name: str, *arguments: object) -> list[str]:
    return [sys.executable, str(ROOT / "tools" / f"{name}.py"), *map(str, arguments)]


def environment(**changes: str) -> dict[str, str]:
    """The environment of a tool's process: one thread, so that several of them don't wait for each other."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", **changes}


def run_tool(name: str, *arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        tool(name, *arguments), cwd=cwd, env=environment(), capture_output=True, text=True, timeout=120, check=False
    )


def group_ends(group: int, seconds: float) -> bool:
    """Whether every process of the group is gone in time; those that aren't are killed."""
    deadline = time.monotonic() + seconds
    try:
        while time.monotonic() < deadline:
            os.killpg(group, 0)
            time.sleep(0.05)
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        return True
    return False
