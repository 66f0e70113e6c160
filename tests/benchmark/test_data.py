"""Timing the way from a recording to the detector: every stage that there is input for, and no other."""

import json
from itertools import count
from pathlib import Path

import pytest

from detection3d.benchmark import data
from detection3d.cli.benchmark import main
from detection3d.cli.prepare_waymo import find_sources
from detection3d.data.object_database import build_database
from detection3d.data.store import Store
from detection3d.errors import UserError
from tests.data.waymo.conftest import build_frame
from tests.data.waymo.made_components import components, messages, write
from tests.data.waymo.test_frames import write as write_records
from tests.small_run import write_small_store


def test_all_stages(tmp_path: Path, capsys) -> None:
    frames = messages(build_frame, 4)
    v1, v2 = write_records(tmp_path / "a.tfrecord", frames), write(tmp_path / "v2", components(frames))
    store = write_small_store(tmp_path / "store")
    small = ["--rounds", "2", "--frames", "3", "--reads", "20", "--steps", "2", "--batch-size", "2", "--workers", "1"]
    build_database(Store.open(store), tmp_path / "objects", min_points=1)
    command = ["data", "--device", "cpu", "--v1", str(v1), "--v2", str(v2), "--data", str(store), *small]
    command += ["--objects", str(tmp_path / "objects")]
    assert main([*command, "--output", str(tmp_path / "rates.json")]) == 0
    told = capsys.readouterr().out
    assert "5 frames of 400 points" in told
    rates = json.loads((tmp_path / "rates.json").read_text())["frames_per_second"]
    stages = ["decode v1, one core", "decode v2, one core", "prepare v1, one segment", "prepare v2, one segment"]
    assert list(rates) == [*stages, "random read, one core", "load and augment", "the same, with objects"]
    assert all(rate > 0 for rate in rates.values())
    assert all(f"{rate:.2f} frames/s" in told for rate in rates.values())


def test_no_input() -> None:
    with pytest.raises(UserError, match="nothing to time: give --v1 FILE"):
        main(["data"])
    with pytest.raises(UserError, match="--objects is put into the frames of a store: give --data STORE"):
        main(["data", "--v1", "a.tfrecord", "--objects", "objects"])


def test_what_cannot_be_timed_is_told(tmp_path: Path, capsys) -> None:
    path = write_records(tmp_path / "a.tfrecord", messages(build_frame, 1))
    with pytest.raises(UserError, match="decode v1, one core: the file holds one frame"):
        main(["data", "--v1", str(path), "--device", "cpu"])
    bare = messages(build_frame, 2)
    bare[1].ClearField("pose")
    sources = find_sources(write_records(tmp_path / "b.tfrecord", bare))
    with pytest.raises(UserError, match=r"b\.tfrecord can't be prepared: the frame's pose has 0 numbers"):
        data.prepare_rate(sources, 1)
    with pytest.raises(SystemExit):
        main(["data", "--v1", str(path), "--rounds", "0"])
    assert "'0': give a whole number of at least 1" in capsys.readouterr().err


def test_decoding_counts_neither_the_first_frame_nor_what_a_turn_leaves(monkeypatch) -> None:
    clock = iter((0.0, 2.0, 10.0, 10.5, 20.0, 21.0))  # two frames in 2 s, then in 0.5 s, then in 1 s
    monkeypatch.setattr(data.time, "perf_counter", lambda: next(clock))
    ours, theirs = iter((3.0, 1.0, 5.0)), []

    def other(frames: int) -> float:
        theirs.append(frames)
        return next(ours)

    timings = data.time_decoding({"reader": data.reading(count), "other": other}, frames=2, rounds=3)
    assert timings["reader"].seconds == (1.0, 0.25, 0.5)
    assert timings["other"].seconds == (3.0, 1.0, 5.0)
    assert theirs == [2, 2, 2]
    assert timings["reader"].speed(timings["other"]) == 4.0  # of 3, 4 and 10
