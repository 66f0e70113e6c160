"""The fuzzer of the record reader: it finds what it should, and nothing in ten minutes."""

import dataclasses
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from detection3d.data.waymo import read_segment
from detection3d.errors import DataError
from tests.conftest import ROOT
from tests.small_run import environment

TOOL = ROOT / "tests" / "data" / "fuzz_records.py"
SECONDS = 600


@pytest.fixture
def fuzzer(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(TOOL.parent)
    return importlib.import_module("fuzz_records")


@pytest.fixture(scope="module")
def segment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sys.path.insert(0, str(TOOL.parent))
    try:
        return importlib.import_module("fuzz_records").write_segment(tmp_path_factory.mktemp("fuzz"))
    finally:
        sys.path.remove(str(TOOL.parent))


def first_finding(fuzzer: ModuleType, segment: Path) -> str:
    answers = (fuzzer.try_input(segment, 0, number) for number in range(100))
    return next((finding for _, finding in answers if finding is not None), "none")


def test_no_finding_in_the_first_inputs_and_they_are_the_same_each_time(fuzzer: ModuleType, segment: Path) -> None:
    answers = [fuzzer.try_input(segment, 0, number) for number in range(60)]
    assert [finding for _, finding in answers if finding is not None] == []
    assert answers == [fuzzer.try_input(segment, 0, number) for number in range(60)]
    outcomes = {outcome.split(":")[0] for outcome, _ in answers}
    assert outcomes == {"refused", "read"}


def test_a_reader_that_loses_a_frame_is_found(
    fuzzer: ModuleType, segment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lossy(path: Path) -> Iterator[object]:
        try:
            yield from read_segment(path)
        except DataError:
            return

    monkeypatch.setattr(fuzzer, "read_segment", lossy)
    assert "frames, expected" in first_finding(fuzzer, segment)


def test_a_reader_that_crashes_is_found(fuzzer: ModuleType, segment: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def crashes(path: Path) -> Iterator[object]:
        try:
            yield from read_segment(path)
        except DataError as error:
            raise KeyError("lidar") from error

    monkeypatch.setattr(fuzzer, "read_segment", crashes)
    assert first_finding(fuzzer, segment).startswith("KeyError: 'lidar'")


def test_a_reader_that_gives_out_what_is_not_finite_is_found(
    fuzzer: ModuleType, segment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def careless(path: Path) -> Iterator[object]:
        for frame in read_segment(path):
            yield dataclasses.replace(frame, points=frame.points * np.float32(np.nan))

    monkeypatch.setattr(fuzzer, "read_segment", careless)
    assert "points that aren't finite" in first_finding(fuzzer, segment)


CHILDREN = {
    "import os; os.abort()": "the interpreter ended with status -6",
    "import time; time.sleep(99)": "no answer within 0.5 s",
}


@pytest.mark.parametrize("program", CHILDREN)
def test_a_child_that_crashes_or_hangs_is_found(
    fuzzer: ModuleType, monkeypatch: pytest.MonkeyPatch, program: str
) -> None:
    monkeypatch.setattr(fuzzer, "LONGEST_SECONDS", 0.5)
    ready = "input(); print('[0, null]', flush=True); input(); "
    command = [sys.executable, "-c", ready + program]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
    assert fuzzer.ask(child, None) == (0, None)
    _, finding = fuzzer.ask(child, 1)
    fuzzer.stop(child)
    assert finding == CHILDREN[program]


@pytest.mark.slow
def test_ten_minutes_of_fuzzing_find_nothing(tmp_path: Path) -> None:
    command = [sys.executable, str(TOOL), "--seconds", str(SECONDS), "--seed", "0"]
    result = subprocess.run(
        command, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=SECONDS + 300, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    for level in ("bytes of the file", "bytes of a record", "fields of a frame", "images of a frame"):
        assert f" refused: {level}\n" in result.stdout
