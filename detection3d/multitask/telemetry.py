"""What the fork saw of the tasks' conflict, measured in the backward pass.

The numbers travel as the gradient of a zero tensor (the probe) that the fork's Function takes as an input: they stay on
the device, and autograd adds them up over the micro-batches of a step. The first number counts the backward passes, so
that the mean over them can be told.
"""

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from detection3d.multitask.arithmetic import gram_matrix
from detection3d.multitask.method import Combination, Context
from detection3d.multitask.ranks import Ranks


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
    """

    tasks: tuple[str, ...]
    passes: int
    gradient_norm: Tensor
    cosine: Tensor
    conflict_share: float
    active_share: float
    nonpositive_share: float
    kept_mass: Tensor

    def scalars(self) -> dict[str, float]:
        """Return the values under flat names, `gradient_norm/box` or `cosine/box/orientation`, each pair once."""
        values = {
            f"gradient_norm/{task}": float(norm) for task, norm in zip(self.tasks, self.gradient_norm, strict=True)
        }
        for row, first in enumerate(self.tasks):
            for column in range(row + 1, len(self.tasks)):
                values[f"cosine/{first}/{self.tasks[column]}"] = float(self.cosine[row, column])
        values |= {f"kept_mass/{task}": float(kept) for task, kept in zip(self.tasks, self.kept_mass, strict=True)}
        return values | {
            field.name: getattr(self, field.name) for field in fields(self) if field.name.endswith("_share")
        }


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
    ranks = context.ranks
    gram = gram_matrix(gradients, ranks)
    norms = gram.diagonal().sqrt()
    positions = combination.position_gradients
    if positions is None:
        positions = context.positions.sum(gradients, activation, ranks)
    positive, negative = (positions > 0).any(0), (positions < 0).any(0)
    measured = {
        "passes": norms.new_ones(1),
        "gradient_norm": norms,
        "cosine": _cosines(gram, norms).flatten(),
        "conflict_share": _share(positive & negative),
        "active_share": _share(positive | negative),
        "nonpositive_share": ranks.sum(_share(activation <= 0)) / ranks.size,
        "kept_mass": _kept_mass(gradients, combination.coefficients, ranks),
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
    }


def _cosines(gram: Tensor, norms: Tensor) -> Tensor:
    """Cosines [K, K] of the gradients; products are taken in float64, where those of a float32 do not vanish."""
    scale = norms[:, None] * norms[None, :]
    return torch.where(scale == 0, 0.0, gram / scale)


def _kept_mass(gradients: Tensor, coefficients: Tensor, ranks: Ranks) -> Tensor:
    dims = list(range(1, gradients.ndim))
    total = torch.linalg.vector_norm(gradients, ord=1, dim=dims, dtype=torch.float64)
    kept = torch.linalg.vector_norm(coefficients * gradients, ord=1, dim=dims, dtype=torch.float64)
    kept, total = ranks.sum(torch.stack([kept, total])).unbind()
    return torch.where(total == 0, 1.0, kept / total)


def _share(mask: Tensor) -> Tensor:
    """Share of true entries, [1]; 0 of an empty mask."""
    return mask.sum(dtype=torch.float64).reshape(1) / max(mask.numel(), 1)
