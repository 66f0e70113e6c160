"""The base package as a user of the metrics alone gets it: pip into an empty environment, no torch, no TensorFlow."""

import json
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from detection3d.evaluation.files.objects import write_detections, write_ground_truth
from tests.conftest import ROOT
from tests.evaluation.builders import box, found, truth

REPORT = """
import importlib.util, json
names = ("torch", "tensorflow", "waymo_open_dataset")
print(json.dumps([name for name in names if importlib.util.find_spec(name)]))
"""


def environment(folder: Path, **more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "NUMBA_CACHE_DIR")}
    return {**kept, "PYTHONSAFEPATH": "1", "MPLCONFIGDIR": str(folder), **more}


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of programs of an environment with the base package, installed as from a wheel."""
    python = sys.executable if sys.version_info[:2] == (3, 11) else shutil.which("python3.11")
    if python is None:
        pytest.skip("no python3.11 on this machine")
    folder = tmp_path_factory.mktemp("base") / "venv"
    if python == sys.executable:
        venv.create(folder, with_pip=True)
    else:
        subprocess.run([python, "-m", "venv", folder], check=True)
    command = [folder / "bin/python", "-m", "pip", "--disable-pip-version-check", "install", "--quiet", str(ROOT)]
    result = subprocess.run(command, env=environment(folder), capture_output=True, text=True, timeout=900)
    if result.returncode and "No matching distribution" in result.stderr + result.stdout:
        pytest.skip(f"pip reaches no package index: {result.stderr.splitlines()[-1]}")
    assert result.returncode == 0, result.stderr
    return folder / "bin"


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    boxes = [box(10), box(20)]
    write_detections(tmp_path / "predictions.parquet", [found(boxes)])
    write_ground_truth(tmp_path / "ground_truth.bin", [truth(boxes)])
    return ["--predictions", "predictions.parquet", "--ground-truth", "ground_truth.bin", "--output", "results"]


def check(tmp_path: Path) -> None:
    content = json.loads((tmp_path / "results/metrics.json").read_text())
    assert content["breakdowns"]["OBJECT_TYPE_TYPE_VEHICLE_LEVEL_2"]["AP"] == pytest.approx(1.0, abs=2e-7)
    assert (tmp_path / "results/report.html").stat().st_size > 1000


@pytest.mark.slow
def test_the_metrics_work_without_torch_and_tensorflow(installed: Path, tmp_path: Path, arguments: list[str]):
    found_packages = subprocess.run(
        [installed / "python", "-c", REPORT], env=environment(tmp_path), capture_output=True, text=True, check=True
    )
    assert json.loads(found_packages.stdout) == []
    for program in ([installed / "detection3d-waymo-metrics"], [installed / "python", ROOT / "tools/waymo_metrics.py"]):
        shutil.rmtree(tmp_path / "results", ignore_errors=True)
        command = [*program, *arguments]
        ended = subprocess.run(command, cwd=tmp_path, env=environment(tmp_path), capture_output=True, text=True)
        assert ended.returncode == 0, ended.stderr
        check(tmp_path)


@pytest.mark.slow
def test_the_official_backend_is_refused_with_advice(installed: Path, tmp_path: Path, arguments: list[str]):
    command = [installed / "detection3d-waymo-metrics", *arguments, "--backend", "official"]
    ended = subprocess.run(command, cwd=tmp_path, env=environment(tmp_path), capture_output=True, text=True)
    assert ended.returncode == 1
    assert "make evaluation-env" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.slow
@pytest.mark.skipif(os.getuid() == 0 and shutil.which("setpriv") is None, reason="root may write everywhere")
def test_an_installation_that_cannot_be_written_to(installed: Path, tmp_path: Path, arguments: list[str]):
    """As in a container that runs as another user without a home."""
    (tmp_path / "results").mkdir()
    for path in (tmp_path, *tmp_path.rglob("*")):
        path.chmod(0o777)
    for path in (*tmp_path.parents, *installed.parents):
        if path.is_relative_to("/tmp") and path != Path("/tmp"):
            path.chmod(path.stat().st_mode | 0o055)
    for cache in installed.parent.rglob("*.nb[ic]"):
        cache.unlink()
    user = ["setpriv", "--reuid=12345", "--regid=12345", "--clear-groups"] if os.getuid() == 0 else []
    library = next(installed.parent.glob("lib/python*/site-packages/detection3d"))
    modes = {path: path.stat().st_mode for path in (library, *library.rglob("*")) if path.is_dir()}
    for path in modes:
        path.chmod(0o555)
    try:
        ended = subprocess.run(
            [*user, installed / "detection3d-waymo-metrics", *arguments],
            cwd=tmp_path,
            env=environment(tmp_path, HOME="/nonexistent", TMPDIR=str(tmp_path)),
            capture_output=True,
            text=True,
        )
    finally:
        for path, mode in modes.items():
            path.chmod(mode)
    assert ended.returncode == 0, ended.stderr
    assert f"compiled code is kept in {tmp_path}/detection3d-numba-" in ended.stdout
    check(tmp_path)
