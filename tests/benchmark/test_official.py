"""The process that decodes by Waymo's own code: what it is told, what it answers, and how it fails."""

import json
import os
import sys
import threading
import time
from pathlib import Path

import pytest

from detection3d.benchmark.official import DECODER_SCRIPT, OfficialDecoder
from detection3d.benchmark.timing import one_core
from detection3d.cli.benchmark import main
from detection3d.data.synthetic.rigs import tiny_rig
from detection3d.data.synthetic.write import write_segments
from detection3d.errors import UserError
from tests.data.waymo.conftest import build_frame
from tests.data.waymo.made_components import components, messages, write
from tests.data.waymo.test_frames import write as write_records


def fake_python(folder: Path, code: str) -> Path:
    """A program that stands for the evaluation environment's interpreter and runs this instead of the script."""
    script, program = folder / "fake.py", folder / "python"
    script.write_text(f"import json, os, sys\n{code}\n")
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{script}" "$@"\n')
    program.chmod(0o755)
    return program


READY = 'print(json.dumps({"ready": {"python": "3.11.0"}}), flush=True)'
ANSWERS = """
for line in sys.stdin:
    order = json.loads(line)
    with open(LOG, "a") as log:
        print(json.dumps([order, sys.argv[1:], sorted(os.sched_getaffinity(0))]), file=log)
    seconds = 0.5 * order["frames"] if "v1" in order["file"] else 8
    print(json.dumps({"seconds_a_frame": seconds}), flush=True)
"""


def answering_python(folder: Path) -> tuple[Path, Path]:
    """One that answers every order, and the file in which it notes them."""
    log = folder / "log"
    return fake_python(folder, f"LOG = {str(log)!r}\n{READY}\n{ANSWERS}"), log


def test_it_is_told_the_file_and_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    python, log = answering_python(tmp_path)
    with OfficialDecoder(python) as decoder:
        assert decoder.versions == {"python": "3.11.0"}
        assert decoder.time_turn(Path("v1.tfrecord"), 3) == 1.5
        assert decoder.time_turn(Path("other.parquet"), 3) == 8
    orders = [json.loads(line) for line in log.read_text().splitlines()]
    assert orders[0][0] == {"file": str(tmp_path / "v1.tfrecord"), "frames": 3}
    # -I: a PYTHONPATH of this environment must not reach the other one.
    assert orders[0][1] == ["-I", str(DECODER_SCRIPT), "turns"]


def test_leaving_ends_the_process(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    waits = f"open({str(pid)!r}, 'w').write(str(os.getpid())); {READY}; import time; time.sleep(600)"
    start = time.monotonic()
    with OfficialDecoder(fake_python(tmp_path, waits)):
        os.kill(int(pid.read_text()), 0)
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)
    assert time.monotonic() - start < 60


def test_what_is_missing_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere/python can't be run \(No such file or directory\); it must be the"):
        OfficialDecoder(tmp_path / "nowhere" / "python")
    # This environment has no TensorFlow: the script itself says what it lacks.
    with pytest.raises(UserError, match=r"ended: ModuleNotFoundError: No module named .*evaluation_environment\.sh"):
        OfficialDecoder(Path(sys.executable))
    with pytest.raises(UserError, match="ended: status 3, without a word; it must be"):
        OfficialDecoder(fake_python(tmp_path, "sys.exit(3)"))


def test_a_file_that_it_cannot_decode_is_named(tmp_path: Path) -> None:
    fails = f"{READY}; sys.stdin.readline(); raise ValueError('no range image')"
    with OfficialDecoder(fake_python(tmp_path, fails)) as decoder:
        for _ in range(2):  # the second time it has gone
            with pytest.raises(UserError, match=r"ValueError: no range image; it was to decode .*a\.tfrecord"):
                decoder.time_turn(tmp_path / "a.tfrecord", 2)


def test_its_turns_alternate_with_ours_on_one_core(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frames = messages(build_frame, 4)
    v1, v2 = write_records(tmp_path / "v1.tfrecord", frames), write(tmp_path / "components", components(frames))
    python, log = answering_python(tmp_path)
    cores = os.sched_getaffinity(0)
    command = ["data", "--device", "cpu", "--v1", str(v1), "--v2", str(v2), "--official", str(python)]
    output = ["--rounds", "2", "--frames", "3", "--workers", "1", "--output", str(tmp_path / "rates.json")]
    assert main([*command, *output]) == 0
    orders = [json.loads(line) for line in log.read_text().splitlines()]
    assert [Path(order["file"]) for order, _, _ in orders] == [v1, v2, v1, v2]
    assert all(held == [max(cores)] for _, _, held in orders)
    assert os.sched_getaffinity(0) == cores
    result = json.loads((tmp_path / "rates.json").read_text())
    rates, official = result["frames_per_second"], result["official"]
    assert list(rates)[:4] == [
        "decode v1, one core",
        "decode v1, official, one core",
        "decode v2, one core",
        "decode v2, official, one core",
    ]
    assert rates["decode v1, official, one core"] == 1 / 1.5
    assert rates["decode v2, official, one core"] == 1 / 8
    assert official["versions"] == {"python": "3.11.0"}
    # Its 1.5 and 8 s against our milliseconds.
    assert official["speed_against_it"]["v1"] > 15
    assert official["speed_against_it"]["v2"] > 80
    assert f"v1: {official['speed_against_it']['v1']:.1f} times the official decoder's speed" in capsys.readouterr().out


def test_nothing_to_decode(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--official: nothing to decode: give --v1 FILE"):
        main(["data", "--data", str(tmp_path), "--official", sys.executable])


def test_one_core_holds_threads_that_are_there_and_lets_them_go() -> None:
    cores = os.sched_getaffinity(0)
    end = threading.Event()
    thread = threading.Thread(target=end.wait)
    thread.start()
    try:
        assert thread.native_id is not None
        with one_core():
            assert os.sched_getaffinity(0) == os.sched_getaffinity(thread.native_id) == {max(cores)}
        assert os.sched_getaffinity(0) == os.sched_getaffinity(thread.native_id) == cores
    finally:
        end.set()
        thread.join()


@pytest.mark.slow
def test_the_real_one_is_slower(evaluation_python: Path, tmp_path: Path) -> None:
    (report,) = write_segments(tmp_path, 1, 3, 0, tiny_rig())
    output = tmp_path / "rates.json"
    command = ["data", "--device", "cpu", "--v1", str(report.path), "--official", str(evaluation_python)]
    assert main([*command, "--rounds", "2", "--workers", "1", "--output", str(output)]) == 0
    official = json.loads(output.read_text())["official"]
    assert official["versions"]["tensorflow-cpu"].startswith("2.")
    assert official["speed_against_it"]["v1"] > 1
