"""Conflicting losses of one number that share one joint minimum: where the plain sum and GradDrop end up.

    python docs/experiments/toy_conflict.py --output docs/toy_conflict.png

A landscape is five losses L_i(x) = 1 - cos(f_i x), whose gradients are sines. The f_i are five different halves of
integers without a common divisor. So x lives on a circle of length 4 pi, and all five losses are 0 at x = 0 alone;
their sum has further local minima, at which the gradients cancel. Every method starts from the same points, gets the
same grid of learning rates, each falling linearly to 0, and sees the same uniform numbers. Learning rates are chosen
on a third of the landscapes and results are told for the others. docs/theory.md discusses the figures.
"""

import argparse
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from detection3d.multitask import RandomSign, graddrop, uniform

HALF_LENGTH = 2 * math.pi  # x lies in [-2 pi, 2 pi)
CLOSE = 0.1  # two points nearer than this count as the same
TASKS = 5
RATES = (0.003, 0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.14, 0.2, 0.3)
Method = Callable[[Tensor, Tensor], Tensor]


def draw_frequencies(count: int, seed: int) -> Tensor:
    """Choose `count` different landscapes.

    Returns:
        Frequencies f, float64 [K, count], of five tasks.

    Raises:
        ValueError: there are not so many.
    """
    choices = [numbers for numbers in itertools.combinations(range(2, 11), TASKS) if math.gcd(*numbers) == 1]
    if not 0 < count <= len(choices):
        raise ValueError(f"{count} landscapes; choose from 1 to {len(choices)}, as many as there are")
    order = torch.randperm(len(choices), generator=torch.Generator().manual_seed(seed))[:count].tolist()
    return torch.tensor([choices[place] for place in order], dtype=torch.float64).T / 2


def draw_starts(landscapes: int, count: int, seed: int) -> Tensor:
    """Draw x uniformly from the circle, float64 [landscapes, count]."""
    generator = torch.Generator().manual_seed(seed)
    return wrap(torch.rand(landscapes, count, generator=generator, dtype=torch.float64) * 2 * HALF_LENGTH)


def losses(frequencies: Tensor, x: Tensor) -> Tensor:
    """Return each task's loss: f [K, S] and x [..., S, N] to [K, ..., S, N]."""
    return 1 - torch.cos(_align(frequencies, x) * x)


def gradients(frequencies: Tensor, x: Tensor) -> Tensor:
    """Return each task's derivative with respect to x, shaped as `losses`."""
    aligned = _align(frequencies, x)
    return aligned * torch.sin(aligned * x)


def plain_sum(gradients: Tensor, _: Tensor) -> Tensor:
    """Add up."""
    return gradients.sum(0)


def free(gradients: Tensor, uniform: Tensor) -> Tensor:
    """Apply GradDrop as in the paper's theory, without rescaling; every number is a position."""
    return graddrop(gradients, gradients[0], uniform, marginalize="none", preserve_norm=False)


def norm_alone(gradients: Tensor, uniform: Tensor) -> Tensor:
    """Apply GradDrop with the norm preserved for each start by itself: a network of one number."""
    return free(gradients, uniform).sign() * gradients.sum(0).abs()


def norm_together(gradients: Tensor, uniform: Tensor) -> Tensor:
    """Apply GradDrop with one norm for all starts (the last dim): a network of so many numbers."""
    result = free(gradients, uniform)
    norm, wanted = (values.norm(dim=-1, keepdim=True) for values in (result, gradients.sum(0)))
    return result * torch.where(norm == 0, 1.0, wanted / norm)


def random_sign(gradients: Tensor, uniform: Tensor) -> Tensor:
    """Keep either sign with probability 1/2."""
    keep = RandomSign().keep
    return graddrop(gradients, gradients[0], uniform, keep=keep, marginalize="none", preserve_norm=False)


def matched_noise(gradients: Tensor, uniform: Tensor) -> Tensor:
    """Add normal noise of GradDrop's variance S+ S- to the plain sum: no sign is picked."""
    positive, negative = gradients.clamp(min=0).sum(0), (-gradients).clamp(min=0).sum(0)
    normal = math.sqrt(2) * torch.erfinv(2 * uniform + 2.0**-24 - 1)  # the middle of the draw's cell: never +-1
    return positive - negative + (positive * negative).sqrt() * normal


METHODS: dict[str, Method] = {
    "plain sum": plain_sum,
    "GradDrop": free,
    "GradDrop, norm of 1 number": norm_alone,
    "GradDrop, norm of all starts": norm_together,
    "random sign": random_sign,
    "sum and noise of GradDrop's size": matched_noise,
}


def descend(method: Method, frequencies: Tensor, starts: Tensor, rates: Sequence[float], steps: int) -> Tensor:
    """Take gradient steps with a learning rate that falls linearly to 0.

    Args:
        method: from gradients [K, R, S, N] and uniform numbers [R, S, N] to the gradient of the step [R, S, N].
        frequencies: [K, S].
        starts: x at the start, float64 [S, N].
        rates: R learning rates.
        steps: how many.

    Returns:
        x at the end, [R, S, N], wrapped into [-2 pi, 2 pi).
    """
    rate = torch.tensor(rates, dtype=torch.float64)[:, None, None]
    x = starts.expand(len(rates), *starts.shape)
    for step in range(steps):
        numbers = uniform(starts.shape, 0, step, "toy_conflict", "cpu").double().expand_as(x)
        x = x - rate * (1 - step / steps) * method(gradients(frequencies, x), numbers)
    return wrap(x)


def wrap(x: Tensor) -> Tensor:
    """Bring x into [-2 pi, 2 pi)."""
    return torch.remainder(x + HALF_LENGTH, 2 * HALF_LENGTH) - HALF_LENGTH


def local_minima(frequencies: Tensor, starts: Tensor) -> Tensor:
    """Return the minima of the sum at which gradients cancel, [S, N].

    Args:
        frequencies: [K, S].
        starts: from which the plain sum descends, [S, N].

    Returns:
        Where it ends; NaN where all gradients are 0, at the joint minimum and sometimes at 2 pi.
    """
    ends = descend(plain_sum, frequencies, starts, [0.02], 4000)[0]
    return torch.where(gradients(frequencies, ends).abs().amax(0) < CLOSE, math.nan, ends)


def on_cancelling_maximum(frequencies: Tensor, x: Tensor) -> Tensor:
    """Tell which x [..., S, N] lie on a maximum of the sum at which not all gradients are 0."""
    aligned = _align(frequencies, x)
    curvature = (aligned.square() * torch.cos(aligned * x)).sum(0)
    each = gradients(frequencies, x)
    return (each.sum(0).abs() < CLOSE) & (each.abs().amax(0) > CLOSE) & (curvature < 0)


def share(hits: Tensor, valid: Tensor | None = None) -> Tensor:
    """Return the share of true entries among the valid ones of the last dim."""
    valid = torch.ones_like(hits) if valid is None else valid.expand_as(hits)
    return (hits & valid).sum(-1) / valid.sum(-1)


def _align(frequencies: Tensor, x: Tensor) -> Tensor:
    return frequencies.reshape(len(frequencies), *([1] * (x.ndim - 2)), -1, 1)


@dataclass(frozen=True)
class Results:
    """What came out for S landscapes of N starts and R learning rates; dictionaries by method.

    Attributes:
        frequencies: [K, S].
        tuning: how many landscapes, the first ones, serve for choosing learning rates.
        ends: [R, S, N].
        reached: share of starts that end at the joint minimum, [R, S].
        loss: mean sum of the losses at the end, [R, S].
        maximum: share that end on a maximum of the sum at which gradients cancel, [R, S].
        left: share that leave the local minimum of the sum at which they start, [R, S].
    """

    frequencies: Tensor
    tuning: int
    ends: dict[str, Tensor]
    reached: dict[str, Tensor]
    loss: dict[str, Tensor]
    maximum: dict[str, Tensor]
    left: dict[str, Tensor]

    def best(self, name: str) -> int:
        """Return the place in `RATES` of the lowest mean loss on the landscapes for choosing."""
        return int(self.loss[name][:, : self.tuning].mean(1).argmin())


def experiment(landscapes: int, starts: int, steps: int) -> Results:
    """Run every method at every rate, from random starts and from the local minima of the sum."""
    frequencies = draw_frequencies(landscapes, seed=0)
    points = draw_starts(landscapes, starts, seed=1)
    minima = local_minima(frequencies, points)
    inside, minima = ~minima.isnan(), minima.nan_to_num()
    ends = {name: descend(method, frequencies, points, RATES, steps) for name, method in METHODS.items()}
    later = {name: descend(method, frequencies, minima, RATES, steps) for name, method in METHODS.items()}
    return Results(
        frequencies,
        landscapes // 3,
        ends,
        reached={name: share(x.abs() < CLOSE) for name, x in ends.items()},
        loss={name: losses(frequencies, x).sum(0).mean(-1) for name, x in ends.items()},
        maximum={name: share(on_cancelling_maximum(frequencies, x)) for name, x in ends.items()},
        left={name: share(wrap(x - minima).abs() > CLOSE, inside) for name, x in later.items()},
    )


def print_table(results: Results, console: Console) -> None:
    """Print every learning rate, and what the chosen ones give on the other landscapes."""
    measures = {
        "share that ends at the joint minimum": results.reached,
        "mean loss at the end": results.loss,
        "share that ends on a maximum of the sum": results.maximum,
        "share that leaves a local minimum of the sum": results.left,
    }
    for title, values in measures.items():
        table = Table("method", *[f"{rate:g}" for rate in RATES], title=f"{title}, by learning rate, all landscapes")
        for name in METHODS:
            table.add_row(name, *[f"{value:.3f}" for value in values[name].mean(1)])
        console.print(table)
    rest = slice(results.tuning, None)
    table = Table(
        "method", "learning rate", "joint minimum", "mean loss", "loss less the sum's", title="at the chosen rates"
    )
    base = results.loss["plain sum"][results.best("plain sum"), rest]
    for name in METHODS:
        place = results.best(name)
        loss = results.loss[name][place, rest]
        cells = [_mean_and_error(values) for values in (results.reached[name][place, rest], loss, loss - base)]
        table.add_row(name, f"{RATES[place]:g}", *cells)
    console.print(table)


def _mean_and_error(values: Tensor) -> str:
    """Mean over landscapes and its standard error."""
    return f"{values.mean():.3f} +- {values.std() / math.sqrt(len(values)):.3f}"


def draw_picture(results: Results, path: Path) -> None:
    """Draw one landscape, the end points on it, and both shares over the learning rate."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    figure = plt.figure(figsize=(14, 8), layout="constrained")
    panels = {"landscape": 1, "ends": (2, 3), "reached": 4, "loss": 5, "left": 6}
    axes = {name: figure.add_subplot(2, 3, place) for name, place in panels.items()}
    shown = results.tuning  # the first landscape on which no learning rate was chosen
    x = torch.linspace(-HALF_LENGTH, HALF_LENGTH, 1201, dtype=torch.float64)
    each = losses(results.frequencies[:, shown : shown + 1], x[None])[:, 0]
    axes["landscape"].plot(x.numpy(), each.T.numpy(), color="0.75", linewidth=0.8)
    axes["landscape"].plot(x.numpy(), each.sum(0).numpy(), color="black")
    axes["landscape"].plot(0, 0, "v", color="tab:red", markersize=9, clip_on=False)
    axes["landscape"].set(title="five losses (grey), their sum, joint minimum", xlabel="x", ylabel="loss")

    edges = torch.linspace(-HALF_LENGTH, HALF_LENGTH, 126, dtype=torch.float64)  # an odd number of bins: one around 0
    for row, name in enumerate(METHODS):
        place, bottom = results.best(name), len(METHODS) - 1 - row
        counts = torch.histogram(results.ends[name][place, shown], edges).hist
        bars = {"width": float(edges[1] - edges[0]), "align": "edge", "bottom": bottom, "color": f"C{row}"}
        axes["ends"].bar(edges[:-1].numpy(), (0.75 * counts / counts.max()).numpy(), **bars)
        axes["ends"].text(0, bottom + 0.79, f"{name}, learning rate {RATES[place]:g}", fontsize=9, ha="center")
        axes["ends"].axhline(bottom, color="0.7", linewidth=0.6)
    axes["ends"].set(title="where the runs end on it", xlabel="x", yticks=[], ylim=(0, len(METHODS)))
    axes["ends"].set_ylabel("starts, each method to its own scale")

    for panel, values, title in (
        ("reached", results.reached, "share of starts that end at the joint minimum"),
        ("loss", results.loss, "mean loss at the end"),
        ("left", results.left, "share of runs that leave a minimum of the sum"),
    ):
        for name in METHODS:
            error = values[name].std(1) / math.sqrt(values[name].shape[1])
            axes[panel].errorbar(
                RATES, values[name].mean(1).numpy(), error.numpy(), label=name, marker="o", markersize=4, capsize=2
            )
        axes[panel].set(title=title, xlabel="learning rate at the start", xscale="log")
        axes[panel].set_ylim(bottom=0)
    figure.legend(*axes["loss"].get_legend_handles_labels(), loc="outside lower center", ncols=len(METHODS) // 2)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run everything, print the tables and write the picture."""
    parser = argparse.ArgumentParser(description="Where methods end up on conflicting losses of one number.")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="the picture, .png")
    parser.add_argument("--landscapes", type=int, default=30, metavar="N", help="a third serves for choosing rates")
    parser.add_argument("--starts", type=int, default=100, metavar="N", help="in each landscape")
    parser.add_argument("--steps", type=int, default=4000, metavar="N", help="of every run")
    options = parser.parse_args(arguments)
    results = experiment(options.landscapes, options.starts, options.steps)
    print_table(results, Console(width=120))
    draw_picture(results, options.output)


if __name__ == "__main__":
    main()
