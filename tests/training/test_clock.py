"""The parts of a step add up, and a log names the mean over the steps since the last one."""

import time
from dataclasses import replace
from unittest import mock

import pytest

from detection3d.training.clock import Moment, StepTimes, Stopwatch
from detection3d.training.loop import train
from detection3d.training.recorder import read_metrics
from tests.small_run import small_config
from tests.training.steps import CPU


def moments(*times: float) -> StepTimes:
    with mock.patch.object(time, "perf_counter", side_effect=times):
        return StepTimes(*(Moment(CPU) for _ in times))


def test_means_over_the_steps_since_the_last_reading():
    watch = Stopwatch(samples=8)
    watch.add(moments(0.0, 1.0, 3.0, 3.5), waited=0.5, total=4.5)
    watch.add(moments(10.0, 13.0, 14.0, 14.5), waited=1.5, total=7.5)
    assert watch.read() == {
        "time/step": 6.0,
        "time/data": 1.0,
        "time/forward": 2.0,
        "time/backward": 1.5,
        "time/optimizer": 0.5,
        "time/samples_per_second": pytest.approx(8 / 6),
    }
    watch.add(moments(0.0, 1.0, 2.0, 3.0), waited=0.0, total=3.0)
    assert watch.read()["time/step"] == 3.0


def test_micro_batches_add_up():
    four = moments(4.0, 7.0, 0.0, 0.0)
    times = replace(moments(0.0, 1.0, 3.0, 9.0), more=(four.start, four.forward))
    assert times.parts() == (2.0, 5.0, 2.0)


def test_a_run_logs_where_its_time_goes_and_its_objects(tmp_path, store):
    config = small_config("training.log_every=2", "training.steps=4", "training.batch_size=5", data=store)
    train(config, tmp_path, CPU)
    for row in read_metrics(tmp_path / "metrics.jsonl"):
        parts = row["time/forward"] + row["time/backward"] + row["time/optimizer"] + row["time/data"]
        assert 0.5 * row["time/step"] < parts <= row["time/step"]
        assert row["time/samples_per_second"] == pytest.approx(5 / row["time/step"])
        assert row["steps/positives"] > 5  # every frame of the data is in the batch
