"""GradDrop written out position by position, in float64 numpy scalars, from the paper's Algorithm 1."""

import itertools
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


def graddrop_loop(
    gradients: Sequence[Array],
    activation: Array,
    uniform: Array,
    leak: Sequence[float],
    marginalize: str,
    channel_dim: int,
    preserve_norm: bool,
) -> Array:
    """Combine K gradients; `uniform` has the activation's shape with the marginalized dims as size 1."""
    tasks = range(len(gradients))
    grouped: dict[tuple[int, ...], list[tuple[int, ...]]] = {}
    for element in itertools.product(*(range(size) for size in activation.shape)):
        grouped.setdefault(_position(element, marginalize, channel_dim), []).append(element)

    result = np.zeros(activation.shape)
    for position, elements in grouped.items():
        totals = []
        for i in tasks:
            terms = [
                gradients[i][e] if marginalize == "none" else np.sign(activation[e]) * gradients[i][e] for e in elements
            ]
            totals.append(math.fsum(terms))
        size = math.fsum(abs(total) for total in totals)
        purity = 0.5 if size == 0 else 0.5 * (1 + math.fsum(totals) / size)
        keeps_positive = purity > uniform[position]
        for i in tasks:
            passes = totals[i] == 0 or (totals[i] > 0) == keeps_positive
            for e in elements:
                result[e] += (leak[i] + (1 - leak[i]) * passes) * gradients[i][e]
    if not preserve_norm:
        return result
    norm = math.sqrt(math.fsum((result**2).ravel()))
    wanted = math.sqrt(math.fsum((sum(gradients) ** 2).ravel()))
    return result if norm == 0 else result * (wanted / norm)


def _position(element: tuple[int, ...], marginalize: str, channel_dim: int) -> tuple[int, ...]:
    if marginalize == "none":
        return element
    if marginalize == "batch":
        return (0, *element[1:])
    return tuple(index if dim == channel_dim else 0 for dim, index in enumerate(element))
