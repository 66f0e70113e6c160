"""Batches prepared beside the step before, on a GPU: what the network gets is what it would get without."""

import itertools
from pathlib import Path

import pytest
import torch

from detection3d.data.store import Store
from detection3d.model.sparse import SparseTensor
from detection3d.training.batches import training_batches
from detection3d.training.state import build_state
from detection3d.training.step import train_step
from detection3d.training.step_input import step_input, step_inputs
from detection3d.types.tensors import to_device
from tests.small_run import small_config

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
GPU = torch.device("cuda")
STEPS = 12
AUGMENTED = (
    "augmentation.rotation=0.7",
    "augmentation.flip_x=0.5",
    "augmentation.point_dropout=0.3",
    "training.steps=99",
)


def test_no_input_is_written_over_while_the_network_reads_it(store: Path) -> None:
    config = small_config(*AUGMENTED, data=store)
    state = build_state(config, GPU)
    batches = list(training_batches(Store.open(store), config, total_steps=STEPS, workers=0))
    busy = torch.randn(4000, 4000, device=GPU)
    kept = []
    for given in step_inputs(iter(batches), state.model, config, GPU, 0):
        for _ in range(20):  # some ten milliseconds, in which the host runs on
            busy = (busy @ busy).clamp(-1, 1)
        part = given.parts[0]
        assert isinstance(part.voxels, SparseTensor)
        kept.append([part.voxels.features.clone(), part.voxels.indices.clone(), part.targets.heatmap.clone()])
    assert len(kept) == STEPS
    for number, (batch, found) in enumerate(zip(batches, kept, strict=True)):
        part = step_input(to_device(batch, GPU), state.model, config, number).parts[0]
        assert isinstance(part.voxels, SparseTensor)
        expected = [part.voxels.features, part.voxels.indices, part.targets.heatmap]
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True)), number


@pytest.mark.parametrize("accumulation", [1, 2])
def test_steps_with_and_without_graphs_are_alike(store: Path, accumulation: int) -> None:
    losses, norms = [], []
    for graphs in ("true", "false"):
        heads = "model.heads={classification: [heatmap, quality], box: [offset, height, size], orientation: [heading]}"
        settings = (heads, "loss.iou_weight=1", "multitask.method=sum", "training.steps=99", "training.clip_norm=1")
        parts = (f"training.accumulation={accumulation}", f"training.cuda_graphs={graphs}")
        config = small_config(*parts, *settings, data=store)
        state = build_state(config, GPU)
        batches = training_batches(Store.open(store), config, total_steps=5, workers=0)
        found, sizes = [], []
        for given in step_inputs(batches, state.model, config, GPU, 0):
            assert len(given.parts) == accumulation
            result = train_step(state, given, config)
            found.append(torch.stack([loss.detach().clone() for loss in result.losses.as_dict().values()]))
            sizes.append(result.gradient_norm)
        losses.append(torch.stack(found).cpu())
        norms.append(torch.stack(sizes).cpu())
    torch.testing.assert_close(losses[0], losses[1], rtol=2e-3, atol=2e-3)
    torch.testing.assert_close(norms[0], norms[1], rtol=1e-2, atol=1e-3)
    assert losses[0][-1].sum() < losses[0][0].sum()


def test_an_error_of_a_batch_comes_in_its_turn(store: Path) -> None:
    config = small_config(data=store)
    state = build_state(config, GPU)
    batches = training_batches(Store.open(store), config, total_steps=2, workers=0)

    def breaking():
        yield from itertools.islice(batches, 2)
        raise RuntimeError("a worker was killed")

    inputs = step_inputs(breaking(), state.model, config, GPU, 0)
    assert [next(inputs).batch.size, next(inputs).batch.size] == [2, 2]
    with pytest.raises(RuntimeError, match="a worker was killed"):
        next(inputs)
