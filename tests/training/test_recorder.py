import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer.event_file_writer import AtomicCounter

from detection3d.evaluation.reporting.conflict_figures import ConflictView, conflict_image
from detection3d.training.conflict_files import list_conflicts, load_conflict
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


def test_bytes_that_are_no_text_are_left_out_as_a_line_cut_off(tmp_path):
    folder = RunFolder(tmp_path)
    record(folder, 0, 2)
    with folder.metrics.open("ab") as file:
        file.write(b'\xff\xfe{"step": 3\n')  # what a failing disk may leave
    record(folder, 2, 3)
    assert [row["step"] for row in read_metrics(folder.metrics)] == [1, 2, 3]


def test_files_of_one_second_are_read_in_the_order_they_were_written(tmp_path, monkeypatch):
    # The counter in the names is of the process: where it reaches 10, its file would sort before that of 9.
    monkeypatch.setattr("tensorboard.summary.writer.event_file_writer._global_uid", AtomicCounter(9))
    folder = RunFolder(tmp_path)
    record(folder, 0, 5)
    record(folder, 3, 7)
    board = EventAccumulator(str(folder.tensorboard)).Reload()
    assert [event.step for event in board.Scalars("loss/box")] == [1, 2, 3, 4, 5, 6, 7]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a file that is always full")
def test_a_full_disk_while_logging_names_the_log(tmp_path):
    folder = RunFolder(tmp_path)
    folder.metrics.symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left on device") as caught, Recorder(folder, 0, 10) as recorder:
        recorder.log(1, NUMBERS)
    assert caught.value.filename == str(folder.metrics)


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


def test_the_purity_is_a_list_and_a_histogram_with_bars_for_pure_signs(tmp_path):
    folder = RunFolder(tmp_path)
    shares = [0.125, 0.25, 0.0, 0.0, 0.125, 0.5]
    with Recorder(folder, 0, 10) as recorder:
        recorder.log(1, NUMBERS, {"fork/purity": shares})
        recorder.log(2, NUMBERS, {"fork/purity": [math.nan] * 6})  # after an overflow
    assert [row["fork/purity"] for row in read_metrics(folder.metrics)] == [shares, [None] * 6]
    board = EventAccumulator(str(folder.tensorboard)).Reload()
    (event,) = board.Histograms("fork/purity")
    histogram = event.histogram_value
    assert event.step == 1
    assert list(histogram.bucket) == shares
    assert list(histogram.bucket_limit) == [0.0, 0.25, 0.5, 0.75, 1.0, 1.25]
    assert (histogram.min, histogram.max, histogram.num) == (-0.25, 1.25, 1.0)
    assert histogram.sum == pytest.approx(0.25 * 0.125 + 0.125 * 0.875 + 0.5)
    assert histogram.sum_squares == pytest.approx(0.25 * 0.125**2 + 0.125 * 0.875**2 + 0.5)


def record_maps(folder: RunFolder, first: int, last: int, value: float) -> None:
    with Recorder(folder, first, 10) as recorder:
        for step in range(first + 1, last + 1):
            recorder.log_map(ConflictView(step, *np.float32([[[value, step]], [[0.0, step / 2]]]), (-2, -1, 2, 1)))


def test_maps_are_files_and_pictures_and_taken_back_with_the_rest(tmp_path):
    folder = RunFolder(tmp_path)
    record_maps(folder, 0, 5, value=1.0)
    record_maps(folder, 3, 4, value=2.0)
    views = [load_conflict(path) for path in list_conflicts(folder.conflict)]
    assert [(view.step, view.mass[0, 0]) for view in views] == [(1, 1.0), (2, 1.0), (3, 1.0), (4, 2.0)]
    board = EventAccumulator(str(folder.tensorboard)).Reload()
    pictures = board.Images("fork/conflict")
    assert [event.step for event in pictures] == [1, 2, 3, 4]
    shown = np.asarray(Image.open(io.BytesIO(pictures[-1].encoded_image_string)))
    np.testing.assert_array_equal(shown, conflict_image(views[-1]))
