"""The measure of GradDrop's bias against plain averages over the draw, and its figures for normal gradients."""

import math
from pathlib import Path

import pytest
import torch

from detection3d.multitask import graddrop
from detection3d.multitask.positions import DensePositions
from detection3d.training.loop import train
from docs.experiments import fork_bias
from tests.data.made_frames import write_store
from tests.small_run import near_frame, small_config


@pytest.mark.parametrize("pooling", fork_bias.POOLINGS)
def test_equals_averages_over_draws(pooling: fork_bias.Pooling) -> None:
    gradients, activation = (values[..., :500, :] for values in fork_bias.normal_gradients(3, 2))
    gradients = gradients * (torch.rand(gradients.shape, generator=torch.Generator().manual_seed(1)) > 0.4)
    figures = fork_bias.measure(gradients, activation, pooling)
    total, draws = gradients.sum(0), 1000
    shape = DensePositions(pooling).shape(activation.shape)
    generator = torch.Generator().manual_seed(2)
    sums, squares, along = torch.zeros_like(total), 0.0, 0.0
    for _ in range(draws):
        uniform = torch.rand(shape, generator=generator, dtype=torch.float64)
        result = graddrop(gradients, activation, uniform, marginalize=pooling, preserve_norm=False)
        sums += result
        squares += result.square().sum().item() / draws
        scaled = graddrop(gradients, activation, uniform, marginalize=pooling)
        along += ((scaled * total).sum() / total.square().sum()).item() / draws
    mean, norm = sums / draws, total.norm().item()
    variance = squares - mean.square().sum().item()
    # The mean of the draws is off by noise / sqrt(1000), about 0.02 of the norm, at right angles to the bias.
    assert (mean - total).norm().item() / norm == pytest.approx(figures.bias, abs=0.02)
    assert math.sqrt(variance) / norm == pytest.approx(figures.noise, rel=0.01)
    cosine = (mean * total).sum().item() / (mean.norm().item() * norm)
    assert cosine == pytest.approx(figures.cosine, abs=0.002)
    assert along == pytest.approx(figures.along, abs=0.005)


def test_figures_by_hand() -> None:
    # One channel in conflict, G = (3, -1) and G = (-1, -1); three tasks, of which the last has no gradient.
    gradients = torch.tensor([[[3.0, -1.0]], [[-1.0, -1.0]], [[0.0, 0.0]]])
    figures = fork_bias.measure(gradients, torch.ones(1, 2), "none")
    assert figures.shared == 1.0
    assert figures.conflict == 0.5
    assert figures.mass == pytest.approx(4 / 6, rel=1e-12)
    assert figures.bias == pytest.approx(0, abs=1e-12)
    assert figures.cosine == pytest.approx(1, rel=1e-12)
    assert figures.noise == pytest.approx(math.sqrt(3 / 8), rel=1e-12)  # S+ S- = 3, |g|^2 = 4 + 4
    assert figures.along == pytest.approx(math.sqrt(8 / 11), rel=1e-12)
    # In a batch of two samples with activations of opposite sign, G = (3 - 1, -1 - -1) and so on.
    batch = torch.tensor([[[3.0], [1.0]], [[-1.0], [-1.0]], [[0.0], [0.0]]])
    pooled = fork_bias.measure(batch, torch.tensor([[1.0], [-1.0]]), "batch")
    assert (pooled.shared, pooled.conflict, pooled.mass) == (0.0, 0.0, 0.0)  # G = (2, 0, 0)


def test_more_samples_more_bias() -> None:
    biases = [fork_bias.measure(*fork_bias.normal_gradients(3, samples), "batch").bias for samples in (1, 2, 4)]
    assert biases[0] < 1e-12
    assert 0.25 < biases[1] < biases[2] < 0.5


def test_prints_a_table(capsys) -> None:
    fork_bias.main([])
    printed = capsys.readouterr().out
    assert "batch, 8 samples" in printed
    assert "0.868" in printed  # the last column of "none": sqrt(3 / 3.955) up to the sample


def test_locality_by_hand() -> None:
    gradients = torch.zeros(2, 1, 2, 1, 4)
    gradients[0] = 1
    gradients[1, 0, :, 0, 0] = torch.tensor([3.0, -1.0])
    gradients[1, 0, 1, 0, 3] = -4
    near = torch.tensor([[[True, False, False, False]]])
    case = fork_bias.ForkGradients(("everywhere", "somewhere"), gradients, torch.ones(1, 2, 1, 4), near)
    assert fork_bias.locality([case]) == {"everywhere": [1.0, 0.25, 0.25], "somewhere": [0.5, 0.25, 0.5]}


def test_gradients_of_a_trained_detector(tmp_path: Path) -> None:
    settings = ("training.steps=1", "training.checkpoint_every=1", "training.log_every=1")
    # Different numbers of objects: the batch is padded with some that are none.
    frames = [near_frame("segment", 1000 + boxes, boxes=boxes) for boxes in (1, 4)]
    write_store(tmp_path / "store", {"segment": frames})
    config = small_config(*settings, data=tmp_path / "store")
    train(config, tmp_path / "run", torch.device("cpu"))
    (fixed,) = fork_bias.detector_gradients(tmp_path / "run", 1, fixed_norms=True)
    (trained,) = fork_bias.detector_gradients(tmp_path / "run", 1, fixed_norms=False)
    assert fixed.tasks == ("classification", "box", "orientation")
    assert torch.equal(fixed.near, trained.near)
    assert 0 < fixed.near.float().mean() < 0.9
    touched = [(case.gradients != 0).any(dim=2) for case in (fixed, trained)]
    assert bool((touched[0][0] & ~fixed.near).any())
    for place in (1, 2):
        assert torch.equal(touched[0][place], fixed.near)
        assert bool((touched[1][place] & ~fixed.near).any())  # BatchNorm's statistics spread every gradient
    # The aliases are taken before the ReLU: what it stops has no gradient.
    assert fixed.gradients[:, fixed.activation <= 0].abs().max() == 0
