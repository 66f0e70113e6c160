"""What the fork saw of the tasks' conflict, measured in the backward pass.

The numbers travel as the gradient of a zero tensor (the probe) that the fork's Function takes as an input: they stay on
the device, and autograd adds them up over the micro-batches of a step. The first number counts the backward passes, so
that the mean over them can be told.
"""

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from detection3d.multitask.arithmetic import gram_matrix
from detection3d.multitask.graddrop import purity
from detection3d.multitask.method import Combination, Context
from detection3d.multitask.ranks import Ranks

PURITY_BINS = 20
"""Bins of equal width between the purities 0 and 1, which have a bin of their own each."""

_LANES = 1024  # counters side by side, so that the additions of a GPU's threads rarely wait for one another


@dataclass(frozen=True)
class Telemetry:
    """Conflict of K tasks at the fork: means over the backward passes since the last reading.

    All tensors are float64 on the CPU. After an overflow under a loss scaler values may be inf or NaN.

    Attributes:
        tasks: names of the tasks.
        passes: backward passes that were measured.
        gradient_norm: [K], global L2 norm of each task's gradient as it arrives at its alias.
        cosine: [K, K], cosine of each pair of gradients; 0 where one of them is 0.
        conflict_share: share of positions at which the non-zero G_i do not all have the same sign.
        active_share: share of positions at which some G_i is not 0.
        nonpositive_share: share of the activation's elements that are <= 0, which a ReLU after the fork stops.
        kept_mass: [K], sum |c_i g_i| / sum |g_i|, how much of each task's gradient the method lets through, before
            rescaling; 1 where the gradient is 0.
        expected_noise: sqrt(sum S+ S-) / ||sum_i G_i|| over all positions, what GradDrop's draw would add if neither a
            leak nor a rescaling nor another keep than the purity tempered it: a property of the gradients, whatever the
            method. S+ S- is the variance of the draw at a position, so this is the standard deviation of the drawn
            gradient relative to the norm of its mean; the gradient itself where nothing is marginalized, else its
            contraction, sum of sgn(A) times it. 0 without conflict, inf where the tasks cancel everywhere.
        purity_histogram: [PURITY_BINS + 2], shares of the active positions by purity: exactly 0 (no task has a positive
            G_i), `PURITY_BINS` equal bins [k, k + 1) / PURITY_BINS of what is in conflict, and exactly 1; all 0 where
            no position is active.
    """

    tasks: tuple[str, ...]
    passes: int
    gradient_norm: Tensor
    cosine: Tensor
    conflict_share: float
    active_share: float
    nonpositive_share: float
    kept_mass: Tensor
    expected_noise: float
    purity_histogram: Tensor

    def scalars(self) -> dict[str, float]:
        """Return all but the histogram by flat names, `gradient_norm/box` or `cosine/box/orientation`, a pair once."""
        values = {
            f"gradient_norm/{task}": float(norm) for task, norm in zip(self.tasks, self.gradient_norm, strict=True)
        }
        for row, first in enumerate(self.tasks):
            for column in range(row + 1, len(self.tasks)):
                values[f"cosine/{first}/{self.tasks[column]}"] = float(self.cosine[row, column])
        values |= {f"kept_mass/{task}": float(kept) for task, kept in zip(self.tasks, self.kept_mass, strict=True)}
        shares = {field.name: getattr(self, field.name) for field in fields(self) if field.name.endswith("_share")}
        return values | shares | {"expected_noise": self.expected_noise}


def probe_size(tasks: int) -> int:
    """Return how many numbers `measure` gives for so many tasks."""
    return sum(_sections(tasks).values())


def measure(gradients: Tensor, combination: Combination, activation: Tensor, context: Context) -> Tensor:
    """Measure one backward pass, over all ranks.

    Args:
        gradients: [K, ...], float32 or float64.
        combination: what the method made of them.
        activation: A, [B, ...].
        context: names, positions and ranks.

    Returns:
        float64 [probe_size(K)], on the device.
    """
    gram = gram_matrix(gradients, context.ranks) if combination.gram is None else combination.gram
    norms = gram.diagonal().sqrt()
    positions = combination.position_gradients
    if positions is None:
        positions = context.positions.sum(gradients, activation, context.ranks)
    sums = _sums(gradients, combination.coefficients, positions, activation, context.ranks)
    active = sums["histogram"].sum()
    measured = {
        "passes": norms.new_ones(1),
        "gradient_norm": norms,
        "cosine": _cosines(gram, norms).flatten(),
        "conflict_share": _ratio(sums["histogram"][1:-1].sum(), sums["positions"], 0.0),
        "active_share": _ratio(active, sums["positions"], 0.0),
        "nonpositive_share": _ratio(sums["nonpositive"], sums["elements"], 0.0),
        "kept_mass": _ratio(sums["kept"], sums["mass"], 1.0),
        "expected_noise": torch.where(sums["noise"] == 0, 0.0, (sums["noise"] / sums["signal"]).sqrt()),
        "purity_histogram": _ratio(sums["histogram"], active, 0.0),
    }
    return torch.cat([measured[name] for name in _sections(len(gradients))])


def read(numbers: Tensor, tasks: tuple[str, ...], loss_scale: float = 1.0) -> Telemetry:
    """Turn a probe's gradient into `Telemetry`; copies to the host and waits for the device.

    Args:
        numbers: float64 [probe_size(K)], the sum of what `measure` returned in one or more passes.
        tasks: names of the K tasks.
        loss_scale: what the losses were multiplied with; the norms are divided by it.
    """
    sizes = _sections(len(tasks))
    parts = dict(zip(sizes, numbers.detach().cpu().split(list(sizes.values())), strict=True))
    passes = float(parts["passes"])
    return Telemetry(
        tasks=tasks,
        passes=round(passes),
        gradient_norm=parts["gradient_norm"] / (passes * loss_scale),
        cosine=parts["cosine"].reshape(len(tasks), len(tasks)) / passes,
        conflict_share=float(parts["conflict_share"]) / passes,
        active_share=float(parts["active_share"]) / passes,
        nonpositive_share=float(parts["nonpositive_share"]) / passes,
        kept_mass=parts["kept_mass"] / passes,
        expected_noise=float(parts["expected_noise"]) / passes,
        purity_histogram=parts["purity_histogram"] / passes,
    )


def _sections(tasks: int) -> dict[str, int]:
    """Layout of the probe: the parts in their order, and how many numbers each takes."""
    return {
        "passes": 1,
        "gradient_norm": tasks,
        "cosine": tasks * tasks,
        "conflict_share": 1,
        "active_share": 1,
        "nonpositive_share": 1,
        "kept_mass": tasks,
        "expected_noise": 1,
        "purity_histogram": PURITY_BINS + 2,
    }


def _cosines(gram: Tensor, norms: Tensor) -> Tensor:
    """Cosines [K, K] of the gradients; products are taken in float64, where those of a float32 do not vanish."""
    scale = norms[:, None] * norms[None, :]
    return torch.where(scale == 0, 0.0, gram / scale)


def _sums(
    gradients: Tensor, coefficients: Tensor, positions: Tensor, activation: Tensor, ranks: Ranks
) -> dict[str, Tensor]:
    """Add up what the shares and ratios are made of, over the ranks in a single collective; float64 [...] by name.

    Positions that all ranks share count once for each rank, in numerators and denominators alike.
    """
    positive, negative = positions.clamp(min=0).sum(0), (-positions).clamp(min=0).sum(0)
    # The product of the roots neither overflows nor vanishes.
    noise = positive.sqrt() * negative.sqrt()
    each = list(range(1, gradients.ndim))
    parts = {
        "mass": torch.linalg.vector_norm(gradients, ord=1, dim=each, dtype=torch.float64),
        "kept": torch.linalg.vector_norm(coefficients * gradients, ord=1, dim=each, dtype=torch.float64),
        "noise": _square_sum(noise),
        "signal": _square_sum(positions.sum(0)),
        "histogram": _histogram(positions, positive > 0, negative > 0),
        "positions": noise.new_full((1,), noise.numel(), dtype=torch.float64),
        "nonpositive": (activation <= 0).sum(dtype=torch.float64).reshape(1),
        "elements": noise.new_full((1,), activation.numel(), dtype=torch.float64),
    }
    summed = ranks.sum(torch.cat(list(parts.values())))
    return dict(zip(parts, summed.split([len(part) for part in parts.values()]), strict=True))


def _histogram(positions: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
    """Count active positions by purity, float64 [PURITY_BINS + 2].

    Whether a position is in conflict is told from the signs: the purity of a hopeless minority rounds to 0 or 1.
    `torch.bincount` would make the host wait for the device.

    Args:
        positions: G, [K, ...].
        positive: bool [...], where some G_i is above 0.
        negative: bool [...], where some G_i is below 0.
    """
    between = (purity(positions) * PURITY_BINS).nan_to_num().floor().clamp(0, PURITY_BINS - 1) + 1
    bins = torch.where(positive & negative, between, torch.where(positive, PURITY_BINS + 1, 0))
    bins = torch.where(positive | negative, bins, PURITY_BINS + 2).long().flatten()
    lane = torch.arange(len(bins), device=bins.device) % _LANES
    counts = bins.new_zeros((PURITY_BINS + 3) * _LANES)  # of whole numbers, whose order of addition does not matter
    counts.scatter_add_(0, bins * _LANES + lane, torch.ones_like(bins))
    return counts.reshape(-1, _LANES).sum(1)[:-1].double()


def _square_sum(values: Tensor) -> Tensor:
    """Sum of squares in float64, [1]."""
    return torch.linalg.vector_norm(values, dtype=torch.float64).square().reshape(1)


def _ratio(part: Tensor, whole: Tensor, empty: float) -> Tensor:
    """Return part / whole as a vector, `empty` where the whole is 0."""
    return torch.where(whole == 0, empty, part / whole).reshape(-1)
