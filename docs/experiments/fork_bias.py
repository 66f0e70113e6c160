"""How far the expected result of GradDrop is from the sum of the gradients, for what the method may pool over.

    python docs/experiments/fork_bias.py
    python docs/experiments/fork_bias.py --run demo/run

The first table takes independent normal gradients. The second takes the gradients that arrive at the fork of a trained
detector, on batches of its training data. Expectations over the draw are exact: with U the uniform number of a
position, the result depends on U < P alone, so it has two values with the probabilities P and 1 - P.
docs/theory.md discusses the figures.
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn.functional import max_pool2d

from detection3d.multitask import graddrop
from detection3d.multitask.graddrop import purity
from detection3d.multitask.positions import DensePositions
from detection3d.multitask.ranks import Ranks

Pooling = Literal["none", "batch", "batch+space"]
POOLINGS: tuple[Pooling, ...] = ("none", "batch", "batch+space")
ALMOST_ONE = 1 - 2**-24


@dataclass(frozen=True)
class Figures:
    """One way of pooling on one set of gradients; norms are over all elements.

    Attributes:
        shared: share of positions at which two tasks or more have a gradient G_i.
        conflict: share of positions at which the G_i have both signs.
        mass: share of sum |g_i| that lies at positions with conflict.
        bias: ||E[result] - sum g_i|| / ||sum g_i||.
        cosine: between E[result] and sum g_i.
        noise: sqrt(E ||result - E[result]||^2) / ||sum g_i||.
        along: with the norm preserved, the mean step along sum g_i, as a share of it.
    """

    shared: float
    conflict: float
    mass: float
    bias: float
    cosine: float
    noise: float
    along: float


def measure(gradients: Tensor, activation: Tensor, pooling: Pooling) -> Figures:
    """Measure one way of pooling, with identity keep and no leak.

    `along` takes the norm of the result as its root mean square, which a norm over many positions hardly leaves.

    Args:
        gradients: [K, B, C, ...].
        activation: [B, C, ...].
        pooling: what shares a position.
    """
    gradients, activation = gradients.double(), activation.double()
    positions = DensePositions(pooling)
    summed = positions.sum(gradients, activation, Ranks())
    chance = purity(summed)

    def result(uniform: float) -> Tensor:
        numbers = torch.full_like(chance, uniform)
        return graddrop(gradients, activation, numbers, marginalize=pooling, preserve_norm=False)

    positive, negative = result(0.0), result(ALMOST_ONE)
    mean = chance * positive + (1 - chance) * negative
    variance = (chance * (1 - chance) * (positive - negative).square()).sum()
    total = gradients.sum(0)
    conflict = (summed > 0).any(0) & (summed < 0).any(0)
    mass = gradients.abs().sum(0)
    inner = (mean * total).sum()
    return Figures(
        shared=((summed != 0).sum(0) > 1).double().mean().item(),
        conflict=conflict.double().mean().item(),
        mass=((mass * conflict).sum() / mass.sum()).item(),
        bias=((mean - total).norm() / total.norm()).item(),
        cosine=(inner / (mean.norm() * total.norm())).item(),
        noise=(variance.sqrt() / total.norm()).item(),
        along=(inner / (total.norm() * (mean.square().sum() + variance).sqrt())).item(),
    )


def normal_gradients(tasks: int, samples: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Draw independent normal gradients [K, B, 4096, 4] and an activation [B, 4096, 4]."""
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.randn(tasks + 1, samples, 4096, 4, generator=generator, dtype=torch.float64)
    return numbers[:tasks], numbers[tasks]


@dataclass(frozen=True)
class ForkGradients:
    """What arrives at the fork of a detector for one batch.

    Attributes:
        tasks: names of the K tasks.
        gradients: [K, B, C, H, W].
        activation: [B, C, H, W].
        near: bool [B, H, W], cells at most two cells from an object's own, in each direction: what the two 3x3
            convolutions of a head see of that cell.
    """

    tasks: tuple[str, ...]
    gradients: Tensor
    activation: Tensor
    near: Tensor


def detector_gradients(run: Path, batches: int, fixed_norms: bool) -> Iterator[ForkGradients]:
    """Yield the gradients at the aliases of a trained detector.

    The losses are those of training, unweighed by the method; weights are the averaged ones where the run keeps them.

    Args:
        run: folder that tools/train.py wrote.
        batches: how many batches of the training data, of the run's size.
        fixed_norms: let the heads' BatchNorm use its running statistics. With those of the batch, as in training, a
            gradient at one cell becomes one at every cell.
    """
    from detection3d.data.augment import augment
    from detection3d.data.loader import build_loader
    from detection3d.data.store import Store
    from detection3d.data.unpack import unpack
    from detection3d.errors import UserError
    from detection3d.model.losses import compute_losses
    from detection3d.model.targets import build_targets
    from detection3d.training.checkpoint import find_checkpoint
    from detection3d.training.inference import load_detector, load_run_config

    config = load_run_config(run, [])
    if config.data.train is None:
        raise UserError(f"{run}: the run names no training data (data.train)")
    detector, _ = load_detector(config, find_checkpoint(run), torch.device("cpu"))
    detector.train()
    detector.heads.train(not fixed_norms)
    size = config.training.batch_size
    for batch in build_loader(Store.open(config.data.train), global_batch_size=size, seed=1, total_steps=batches):
        drop = config.data.drop_no_label_zone_points
        points = unpack(batch.points, returns=config.data.returns, drop_no_label_zone=drop)
        points, labels = augment(
            points, batch.labels, config=config.augmentation, seed=config.seed, sample_index=batch.sample_index
        )
        outputs = detector(detector.encode(points, batch.size), batch.sample_index)
        targets = build_targets(labels, config)
        losses = compute_losses(outputs, targets, config).as_dict()
        found = [
            torch.autograd.grad(loss, outputs.features[task], retain_graph=True)[0] for task, loss in losses.items()
        ]
        objects = torch.zeros(batch.size, targets.heatmap[0, 0].numel())
        objects.scatter_reduce_(1, targets.cell, targets.valid.float(), "amax")
        near = max_pool2d(objects.view(batch.size, 1, *targets.heatmap.shape[2:]), 5, stride=1, padding=2)[:, 0] > 0
        yield ForkGradients(tuple(losses), torch.stack(found), outputs.features["classification"].detach(), near)


def locality(cases: Sequence[ForkGradients]) -> dict[str, list[float]]:
    """Tell where each task's gradient lies.

    Returns:
        By task: share of cells with a gradient; share of cells near an object; share of sum |g| there.
    """
    found = {}
    for place, task in enumerate(cases[0].tasks):
        mass = torch.cat([case.gradients[place].abs().sum(1) for case in cases])
        near = torch.cat([case.near for case in cases])
        shares = (mass > 0).float().mean(), near.float().mean(), (mass * near).sum() / mass.sum()
        found[task] = [share.item() for share in shares]
    return found


def mean_figures(cases: Sequence[ForkGradients], pooling: Pooling) -> Figures:
    """Average one way of pooling over batches."""
    found = [measure(case.gradients, case.activation, pooling) for case in cases]
    names = [field.name for field in fields(Figures)]
    return Figures(**{name: sum(getattr(figures, name) for figures in found) / len(found) for name in names})


def print_figures(console: Console, title: str, rows: dict[str, Figures]) -> None:
    """Print one row for each case."""
    names = [field.name for field in fields(Figures)]
    table = Table("pooled over", *names, title=title)
    for label, figures in rows.items():
        table.add_row(label, *[f"{getattr(figures, name):.3f}" for name in names])
    console.print(table)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="The bias of pooled GradDrop.")
    parser.add_argument("--run", type=Path, metavar="RUN", help="a trained detector; without it, normal gradients")
    parser.add_argument("--batches", type=int, default=20, metavar="N", help="batches of the run's training data")
    parser.add_argument("--fixed-norms", action="store_true", help="running statistics in the heads' BatchNorm")
    options = parser.parse_args(arguments)
    console = Console(width=100)
    if options.run is not None:
        arrived = list(detector_gradients(options.run, options.batches, options.fixed_norms))
        figures = {str(pooling): mean_figures(arrived, pooling) for pooling in POOLINGS}
        print_figures(console, f"{options.run}, mean of {options.batches} batches", figures)
        table = Table("task", "cells with a gradient", "cells near an object", "sum |g| near an object")
        for task, shares in locality(arrived).items():
            table.add_row(task, *[f"{share:.3f}" for share in shares])
        console.print(table)
        return
    cases: list[tuple[Pooling, int]] = [
        ("none", 1),
        *[("batch", samples) for samples in (1, 2, 4, 8)],
        ("batch+space", 2),
    ]
    rows = {
        f"{pooling}, {samples} samples": measure(*normal_gradients(3, samples), pooling) for pooling, samples in cases
    }
    print_figures(console, "three independent normal gradients", rows)


if __name__ == "__main__":
    main()
