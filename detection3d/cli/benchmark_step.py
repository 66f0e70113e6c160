"""The parts of tools/benchmark.py that time whole training steps, of one process or of all that torchrun started."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from detection3d.cli.preparing import positive

if TYPE_CHECKING:
    import torch

    from detection3d.benchmark.timing import Timing
    from detection3d.config import Config
    from detection3d.training.launch import Launch


def add_parsers(parsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the parts `step` and `scaling`."""
    step = parsers.add_parser("step", help="a whole training step, its parts and its memory")
    step.set_defaults(run=_run_step)
    scaling = parsers.add_parser("scaling", help="under torchrun: steps of one rank alone and of all ranks, in turns")
    scaling.set_defaults(run=_run_scaling)
    for parser in (step, scaling):
        parser.add_argument("config", help="a YAML file, or the name of a shipped config")
        parser.add_argument("overrides", nargs="*", metavar="key=value", help="such as training.batch_size=8")
        parser.add_argument("--data", type=Path, required=True, help="a prepared store")
        parser.add_argument("--rounds", type=positive, default=10)
        parser.add_argument("--steps", type=positive, default=20, help="of a round (default: 20)")
        parser.add_argument("--batches", type=positive, default=6, help="different ones, held in memory (default: 6)")
        parser.add_argument("--device", help="cpu, cuda, cuda:1 ... (default: cuda where there is one)")
        parser.add_argument("--output", type=Path, metavar="FILE", help="write the figures as JSON, too")


def _run_step(options: argparse.Namespace) -> int:
    import torch

    from detection3d.benchmark.step import time_steps
    from detection3d.training.team import joined_team

    config, launch, device = _chosen(options)
    with joined_team(launch, device) as team:
        timing = time_steps(
            config, device, rounds=options.rounds, steps=options.steps, batches=options.batches, team=team
        )
    if not team.first:
        return 0
    frames = config.training.batch_size
    rounds = [1e3 * seconds for seconds in timing.step.seconds]
    print(
        f"{_devices(device, team.size)}, torch {torch.__version__}: {1e3 * timing.step.median:.1f} ms a step of"
        f" {frames} frames with {timing.points:,.0f} points each, {1e3 * timing.step.median / frames:.2f} ms a frame"
        f" ({min(rounds):.1f} to {max(rounds):.1f} ms in {len(rounds)} rounds of {options.steps} steps)"
    )
    speed = frames / timing.step.median
    print(f"{speed:.1f} frames a second, {speed / team.size:.1f} a rank")
    parts = ", ".join(f"{part.removeprefix('time/')} {1e3 * value:.1f} ms" for part, value in timing.parts.items())
    print(f"{parts}; peak memory {timing.memory:.1f} GB; {timing.skipped} steps left out as not finite")
    _write(
        options,
        device,
        team.size,
        config,
        {
            "seconds": list(timing.step.seconds),
            "seconds_a_frame": timing.step.median / frames,
            "parts": timing.parts,
            "memory_gb": timing.memory,
            "points_a_frame": timing.points,
            "skipped": timing.skipped,
        },
    )
    return 0


def _run_scaling(options: argparse.Namespace) -> int:
    import torch

    from detection3d.benchmark.step import time_scaling
    from detection3d.errors import UserError
    from detection3d.training.distributed import describe_norms
    from detection3d.training.team import joined_team

    config, launch, device = _chosen(options)
    if launch.size == 1:
        raise UserError(
            "scaling compares one rank with all, and this process is alone: start it by torchrun --standalone"
            " --nproc-per-node 2 tools/benchmark.py scaling ..."
        )
    if config.training.batch_size % launch.size:
        raise UserError(
            f"training.batch_size is {config.training.batch_size}, which {launch.size} ranks can't share equally; give"
            f" training.batch_size={8 * launch.size}, for instance"
        )
    with joined_team(launch, device) as team:
        turns = {"rounds": options.rounds, "steps": options.steps, "batches": options.batches}
        scaling = time_scaling(config, device, team, **turns)
    if not team.first:
        return 0
    share = config.training.batch_size // team.size
    speed = share / scaling.alone.median
    print(
        f"{_devices(device, team.size)}, torch {torch.__version__}, {share} frames a rank,"
        f" {options.rounds} rounds of {options.steps} steps each, in turns\n"
        f"one rank alone             {_milliseconds(scaling.alone)} a step, {speed:.1f} frames/s\n"
        f"all ranks, each for itself {_milliseconds(scaling.apart)} a step, {scaling.apart.speed(scaling.alone):.3f} of"
        " one alone"
    )
    efficiency = {}
    for sync, timing in scaling.together.items():
        efficiency[sync] = timing.speed(scaling.alone)
        print(
            f"all ranks, sync {sync:4}       {_milliseconds(timing)} a step,"
            f" {share / timing.median:.1f} frames/s a rank, {efficiency[sync]:.3f} of one alone"
        )
    cost = scaling.together["full"].speed(scaling.together["none"])
    print(
        f"sync full has {cost:.3f} of the speed of none; {describe_norms(config, team.size)}; peak memory"
        f" {scaling.memory:.1f} GB, of three trainings"
    )
    figures = {
        "alone": list(scaling.alone.seconds),
        "apart": list(scaling.apart.seconds),
        "efficiency": efficiency,
        "full_to_none": cost,
    }
    together = {sync: list(timing.seconds) for sync, timing in scaling.together.items()}
    _write(options, device, team.size, config, {**figures, "together": together})
    return 0


def _milliseconds(timing: "Timing") -> str:
    """Return the median, and the fastest and the slowest round."""
    rounds = [1e3 * seconds for seconds in timing.seconds]
    return f"{1e3 * timing.median:.1f} ms ({min(rounds):.1f} to {max(rounds):.1f})"


def _chosen(options: argparse.Namespace) -> "tuple[Config, Launch, torch.device]":
    from detection3d.cli.device import choose_device
    from detection3d.config_file import load_config
    from detection3d.training.launch import read_launch

    config = load_config(options.config, [f"data.train={options.data}", *options.overrides])
    launch = read_launch()
    return config, launch, choose_device(options.device, launch)


def _devices(device: "torch.device", ranks: int) -> str:
    import torch

    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    return f"{ranks} times {name}" if ranks > 1 else name


def _write(
    options: argparse.Namespace, device: "torch.device", ranks: int, config: "Config", figures: dict[str, object]
) -> None:
    import torch

    from detection3d.files import replace_file

    if options.output is None:
        return
    told = {
        "schema_version": 1,
        "device": _devices(device, 1),
        "torch": torch.__version__,
        "ranks": ranks,
        "config": config.model_dump(mode="json"),
        **figures,
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    replace_file(options.output, json.dumps(told, indent=1).encode())
