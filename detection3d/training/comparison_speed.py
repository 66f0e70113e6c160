"""How fast each method trains, relative to the plain sum: whole steps, taken in turns in one process."""

import hashlib
import json
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from detection3d.config import Config, SumConfig
from detection3d.data.store import Store
from detection3d.errors import UserError
from detection3d.evaluation.comparison import Speed
from detection3d.files import replace_file
from detection3d.training.batches import training_batches
from detection3d.training.run_folder import describe_environment
from detection3d.training.state import TrainState, build_state
from detection3d.training.step import train_step
from detection3d.types.tensors import Batch, to_device

WARM_UP = 3
"""Steps before the clock starts: caches, compiled functions and the choice of convolution algorithms."""

FEWEST_PAIRS = 20
SCHEMA = 1


@dataclass(frozen=True)
class _Runner:
    """A state that is stepped and timed on one batch, with or without telemetry."""

    state: TrainState
    batch: Batch
    config: Config

    def seconds(self, *, telemetry: bool) -> float:
        self.state.fork.telemetry_every = 1 if telemetry else 0
        self.state.fork.map_every = 0  # maps are too rare to count
        _wait(self.batch)
        started = time.perf_counter()
        result = train_step(self.state, self.batch, self.config)
        if telemetry:
            self.state.fork.read_telemetry(float(result.loss_scale))
        _wait(self.batch)
        return time.perf_counter() - started


def measure_speed(
    configs: Mapping[str, Config],
    device: torch.device,
    pairs: int,
    progress: Callable[[str], None] = lambda _: None,
) -> dict[str, Speed]:
    """Time each method's training step in turns with the plain sum's: A B A B ...

    The baseline runs without telemetry, so that a method's telemetry counts as the method's, as often as training
    measures it. A pair's ratio is taken from two steps that follow each other, the median of the ratios is reported: a
    machine that slows down for a while slows both.

    Args:
        configs: the run of each method, by name.
        device: where to compute.
        pairs: of steps without telemetry, and as many with it.
        progress: called with a method's name before it is measured.

    Raises:
        UserError: too few pairs, or the training data can't be read.
    """
    if pairs < FEWEST_PAIRS:
        raise UserError(f"{pairs} pairs of steps; the median needs at least {FEWEST_PAIRS}")
    speeds = {}
    for name, config in configs.items():
        progress(name)
        speeds[name] = _measure(config, device, pairs)
    return speeds


def write_speeds(path: Path, configs: Mapping[str, Config], device: str, speeds: Mapping[str, Speed]) -> None:
    """Keep speeds for a later start of the same comparison; arguments as in `read_speeds`."""
    content = {
        "schema_version": SCHEMA,
        "speeds": {
            name: {"settings": _digest(configs[name], device), **asdict(speed)} for name, speed in speeds.items()
        },
    }
    replace_file(path, (json.dumps(content, indent=2) + "\n").encode())


def read_speeds(path: Path, configs: Mapping[str, Config], device: str) -> dict[str, Speed]:
    """Return the speeds on record that are of these settings, by method; a file that can't be read counts as none.

    Args:
        path: what `write_speeds` wrote, if anything.
        configs: by method.
        device: the name of the device that is asked for.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    if not isinstance(content, dict) or content.get("schema_version") != SCHEMA:
        return {}
    speeds = {}
    for name, values in content["speeds"].items():
        if name in configs and values.pop("settings") == _digest(configs[name], device):
            speeds[name] = Speed(**{**values, "quartiles": tuple(values["quartiles"])})
    return speeds


def _digest(config: Config, device: str) -> str:
    return hashlib.sha256(f"{device} {config.model_dump_json()}".encode()).hexdigest()


def _measure(config: Config, device: torch.device, pairs: int) -> Speed:
    method = _runner(config, device, pairs)
    plain = config.multitask.model_copy(update={"method": SumConfig()})
    baseline = _runner(config.model_copy(update={"multitask": plain}), device, pairs)
    for number in range(WARM_UP):
        baseline.seconds(telemetry=False)
        method.seconds(telemetry=number == 0)
    without = [(baseline.seconds(telemetry=False), method.seconds(telemetry=False)) for _ in range(pairs)]
    measured = [(baseline.seconds(telemetry=False), method.seconds(telemetry=True)) for _ in range(pairs)]
    cost = statistics.median(ours / base for base, ours in without)
    telemetry_cost = statistics.median(ours / base for base, ours in measured)
    share = 1 / config.training.log_every
    first, _, third = statistics.quantiles((base / ours for base, ours in without), n=4)
    return Speed(
        relative=1 / ((1 - share) * cost + share * telemetry_cost),
        quartiles=(first, third),
        step_seconds=statistics.median(ours for _, ours in without),
        baseline_seconds=statistics.median(base for base, _ in without),
        telemetry_step=1 / telemetry_cost,
        pairs=pairs,
        device=str(describe_environment(device)["device"]),
    )


def _runner(config: Config, device: torch.device, pairs: int) -> _Runner:
    # The schedule must be long enough for every step that is timed, and so flat that no weight runs away.
    training = config.training.model_copy(update={"steps": max(config.training.steps, 100 * (WARM_UP + 2 * pairs))})
    config = config.model_copy(update={"training": training})
    assert config.data.train is not None
    store = Store.open(config.data.train)
    batch = next(training_batches(store, config, total_steps=1, workers=0))
    return _Runner(build_state(config, device), to_device(batch, device), config)


def _wait(batch: Batch) -> None:
    device = batch.labels.boxes.device
    if device.type == "cuda":
        torch.cuda.synchronize(device)
