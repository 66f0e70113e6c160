"""Whole training steps as shipped and with one thing changed, in turns within one process: is the change worth it?

python tests/benchmarks/step_variants.py waymo_voxel training.batch_size=8 --data DATA

`norms`: fused batch normalisation also where kernels are launched one by one. `cudnn`: cuDNN tries its algorithms.
`both`: the two together.
"""

import argparse
import random
import sys
from pathlib import Path

import torch

from detection3d.benchmark.step import WARM_UP, TimedTraining
from detection3d.benchmark.timing import Timing
from detection3d.cli.device import choose_device
from detection3d.config_file import load_config
from detection3d.model.norm import BatchNorm
from detection3d.training.launch import read_launch

VARIANTS = ("shipped", "norms", "cudnn", "both")


def main() -> None:
    """Print the time of each, and its speed beside what is shipped."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="a YAML file, or the name of a shipped config")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--data", type=Path, required=True, help="a prepared store")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=VARIANTS)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--steps", type=int, default=20, help="of a round")
    options = parser.parse_intermixed_args()
    config = load_config(options.config, [f"data.train={options.data}", *options.overrides])
    device = choose_device(None, read_launch())
    if device.type != "cuda":
        sys.exit("this needs a CUDA device: on the CPU none of it changes anything")
    trainings = {}
    for name in options.variants:
        trainings[name] = training = TimedTraining(config, device, 6)
        for layer in training.state.model.modules():
            if isinstance(layer, BatchNorm):
                layer.fused = name in ("norms", "both")  # those in graphs are so all the same
        _run(training, name, WARM_UP)
    seconds: dict[str, list[float]] = {name: [] for name in trainings}
    order = random.Random(0)
    for _ in range(options.rounds):
        names = list(trainings)
        order.shuffle(names)
        for name in names:
            seconds[name].append(_run(trainings[name], name, options.steps))
    timings = {name: Timing(tuple(values)) for name, values in seconds.items()}
    for name, timing in timings.items():
        rounds = [1e3 * value for value in timing.seconds]
        print(
            f"{name:8} {1e3 * timing.median:6.1f} ms a step ({min(rounds):.1f} to {max(rounds):.1f}),"
            f" {timing.speed(timings[options.variants[0]]):.3f} of the speed of {options.variants[0]}"
        )


def _run(training: TimedTraining, name: str, steps: int) -> float:
    torch.backends.cudnn.benchmark = name in ("cudnn", "both")
    return training.run(steps)


if __name__ == "__main__":
    main()
