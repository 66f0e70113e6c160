"""The evaluation image's scripts, run outside a container: a fresh environment, in which the official op agrees."""

import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from detection3d.evaluation.files.objects import write_detections, write_ground_truth
from tests.conftest import ROOT
from tests.evaluation.builders import found, truth

pytestmark = pytest.mark.slow

MINUTES = 30
FRAMES = 60


def call(*command: Path | str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | variables
    result = subprocess.run(
        [*map(str, command)], capture_output=True, text=True, env=environment, timeout=60 * MINUTES, cwd="/"
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result


@pytest.fixture(scope="module")
def fresh(tmp_path_factory) -> Path:
    """A checkout's copy with an environment of its own, built as the image builds it."""
    python = sys.executable if sys.version_info[:2] == (3, 11) else shutil.which("python3.11")
    if python is None or (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        pytest.skip("Waymo's package needs Python 3.11 on Linux x86_64")
    # As .dockerignore has it: nothing but what goes into the image.
    checkout = tmp_path_factory.mktemp("image") / "detection3d"
    for name in ("configs", "detection3d", "docker", "tools"):
        shutil.copytree(ROOT / name, checkout / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("LICENSE", "README.md", "pyproject.toml"):
        shutil.copy(ROOT / name, checkout / name)
    script = checkout / "docker/evaluation_environment.sh"
    first = call(script, "--packages", checkout / "env", PYTHON=python)
    assert "the packages are in" in first.stdout
    slimmed = call(checkout / "docker/slim_environment.sh", checkout / "env")
    assert "slimmed" in slimmed.stdout
    assert "finished: " in call(script, checkout / "env", PYTHON=python).stdout
    assert "nothing to do" in call(script, checkout / "env", PYTHON=python).stdout
    return checkout


def write_random_frames(folder: Path) -> None:
    """Boxes near labels and far from them, equal scores and equal boxes, frames with one side alone."""
    rng = np.random.default_rng(7)
    detections, labels = [], []
    for number in range(FRAMES):
        key = ("segment", 100_000 * number)
        objects = 0 if number % 20 == 3 else int(rng.integers(1, 30))
        boxes = np.column_stack(
            [
                rng.uniform(-70, 70, (objects, 2)),
                rng.uniform(-1, 2, objects),
                rng.uniform(0.5, 5, (objects, 3)),
                rng.uniform(-9, 9, objects),
            ]
        )
        types = rng.choice([1, 2, 3, 4], objects)
        near = np.repeat(np.arange(objects), rng.integers(0, 4, objects))
        jitter = (
            rng.normal(0, 1, (len(near), 7)) * [0.2, 0.2, 0.1, 0.1, 0.1, 0.1, 0.3] * rng.integers(0, 2, (len(near), 1))
        )
        scores = np.round(rng.random(len(near)), int(rng.integers(1, 4)))
        if number % 20 != 5:
            in_zone = rng.random(len(near)) < 0.1
            detections.append(found(boxes[near] + jitter, scores, types[near], in_zone, key))
        labels.append(truth(boxes, rng.integers(1, 3, objects), types, key))
    write_detections(folder / "d.bin", detections)
    write_ground_truth(folder / "g.parquet", labels)


def test_the_official_op_agrees_in_a_fresh_environment(fresh, tmp_path):
    write_random_frames(tmp_path)
    python = fresh / "env/bin/python"
    cache = tmp_path / "cache"
    call(fresh / "docker/warm_caches.sh", python, cache)
    before = sorted(cache.rglob("*"))
    assert any(path.suffix == ".nbc" for path in before)
    results = {}
    for backend in ("native", "official"):
        output = tmp_path / backend
        call(
            fresh / "docker/evaluate.sh",
            *("--predictions", tmp_path / "d.bin", "--ground-truth", tmp_path / "g.parquet"),
            *("--output", output, "--backend", backend),
            DETECTION3D_PYTHON=str(python),
            DETECTION3D_CACHE=str(cache),
        )
        assert (output / "report.html").stat().st_size > 10_000
        results[backend] = json.loads((output / "metrics.json").read_text())
    assert sorted(cache.rglob("*")) == before, "the cache is copied, not written to"
    native, official = (results[name]["breakdowns"] for name in ("native", "official"))
    assert list(native) == list(official)
    assert len(native) >= 32
    for name, row in native.items():
        for value in ("AP", "APH"):
            assert np.float32(row[value]) == np.float32(official[name][value]), name
    assert native["OBJECT_TYPE_TYPE_VEHICLE_LEVEL_2"]["AP"] > 0.2
