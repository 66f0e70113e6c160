"""What a training step needs of its batch before the first weight comes in: made ahead, beside the step before.

Unpacking, augmentation, voxels, kernel maps and targets wait for the device again and again, since the sizes of their
results depend on the data. On CUDA they run on a stream of their own while the network's backward pass of the step
before still keeps the device busy, so a step itself is launched without waiting once.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from detection3d.config import Config
from detection3d.data.augment import augment
from detection3d.data.object_paste import paste_objects
from detection3d.data.unpack import unpack
from detection3d.model.detector import Detector
from detection3d.model.sparse import SparseTensor
from detection3d.model.targets import build_targets
from detection3d.types.tensors import Batch, BoxLabels, Points, Targets, to_device


@dataclass(frozen=True)
class StepInput:
    """A batch as the network and its losses take it, on the device.

    Attributes:
        batch: what it was made of.
        voxels: with the kernel maps of all layers.
        targets: of this rank.
    """

    batch: Batch
    voxels: SparseTensor
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
    if step < config.training.steps - config.augmentation.off_for_last_steps:
        points, labels = augment(
            points, labels, config=config.augmentation, seed=config.seed, sample_index=batch.sample_index
        )
    return points, labels


def step_input(batch: Batch, detector: Detector, config: Config, step: int) -> StepInput:
    """Prepare a batch for the step after `step`; see `network_input` for the arguments."""
    points, labels = network_input(batch, config, step)
    return StepInput(batch, detector.encode(points, batch.size), build_targets(labels, config))


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
    if device.type != "cuda":
        for done, batch in enumerate(batches, step):
            yield step_input(to_device(batch, device), detector, config, done)
        return
    network = torch.cuda.current_stream(device)
    stream = torch.cuda.Stream(device, priority=-1)
    before: StepInput | None = None  # alive until the one after it is made: the network may not have read it to the end
    launched = None
    for done, batch in enumerate(batches, step):
        if launched is not None:
            stream.wait_event(launched)  # only what the step before last has read may be written over
        with torch.cuda.stream(stream):
            made = step_input(to_device(batch, device), detector, config, done)
        launched = network.record_event()
        network.wait_stream(stream)
        yield made
        before = made  # noqa: F841
