"""Timing in turns: what is counted, in which order, and that every compared step is a real one."""

import json
import time
from dataclasses import replace

import pytest
import torch
import yaml

from detection3d.benchmark.detector import DetectorTiming
from detection3d.benchmark.fork import BASELINE, CONVOLUTION, LINEAR, ManyHeads, many_heads_steps, methods
from detection3d.benchmark.timing import WARM_UP, Timing, time_in_turns
from detection3d.cli.benchmark import main
from detection3d.errors import UserError
from detection3d.multitask import TaskFork
from tests.small_run import small_config, write_small_store

CPU = torch.device("cpu")


def test_every_round_calls_each_as_often() -> None:
    calls: list[str] = []
    names = ("a", "b", "c")
    timings = time_in_turns(
        {name: lambda name=name: calls.append(name) for name in names}, CPU, rounds=4, calls_a_round=2
    )
    rounds = [calls[start : start + 6] for start in range(0, len(calls), 6)]
    assert len(rounds) == 4 + WARM_UP
    assert all(sorted(turn) == sorted(2 * names) for turn in rounds)
    assert len({tuple(turn) for turn in rounds}) > 1  # the order changes
    assert all(len(timing.seconds) == 4 for timing in timings.values())


def test_a_slower_call_is_told_as_slower() -> None:
    timings = time_in_turns({"fast": lambda: time.sleep(0.002), "slow": lambda: time.sleep(0.008)}, CPU, rounds=5)
    assert 0.05 < timings["slow"].speed(timings["fast"]) < 0.7
    assert timings["fast"].speed(timings["fast"]) == 1.0


def test_speed_is_the_median_of_the_rounds_ratios() -> None:
    baseline, other = Timing((1.0, 1.0, 10.0)), Timing((2.0, 4.0, 20.0))
    assert other.speed(baseline) == 0.5
    assert other.median == 4.0


@pytest.mark.parametrize("shape", [LINEAR, CONVOLUTION], ids=["linear", "convolution"])
def test_a_step_trains_every_head(shape) -> None:
    small = replace(shape, tasks=3, batch=2, channels=4, size=min(shape.size, 5))
    torch.manual_seed(0)
    net = ManyHeads(small)
    size = () if shape.kind == "linear" else (5, 5)
    losses = net.losses(dict.fromkeys(net.names, net.backbone(torch.randn(2, 4, *size))))
    torch.stack(list(losses.values())).sum().backward()
    assert len(losses) == 3
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in net.heads.parameters())


def test_all_methods_take_a_step() -> None:
    small = replace(LINEAR, tasks=3, batch=4, channels=4)
    steps = many_heads_steps(small, methods(), CPU, telemetry_every=2)
    assert set(steps) == {BASELINE, *methods()}
    for step in steps.values():
        step()
        step()


def test_the_tool_writes_what_it_prints(tmp_path, capsys) -> None:
    path = tmp_path / "benchmark.json"
    arguments = ["fork", "--subjects", "linear", "--methods", "sum", "graddrop", "--rounds", "1", "--device", "cpu"]
    assert main([*arguments, "--telemetry-every", "1", "--output", str(path)]) == 0
    written = json.loads(path.read_text())
    assert set(written["linear"]) == {BASELINE, "sum", "graddrop"}
    assert f"{written['linear']['graddrop']['speed']:.3f} of the baseline's speed" in capsys.readouterr().out


def test_rare_telemetry_counts_by_its_share() -> None:
    timing = DetectorTiming(Timing((1.0, 2.0)), Timing((3.0, 6.0)))
    assert timing.mixed(4).seconds == (1.5, 3.0)
    assert timing.mixed(1).seconds == (3.0, 6.0)
    assert timing.mixed(0).seconds == (1.0, 2.0)


def test_a_detector_is_timed_with_and_without_telemetry(tmp_path, capsys, monkeypatch) -> None:
    measured: list[int] = []
    read = TaskFork.read_telemetry
    monkeypatch.setattr(TaskFork, "read_telemetry", lambda fork: measured.append(fork.telemetry_every) or read(fork))
    store = write_small_store(tmp_path / "store")
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(small_config(data=store).model_dump(mode="json")))
    arguments = ["fork", "--subjects", "detector", "--methods", "sum", "graddrop", "--config", str(config)]
    arguments += ["--data", str(store), "--batch-size", "2", "--rounds", "2", "--device", "cpu"]
    assert main([*arguments, "--output", str(tmp_path / "benchmark.json")]) == 0
    figures = json.loads((tmp_path / "benchmark.json").read_text())["detector"]
    assert set(figures) == {BASELINE, "sum", "graddrop"}
    assert measured == [1] * 2 * (2 + WARM_UP)  # each method once a round, and never in the other steps
    assert figures["sum"]["speed_to_sum"] == figures[BASELINE]["speed"] == 1.0
    assert f"{figures['graddrop']['speed']:9.3f}" in capsys.readouterr().out


def test_unknown_method_and_missing_data() -> None:
    with pytest.raises(UserError, match="--methods: unknown: magic; known: sum, clipping"):
        main(["fork", "--methods", "magic", "--device", "cpu"])
    with pytest.raises(UserError, match="the detector needs --data"):
        main(["fork", "--subjects", "detector", "--methods", "sum", "--device", "cpu"])
