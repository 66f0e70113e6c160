"""Waymo's own code, run in the evaluation environment, and our reader find the same in the same files.

The tolerances are the official code's own rounding: it computes in float32, TOP's points by way of global coordinates
of some 10 km, where neighbouring float32 numbers lie 1 mm apart; the other lidars' stay within the vehicle frame.
"""

import dataclasses
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from detection3d.benchmark.official import DECODER_SCRIPT
from detection3d.data.synthetic.rigs import full_rig, tiny_rig
from detection3d.data.synthetic.scene import SceneConfig
from detection3d.data.synthetic.write import write_segments
from detection3d.data.waymo import read_component_segment, read_segment
from detection3d.types.scene import Frame, Lidar

pytestmark = pytest.mark.slow

TOP_TOLERANCE, OTHER_TOLERANCE = 5e-3, 1e-4
FLOAT32_STEP = 2.0**-23  # relative; our labels are float32
Arrays = dict[str, np.ndarray]


def official_frames(python: Path, file: Path, output: Path) -> Iterator[Arrays]:
    """What the official code decodes, frame by frame, by the names that the script describes."""
    command = [str(python), "-I", str(DECODER_SCRIPT), "write", str(file), str(output)]
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=900)
    assert result.returncode == 0, result.stderr
    with np.load(output) as archive:
        content = dict(archive)
    for number in range(1 + max(int(name.split("/")[0]) for name in content)):
        start = f"{number}/"
        yield {name.removeprefix(start): value for name, value in content.items() if name.startswith(start)}


def assert_same_points(frame: Frame, official: Arrays) -> None:
    start = 0
    for number in (1, 2):
        for lidar in Lidar.TOP, Lidar.FRONT, Lidar.SIDE_LEFT, Lidar.SIDE_RIGHT, Lidar.REAR:
            cloud = official[f"points/{number}/{lidar}"]  # range, intensity, elongation, x, y, z
            part = slice(start, start + len(cloud))
            assert (frame.lidar[part] == lidar).all()
            assert (frame.return_number[part] == number).all()
            tolerance = TOP_TOLERANCE if lidar == Lidar.TOP else OTHER_TOLERANCE
            np.testing.assert_allclose(frame.points[part, :3], cloud[:, 3:], rtol=0, atol=tolerance)
            np.testing.assert_array_equal(frame.points[part, 3:], cloud[:, 1:3])
            np.testing.assert_array_equal(frame.in_no_label_zone[part], official[f"in_zone/{number}/{lidar}"])
            start = part.stop
    assert start == len(frame.points) > 1000


def assert_same_labels(frame: Frame, official: Arrays) -> None:
    labels = frame.labels
    assert labels is not None
    assert labels.ids == tuple(official["labels/id"].tolist())
    assert len(labels) > 5
    boxes = official["labels/box"]
    np.testing.assert_allclose(labels.boxes[:, :6], boxes[:, :6], rtol=FLOAT32_STEP)
    turns = (labels.boxes[:, 6] - boxes[:, 6]) / (2 * np.pi)
    np.testing.assert_allclose(turns, np.round(turns), atol=1e-7)
    np.testing.assert_array_equal(labels.types, official["labels/type"])
    np.testing.assert_array_equal(labels.difficulty, official["labels/difficulty"])
    np.testing.assert_array_equal(labels.num_points, official["labels/num_points"])
    # Ours are in the vehicle's axes; the pose turns them back into the file's global ones.
    for ours, name in ((labels.velocity, "speed"), (labels.acceleration, "acceleration")):
        np.testing.assert_allclose(ours @ frame.pose[:3, :3].T, official[f"labels/{name}"], rtol=0, atol=1e-5)


def assert_same_frame(frame: Frame, official: Arrays) -> None:
    for name in ("context_name", "timestamp_micros", "time_of_day", "location", "weather"):
        assert getattr(frame, name) == official[name].item()
    np.testing.assert_array_equal(frame.pose, official["pose"])
    assert_same_points(frame, official)
    assert_same_labels(frame, official)


def assert_same_zones(frame: Frame, official: Arrays) -> None:
    zones = sorted(name for name in official if name.startswith("zones/"))
    assert len(zones) == len(frame.no_label_zones)
    for index, zone in enumerate(frame.no_label_zones):
        np.testing.assert_array_equal(zone, official[f"zones/{index}"])


@pytest.mark.parametrize("rig", [tiny_rig(), full_rig()], ids=lambda rig: rig.name)
def test_synthetic_files(evaluation_python: Path, tmp_path: Path, rig) -> None:
    scene = dataclasses.replace(SceneConfig(), zone_share=1.0)
    (report,) = write_segments(tmp_path, 1, 3, 11, rig, scene)
    pairs = list(
        zip(
            read_segment(report.path),
            official_frames(evaluation_python, report.path, tmp_path / "official.npz"),
            strict=True,
        )
    )
    for frame, official in pairs:
        assert_same_frame(frame, official)
        assert_same_zones(frame, official)
    # What is compared is there to differ.
    frames = [frame for frame, _ in pairs]
    assert len(frames) == 3
    assert all(frame.no_label_zones for frame in frames)
    assert any(frame.in_no_label_zone.any() for frame in frames)
    assert all(set(np.unique(frame.return_number)) == {1, 2} for frame in frames)
    assert all(np.linalg.norm(frame.labels.velocity, axis=1).max() > 1 for frame in frames if frame.labels)


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_real_scans(evaluation_python: Path, shared: Path, tmp_path: Path, version: str) -> None:
    encoded = shared / "waymo" / "encoded" / version
    (file,) = encoded.glob("*.tfrecord") if version == "v1" else (encoded / "lidar").glob("*.parquet")
    frames = list(read_segment(file) if version == "v1" else read_component_segment(file))
    pairs = list(zip(frames, official_frames(evaluation_python, file, tmp_path / "official.npz"), strict=True))
    assert len(pairs) == 3
    for frame, official in pairs:
        assert_same_frame(frame, official)
        if version == "v1":  # v2 has no polygons
            assert_same_zones(frame, official)
