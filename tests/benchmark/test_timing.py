"""Timing in turns: what is counted, in which order, and that every compared step is a real one."""

import json
import time
from dataclasses import replace

import pytest
import torch

from detection3d.benchmark.fork import BASELINE, CONVOLUTION, LINEAR, ManyHeads, many_heads_steps, methods
from detection3d.benchmark.timing import WARM_UP, Timing, time_in_turns
from detection3d.cli.benchmark import main
from detection3d.errors import UserError

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


def test_unknown_method_and_missing_data() -> None:
    with pytest.raises(UserError, match="--methods: unknown: magic; known: sum, clipping"):
        main(["fork", "--methods", "magic", "--device", "cpu"])
    with pytest.raises(UserError, match="the detector needs --data"):
        main(["fork", "--subjects", "detector", "--methods", "sum", "--device", "cpu"])
