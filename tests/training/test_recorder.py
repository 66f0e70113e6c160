import json
import math

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from detection3d.training.recorder import Recorder, read_metrics
from detection3d.training.run_folder import RunFolder

NUMBERS = {"loss/box": 2.5, "fork/conflict_share": 0.25, "time/step": 2.0, "time/data": 0.5}


def record(folder: RunFolder, first: int, last: int, **changes: float) -> None:
    with Recorder(folder, first, 10) as recorder:
        for step in range(first + 1, last + 1):
            recorder.log(step, {**NUMBERS, **changes, "loss/box": float(step)})
            recorder.advance(step)


def test_every_step_is_a_line_and_a_point_in_tensorboard(tmp_path):
    folder = RunFolder(tmp_path)
    record(folder, 0, 3)
    assert read_metrics(folder.metrics) == [{"step": step, **NUMBERS, "loss/box": step} for step in (1, 2, 3)]
    board = EventAccumulator(str(folder.tensorboard)).Reload()
    assert [(event.step, event.value) for event in board.Scalars("loss/box")] == [(1, 1.0), (2, 2.0), (3, 3.0)]
    assert set(board.Tags()["scalars"]) == set(NUMBERS)


def test_what_an_interrupted_run_logged_past_its_checkpoint_is_taken_back(tmp_path):
    folder = RunFolder(tmp_path)
    record(folder, 0, 5)
    with folder.metrics.open("a") as file:
        file.write('{"step": 6, "loss/bo')  # cut off by kill -9
    record(folder, 3, 7)
    assert [json.loads(line)["step"] for line in folder.metrics.read_text().splitlines()] == [1, 2, 3, 4, 5, 6, 7]
    board = EventAccumulator(str(folder.tensorboard)).Reload()
    assert [event.step for event in board.Scalars("loss/box")] == [1, 2, 3, 4, 5, 6, 7]


def test_taking_back_survives_a_full_disk(tmp_path, monkeypatch):
    folder = RunFolder(tmp_path)
    record(folder, 0, 5)
    before = folder.metrics.read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("detection3d.files.os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        Recorder(folder, 3, 10)
    assert folder.metrics.read_bytes() == before


def test_numbers_that_are_not_finite_are_null(tmp_path):
    folder = RunFolder(tmp_path)
    record(folder, 0, 1, a=math.nan, b=math.inf, c=-math.inf, d=1e-30)
    (line,) = folder.metrics.read_text().splitlines()
    assert not {"NaN", "Infinity"} & set(line.replace(",", " ").replace("}", " ").split())
    row = json.loads(line)
    assert (row["a"], row["b"], row["c"], row["d"]) == (None, None, None, 1e-30)


def test_plain_lines_where_nobody_watches(tmp_path, capsys):
    with Recorder(RunFolder(tmp_path), 0, 10) as recorder:
        recorder.say("a run in [/tmp/x]: [bold]ready[/bold]")
        recorder.advance(1)
        recorder.log(2, NUMBERS)
        recorder.log(3, {name: value for name, value in NUMBERS.items() if not name.startswith("fork/")})
    assert capsys.readouterr().out.splitlines() == [
        "a run in [/tmp/x]: [bold]ready[/bold]",
        "step 2/10  box 2.500  conflict 25.0%  2.00 s/step (data 25%)",
        "step 3/10  box 2.500  2.00 s/step (data 25%)",
    ]


def test_no_metrics_yet(tmp_path):
    assert read_metrics(tmp_path / "metrics.jsonl") == []
