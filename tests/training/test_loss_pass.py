"""Losses of a step: padding that changes none of them, and the way through the tensors that a graph would take."""

from pathlib import Path

import torch

from detection3d.data.store import Store
from detection3d.model.losses import compute_losses
from detection3d.model.targets import build_targets
from detection3d.training.batches import training_batches
from detection3d.training.loss_pass import OBJECTS_TOGETHER, LossPass, pad_objects
from detection3d.training.state import build_state
from detection3d.training.step_input import network_input, step_input
from detection3d.types.tensors import HeadOutputs
from tests.small_run import small_config
from tests.training.steps import CPU

HEADS = "model.heads={classification: [heatmap, quality], box: [offset, height, size], orientation: [heading]}"


def test_padded_labels_give_the_same_losses_by_either_way(store: Path) -> None:
    config = small_config(HEADS, "loss.iou_weight=1", data=store)
    batch = next(training_batches(Store.open(store), config, total_steps=1, workers=0))
    labels = network_input(batch, config, 0)[1]
    padded = pad_objects(labels)
    assert padded.types.shape[1] == OBJECTS_TOGETHER
    assert padded.boxes.shape == (2, OBJECTS_TOGETHER, 7)
    assert padded.velocity.shape == (2, OBJECTS_TOGETHER, 2)
    assert pad_objects(padded).types.shape == padded.types.shape
    state = build_state(config, CPU)
    given = step_input(batch, state.model, config, 0)
    maps = {task: values.detach().requires_grad_() for task, values in state.model(given.parts[0].voxels).maps.items()}
    found = []
    for some in (labels, padded):
        for graphs in (False, True):  # which on the CPU goes through the module that would be recorded
            losses = LossPass(config, graphs=graphs)(HeadOutputs(maps), build_targets(some, config))
            total = torch.stack(list(losses.as_dict().values())).sum()
            found.append([losses.as_dict(), torch.autograd.grad(total, list(maps.values()))])
    expected = compute_losses(HeadOutputs(maps), given.targets, config)
    torch.testing.assert_close(found[0][0], expected.as_dict(), rtol=0, atol=0)
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-5, atol=1e-6)
