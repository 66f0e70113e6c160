import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from detection3d.cli.inspect_data import main
from detection3d.cli.inspect_sources import PreparedData, RawData, evenly, recognise
from detection3d.cli.run import run
from detection3d.data.synthetic import RigConfig, tiny_rig, write_segments
from detection3d.data.waymo import read_segment
from detection3d.evaluation.reporting.frame_picture import short_ids
from detection3d.types.scene import Frame
from tests.conftest import ROOT
from tests.data.made_frames import make_frame, write_store
from tests.data.test_argoverse import write_log
from tests.data.test_kitti import write_scan


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two segments of five frames, of few points."""
    folder = tmp_path_factory.mktemp("recordings")
    rig = RigConfig("small", tuple(replace(lidar, columns=lidar.columns // 4) for lidar in tiny_rig().lidars))
    write_segments(folder, 2, 5, 4, rig, interval=1.0, workers=1)
    return folder


@pytest.fixture
def store(tmp_path: Path) -> Path:
    segments = {name: [make_frame(name, 1000 + k, 200, 3) for k in range(6)] for name in ("first", "second")}
    write_store(tmp_path / "store", segments)
    return tmp_path / "store"


def statistics(output: Path) -> dict:
    content = json.loads((output / "statistics.json").read_text())
    assert content["schema_version"] == 1
    return content


def picture_names(frames: list[Frame], suffix: str) -> set[str]:
    return {f"{frame.context_name}_{frame.timestamp_micros}.{suffix}" for frame in frames}


def test_a_raw_file_is_described_and_drawn(recordings: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    file = min(recordings.glob("*.tfrecord"))
    output = tmp_path / "out"
    assert main([str(file), "--frames", "9", "--output", str(output), "--format", "svg", "--config", "tiny"]) == 0
    text = capsys.readouterr().out
    frames = list(read_segment(file))
    assert f"{file}: Waymo v1" in text
    assert "looked at 5 frames of 1 segments, 5 of them with labels" in text
    found = statistics(output)
    assert found["provenance"]["voxel_size"] == [0.1, 0.1, 0.25]
    values = found["statistics"]
    points = [len(frame.points) for frame in frames]
    assert values["points"]["per_frame"]["mean"] == np.mean(points)
    assert f"{np.mean(points):,.0f}" in text
    assert found["warnings"] == []
    assert "nothing suspicious" in text
    assert {path.name for path in output.glob("*.svg")} == picture_names(frames, "svg")
    for frame in frames:
        assert frame.labels is not None
        picture = (output / f"{frame.context_name}_{frame.timestamp_micros}.svg").read_text()
        near = np.abs(frame.labels.boxes[:, :2]).max(axis=1) < 15
        names = np.array(short_ids(frame.labels.ids))[near]
        assert len(names) > 0
        assert all(f"<!-- {name} -->" in picture for name in names)


def test_a_store_is_described_with_its_warnings(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    output = tmp_path / "out"
    assert main([str(store), "--segment", "second", "--frames", "3", "--output", str(output)]) == 0
    text = capsys.readouterr().out
    assert "prepared store" in text
    assert "looked at 3 frames of 1 segments" in text
    # Made frames have boxes at random places.
    warnings = {item["kind"]: item for item in statistics(output)["warnings"]}
    assert warnings["boxes without points"]["value"] > 0.8
    assert f"warning: boxes without points: {warnings['boxes without points']['message']}" in text
    assert sorted(path.name for path in output.glob("*.png")) == [f"second_{1000 + k}.png" for k in (1, 3, 5)]


def test_augmented_frames_differ_by_seed(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    found = []
    for seed in ((), ("--seed", "5")):
        options = ["--augmented", "waymo_voxel", *seed, "--frames", "1", "--output", str(tmp_path / f"out{len(seed)}")]
        assert main([str(store), *options]) == 0
        found.append(statistics(tmp_path / f"out{len(seed)}"))
    assert "augmented as waymo_voxel says" in capsys.readouterr().out
    assert [item["provenance"]["seed"] for item in found] == [0, 5]
    sizes = [item["statistics"]["types"][0]["length"]["mean"] for item in found]
    assert sizes[0] != sizes[1]


def test_frames_without_labels_go_through(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    write_store(tmp_path, {"test": [make_frame("test", k, boxes=None) for k in range(3)]})
    assert main([str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert "looked at 3 frames of 1 segments, 0 of them with labels" in text
    assert "objects" not in text


def test_formats_show_themselves(recordings: Path, store: Path, tmp_path: Path) -> None:
    log = write_log(tmp_path / "logs")
    scans = write_scan(tmp_path / "kitti" / "training")
    for path, kind in (
        (recordings, "Waymo v1"),
        (log, "Argoverse 2"),
        (log.parent, "Argoverse 2"),
        (scans, "KITTI"),
        (scans.parent, "KITTI"),
        (scans / "velodyne", "KITTI"),
        (store, "prepared store"),
    ):
        data = recognise(path)
        assert data.kind == kind
        assert isinstance(data, PreparedData if kind == "prepared store" else RawData)
        if isinstance(data, RawData):
            frames = list(data.frames(100, None))
            assert len(frames) == {"Waymo v1": 10, "Argoverse 2": len(frames), "KITTI": 1}[kind] > 0


def test_v2_shows_itself(shared: Path) -> None:
    folder = shared / "waymo" / "encoded" / "v2"
    for path in (folder, folder / "lidar", next((folder / "lidar").glob("*.parquet"))):
        data = recognise(path)
        assert isinstance(data, RawData)
        assert (data.kind, len(data.sources)) == ("Waymo v2", 1)
    assert len(list(data.frames(2, None))) == 2


def test_frames_are_spread_over_segments_and_within(recordings: Path) -> None:
    data = recognise(recordings)
    assert isinstance(data, RawData)
    every = list(data.frames(10, None))
    keys = [frame.key for frame in every]
    assert len(set(keys)) == 10
    assert [keys.index(frame.key) for frame in data.frames(2, None)] == [2, 7]
    assert [keys.index(frame.key) for frame in data.frames(3, None)] == [2, 6, 8]
    second = keys[5][0]
    for name in (second, data.sources[1].name):
        assert [keys.index(frame.key) for frame in data.frames(1, name)] == [7]


def test_evenly_takes_the_middles() -> None:
    assert evenly(10, 2) == [2, 7]
    assert evenly(9, 3) == [1, 4, 7]
    assert evenly(3, 5) == [0, 1, 2]
    assert evenly(0, 5) == []
    for size in range(1, 40):
        for count in range(1, size + 1):
            places = evenly(size, count)
            assert len(set(places)) == count
            assert np.diff(places).max(initial=1) - np.diff(places).min(initial=size) <= 1
            assert abs(places[0] - (size - 1 - places[-1])) <= 1  # as far from one end as from the other


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (lambda path: None, [], "there is no such file or folder"),
        (lambda path: path.mkdir(), [], "no segment in it (it is empty)"),
        (lambda path: path.write_text("this is not a recording"), [], "not a TFRecord file"),
        (lambda path: (path / "segments").mkdir(parents=True), [], "its preparation did not finish"),
        (lambda path: (path / "log" / "sensors" / "lidar").mkdir(parents=True), [], "it holds no frames"),
        (
            lambda path: write_log(path),
            ["--augmented", "tiny"],
            "--augmented takes a prepared store",
        ),
        (lambda path: write_log(path), ["--segment", "x"], "no segment is called x; there are"),
        (lambda path: write_store(path, {"a": [make_frame("a", 1)]}), ["--segment", "x"], "no segment is called x"),
        (lambda path: write_store(path, {"a": [make_frame("a", 1)]}), ["--config", "x"], "x: no such config file"),
    ],
)
def test_bad_input_is_one_line(make, options, message, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    make(tmp_path / "data")
    assert run(main, [str(tmp_path / "data"), *options]) == 1
    errors = capsys.readouterr().err
    assert errors.startswith("error: ")
    assert message in errors
    assert errors.count("\n") == 1


def test_a_seed_must_be_one(store: Path, capsys: pytest.CaptureFixture) -> None:
    assert run(main, [str(store), "--augmented", "tiny", "--seed", "-1"]) == 1
    assert "seed: Input should be greater than or equal to 0 (found -1)" in capsys.readouterr().err


def test_torch_is_left_alone_without_augmentation(store: Path) -> None:
    code = (
        "import sys; from detection3d.cli.inspect_data import main; "
        f"status = main([{str(store)!r}, '--frames', '1']); sys.exit(status or 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
