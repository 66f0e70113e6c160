"""The part of tools/benchmark.py that times whole training steps, of one process or of all that torchrun started."""

import argparse
import json
from pathlib import Path

from detection3d.cli.preparing import positive


def add_parser(parsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the part `step`."""
    parser = parsers.add_parser("step", help="a whole training step, its parts and its memory")
    parser.set_defaults(run=_run)
    parser.add_argument("config", help="a YAML file, or the name of a shipped config")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings, such as training.batch_size=8")
    parser.add_argument("--data", type=Path, required=True, help="a prepared store")
    parser.add_argument("--rounds", type=positive, default=10)
    parser.add_argument("--steps", type=positive, default=20, help="of a round (default: 20)")
    parser.add_argument("--batches", type=positive, default=6, help="different ones, held in memory (default: 6)")
    parser.add_argument("--device", help="cpu, cuda, cuda:1 ... (default: cuda where there is one)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the figures as JSON, too")


def _run(options: argparse.Namespace) -> int:
    import torch

    from detection3d.benchmark.step import time_steps
    from detection3d.cli.device import choose_device
    from detection3d.config_file import load_config
    from detection3d.files import replace_file
    from detection3d.training.launch import read_launch
    from detection3d.training.team import joined_team

    config = load_config(options.config, [f"data.train={options.data}", *options.overrides])
    launch = read_launch()
    device = choose_device(options.device, launch)
    turns = {"rounds": options.rounds, "steps": options.steps, "batches": options.batches}
    with joined_team(launch, device) as team:
        timing = time_steps(config, device, **turns, team=team)
    if not team.first:
        return 0
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    frames = config.training.batch_size
    rounds = [1e3 * seconds for seconds in timing.step.seconds]
    ranks = f"{team.size} times " if team.size > 1 else ""
    print(
        f"{ranks}{name}, torch {torch.__version__}: {1e3 * timing.step.median:.1f} ms a step of {frames} frames with"
        f" {timing.points:,.0f} points each, {1e3 * timing.step.median / frames:.2f} ms a frame"
        f" ({min(rounds):.1f} to {max(rounds):.1f} ms in {len(rounds)} rounds of {options.steps} steps)"
    )
    speed = frames / timing.step.median
    print(f"{speed:.1f} frames a second, {speed / team.size:.1f} a rank")
    parts = ", ".join(f"{part.removeprefix('time/')} {1e3 * value:.1f} ms" for part, value in timing.parts.items())
    print(f"{parts}; peak memory {timing.memory:.1f} GB; {timing.skipped} steps left out as not finite")
    if options.output is not None:
        told = {
            "schema_version": 1,
            "device": name,
            "torch": torch.__version__,
            "ranks": team.size,
            "config": config.model_dump(mode="json"),
            "seconds": list(timing.step.seconds),
            "seconds_a_frame": timing.step.median / frames,
            "parts": timing.parts,
            "memory_gb": timing.memory,
            "points_a_frame": timing.points,
            "skipped": timing.skipped,
        }
        options.output.parent.mkdir(parents=True, exist_ok=True)
        replace_file(options.output, json.dumps(told, indent=1).encode())
    return 0
