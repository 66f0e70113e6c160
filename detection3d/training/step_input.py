"""What a training step needs of its batch before the first weight comes in: made ahead, beside the step before.

Unpacking, augmentation, voxels, kernel maps and targets wait for the device again and again, since the sizes of their
results depend on the data. On CUDA they run on a stream of their own while the network's backward pass of the step
before still keeps the device busy, so a step itself is launched without waiting once.
"""

import itertools
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from detection3d.config import Config
from detection3d.data.augment import augment
from detection3d.data.object_paste import paste_objects
from detection3d.data.unpack import unpack
from detection3d.model.detector import Detector, Voxels
from detection3d.model.targets import build_targets
from detection3d.training.loss_pass import pad_objects
from detection3d.types.tensors import Batch, BoxLabels, Points, Targets, to_device

SWITCH_INTERVAL = 2e-5
"""Seconds after which a thread that waits for Python's interpreter is let in; Python's own 5 ms are half a pass."""


@dataclass(frozen=True)
class MicroBatch:
    """Samples that go through the network together.

    Attributes:
        voxels: or pillars; voxels with the kernel maps of all layers.
        targets: `global_count` is that of the rank's whole batch.
        sample_index: int64 [B], as the batch's.
    """

    voxels: Voxels
    targets: Targets
    sample_index: Tensor


@dataclass(frozen=True)
class StepInput:
    """A batch as the network and its losses take it, on the device.

    Attributes:
        batch: what it was made of.
        parts: its micro-batches, one unless the batch says otherwise.
        targets: of all of them, of this rank.
    """

    batch: Batch
    parts: tuple[MicroBatch, ...]
    targets: Targets


def network_input(batch: Batch, config: Config, step: int) -> tuple[Points, BoxLabels]:
    """Return a training batch as the network and its targets take it: in floats, augmented.

    Args:
        batch: on the device.
        config: the run.
        step: optimiser steps done.
    """
    returns, without_zones = config.data.returns, config.data.drop_no_label_zone_points
    points, labels = unpack(batch.points, returns=returns, drop_no_label_zone=without_zones), batch.labels
    if batch.objects is not None:
        objects = unpack(batch.objects.points, returns=returns, drop_no_label_zone=without_zones)
        points, labels = paste_objects(points, labels, objects, batch.objects.labels, config.loss.min_points)
    if step < config.training.steps - config.augmentation.steps_without(config.training.steps):
        points, labels = augment(
            points, labels, config=config.augmentation, seed=config.seed, sample_index=batch.sample_index
        )
    return points, labels


def step_input(batch: Batch, detector: Detector, config: Config, step: int) -> StepInput:
    """Prepare a batch for the step after `step`; see `network_input` for the arguments."""
    points, labels = network_input(batch, config, step)
    if config.training.cuda_graphs and points.values.is_cuda:
        labels = pad_objects(labels)
    targets = build_targets(labels, config)
    if batch.parts is None:
        part = MicroBatch(detector.encode(points, batch.size), targets, batch.sample_index)
        return StepInput(batch, (part,), targets)
    ends = list(itertools.accumulate(batch.parts))
    parts = []
    for first, last in zip([0, *ends], ends, strict=False):
        voxels = detector.encode(_points_of(points, first, last), last - first)
        parts.append(MicroBatch(voxels, _targets_of(targets, first, last), batch.sample_index[first:last]))
    return StepInput(batch, tuple(parts), targets)


def _points_of(points: Points, first: int, last: int) -> Points:
    """Return the points of the samples from `first` up to `last`, counted anew from 0."""
    borders = points.batch_index.new_tensor([first, last])
    start, stop = torch.searchsorted(points.batch_index, borders).tolist()
    return Points(points.values[start:stop], points.batch_index[start:stop] - first)


def _targets_of(targets: Targets, first: int, last: int) -> Targets:
    """Return the targets of the samples from `first` up to `last`; what is no tensor of samples stays."""
    values = {member.name: getattr(targets, member.name) for member in fields(targets)}
    of_samples = {name: value for name, value in values.items() if isinstance(value, Tensor) and value.ndim > 0}
    return replace(targets, **{name: value[first:last] for name, value in of_samples.items()})


def step_inputs(
    batches: Iterator[Batch], detector: Detector, config: Config, device: torch.device, step: int
) -> Iterator[StepInput]:
    """Yield the batches of the steps from `step` on, prepared; ask for the next one when a step has been launched.

    Args:
        batches: on the host.
        detector: whose layers want kernel maps.
        config: the run.
        device: of the detector.
        step: optimiser steps done.
    """
    if device.type == "cuda":
        yield from _ahead(batches, detector, config, device, step)
        return
    for done, batch in enumerate(batches, step):
        yield step_input(to_device(batch, device), detector, config, done)


def _ahead(
    batches: Iterator[Batch], detector: Detector, config: Config, device: torch.device, step: int
) -> Iterator[StepInput]:
    """Prepare each batch in a thread, which waits for the device while this one launches the step before.

    What the thread makes lies in memory that its stream hands out again as soon as nobody on the host refers to it,
    whether the network's stream has read it or not. So an input is kept until the one after the next is made, and the
    thread's stream waits for the network's to have done with those before.
    """
    network, stream = torch.cuda.current_stream(device), torch.cuda.Stream(device, priority=-1)
    stream.wait_stream(network)  # which may still be copying the detector's constants

    def make(batch: Batch, done: int, free: torch.cuda.Event | None) -> StepInput:
        with torch.cuda.device(device), torch.cuda.stream(stream):
            if free is not None:
                stream.wait_event(free)
            return step_input(to_device(batch, device), detector, config, done)

    with _quick_turns(), ThreadPoolExecutor(1, "step-input") as thread:
        coming: Future[StepInput] | None = None
        made: list[StepInput] = []
        launched: list[torch.cuda.Event] = []  # of the steps whose inputs are in `made`, but for the last
        for done in itertools.count(step):
            batch, failure = None, None
            try:
                batch = next(batches, None)
            except Exception as error:  # told when the batches before are done
                failure = error
            if coming is not None:
                made = [*made[-1:], coming.result()]
                network.wait_stream(stream)
            following = (
                None if batch is None else thread.submit(make, batch, done, launched[-2] if len(launched) > 1 else None)
            )
            if coming is not None:
                yield made[-1]
                event = torch.cuda.Event()
                event.record(network)
                launched = [*launched[-1:], event]
            if failure is not None:
                raise failure
            if following is None:
                return
            coming = following


@contextmanager
def _quick_turns() -> Iterator[None]:
    """Let Python's threads take turns at once: each holds the interpreter for microseconds between two launches."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_INTERVAL)
    try:
        yield
    finally:
        sys.setswitchinterval(before)
