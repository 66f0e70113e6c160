"""The formula of lingvo's GradDrop layer (lingvo/core/graddrop.py) position by position, in float64 numpy."""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


def lingvo_loop(
    gradients: Sequence[Array | None],
    activation: Array,
    uniform: Array,
    leak: Sequence[float],
    function: str = "linear",
    scale: float = 1.0,
    sign_only: bool = True,
    keep_norm: bool = True,
    over_batch: bool = True,
    epsilon: float = 1e-7,
    inverted: bool = False,
    total: Array | None = None,
) -> Array:
    """Combine gradients [B, ...]; `uniform` is [1, ...] if the sum goes over the batch, else [B, ...]."""
    found = [gradient for gradient in gradients if gradient is not None]
    result = np.zeros_like(activation)
    for place in np.ndindex(uniform.shape):
        elements = [(sample, *place[1:]) for sample in range(len(activation))] if over_batch else [place]
        signals = [
            math.fsum(gradient[e] * _factor(float(activation[e]), sign_only, epsilon) for e in elements)
            for gradient in found
        ]
        offset = scale * math.fsum(signals) / (2 * math.fsum(map(abs, signals)) + epsilon)
        chance = 1 / (1 + math.exp(-4 * offset)) if function == "sigmoid" else 0.5 + offset
        direction = 0.5 if chance >= uniform[place] else -0.5
        # Lingvo pairs leaks with the gradients that exist, not with the losses.
        for gradient, signal, share in zip(found, signals, leak, strict=False):
            mask = 0.0 if signal * direction < 0 else 1.0
            for e in elements:
                result[e] += gradient[e] * (share + (1 - share) * mask)
    if not keep_norm:
        return result
    before = math.sqrt(math.fsum((np.sum(found, axis=0) if total is None else total).ravel() ** 2))
    after = math.sqrt(math.fsum(result.ravel() ** 2))
    return result * (after / (before + epsilon) if inverted else before / (after + epsilon))


def _factor(value: float, sign_only: bool, epsilon: float) -> float:
    if not sign_only:
        return value
    return value / abs(value + (1.0 if abs(value) <= epsilon else 0.0))
