"""Paired differences over seeds: Student's t intervals, Holm's correction, and a verdict that never outruns them.

Each seed gives one difference: a method's metric minus the baseline's, both trained from the same weights on the same
batches. The mean of n such differences is judged by the paired t-test with n - 1 degrees of freedom. Exact permutation
of signs would assume less, but with 8 seeds its smallest p-value is 2 / 2**8 = 0.0078, which Holm's first step rejects
for no family of more than 6 methods. The t-test takes the differences to be roughly normal; the seeds are shown beside.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

ALPHA = 0.05
"""Probability that Holm's procedure calls any difference where there is none."""

Verdict = Literal["higher", "lower", "no difference shown"]


@dataclass(frozen=True)
class PairedDifference:
    """A method minus the baseline, in one metric.

    Attributes:
        count: seeds that both have.
        mean: of the differences; None without any.
        deviation: their standard deviation; None for fewer than two.
        interval: of 95 % for the mean, by itself; None for fewer than two differences, or where all are equal.
        p_value: two-sided, by itself; 1 where there is no interval.
        adjusted_p: after Holm.
        corrected_interval: for the mean, at the level of Holm's step that decided about it: it leaves out 0 exactly
            where the verdict is a difference.
        verdict: "higher" or "lower" only where Holm's procedure shows it at 5 %.
    """

    count: int
    mean: float | None
    deviation: float | None
    interval: tuple[float, float] | None
    p_value: float
    adjusted_p: float
    corrected_interval: tuple[float, float] | None
    verdict: Verdict


def compare_paired(differences: Mapping[str, Sequence[float]], alpha: float = ALPHA) -> dict[str, PairedDifference]:
    """Judge several methods against one baseline.

    Every method is a member of the family, whether it has differences or not: a method whose runs failed must not make
    it easier for the others.

    Args:
        differences: by method, one number for each seed that the method and the baseline share.
        alpha: of the whole family.

    Returns:
        By method, in the same order.

    Raises:
        ValueError: a difference is not finite.
    """
    samples = {name: np.asarray(values, np.float64) for name, values in differences.items()}
    for name, values in samples.items():
        if not np.isfinite(values).all():
            raise ValueError(f"differences of {name} are {values.tolist()}; each must be a finite number")
    p_values = {name: _p_value(values) for name, values in samples.items()}
    adjusted = dict(zip(p_values, holm(list(p_values.values())), strict=True))
    levels = dict(zip(p_values, _deciding_levels(list(p_values.values()), alpha), strict=True))
    return {
        name: _judge(values, p_values[name], adjusted[name], levels[name], alpha) for name, values in samples.items()
    }


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values by the step-down procedure of Holm (Scandinavian Journal of Statistics 6, 1979).

    Returns:
        In the same order; those of at most alpha are the ones that the procedure rejects at alpha.
    """
    count, running = len(p_values), 0.0
    adjusted = [0.0] * count
    for rank, index in enumerate(np.argsort(p_values, kind="stable")):
        running = max(running, min(1.0, (count - rank) * p_values[index]))
        adjusted[index] = running
    return adjusted


def two_sided_p(t: float, degrees: int) -> float:
    """Return P(|T| >= |t|) for Student's t with a whole number of degrees of freedom.

    The finite sums of Abramowitz and Stegun 26.7.3 and 26.7.4. The absolute error is some 1e-16; a p-value far below
    that comes out as 0.

    Raises:
        ValueError: no degree of freedom.
    """
    if degrees < 1:
        raise ValueError(f"{degrees} degrees of freedom; Student's t needs at least 1")
    angle = math.atan(abs(t) / math.sqrt(degrees))
    cosine, sine = math.cos(angle), math.sin(angle)
    odd = degrees % 2
    term, total = (sine * cosine, 0.0) if odd else (sine, 0.0)
    for k in range(1 + odd, degrees, 2):  # powers of the cosine up to degrees - 2
        total += term
        term *= cosine**2 * k / (k + 1)
    inside = 2 / math.pi * (angle + total) if odd else total
    return min(max(1 - inside, 0.0), 1.0)


def critical_t(level: float, degrees: int) -> float:
    """Return the t with P(|T| >= t) = level.

    Raises:
        ValueError: the level is not between 0 and 1, or there is no degree of freedom.
    """
    if not 0 < level < 1:
        raise ValueError(f"level {level}; it lies between 0 and 1")
    low, high = 0.0, math.pi / 2  # t = sqrt(degrees) tan(angle) turns the half-line into an interval to bisect
    while low < (middle := (low + high) / 2) < high:
        if two_sided_p(math.sqrt(degrees) * math.tan(middle), degrees) > level:
            low = middle
        else:
            high = middle
    return math.sqrt(degrees) * math.tan(low)


def t_interval(values: np.ndarray, level: float) -> tuple[float, float] | None:
    """Return the interval of confidence 1 - level for the mean.

    Args:
        values: float64 [n].
        level: probability that the interval misses it.

    Returns:
        Low and high end; None for fewer than two values, or equal ones, whose spread can't be told.
    """
    if not _has_spread(values):
        return None
    mean = float(values.mean())
    half = critical_t(level, len(values) - 1) * float(values.std(ddof=1)) / math.sqrt(len(values))
    return mean - half, mean + half


def _judge(values: np.ndarray, p_value: float, adjusted: float, level: float, alpha: float) -> PairedDifference:
    corrected = t_interval(values, level)
    verdict: Verdict = "no difference shown"
    # Both conditions say the same but for the last bits; at the edge the more careful one holds.
    if adjusted <= alpha and corrected is not None and not corrected[0] <= 0 <= corrected[1]:
        verdict = "higher" if corrected[0] > 0 else "lower"
    return PairedDifference(
        count=len(values),
        mean=float(values.mean()) if len(values) else None,
        deviation=float(values.std(ddof=1)) if len(values) > 1 else None,
        interval=t_interval(values, alpha),
        p_value=p_value,
        adjusted_p=adjusted,
        corrected_interval=corrected,
        verdict=verdict,
    )


def _p_value(values: np.ndarray) -> float:
    if not _has_spread(values):
        return 1.0
    return two_sided_p(float(values.mean() / values.std(ddof=1)) * math.sqrt(len(values)), len(values) - 1)


def _has_spread(values: np.ndarray) -> bool:
    """Tell whether the values differ by more than rounding: of themselves, and of their squares, which underflow."""
    return len(values) > 1 and bool(np.ptp(values) > max(1e-12 * np.abs(values).max(), 1e-150))


def _deciding_levels(p_values: Sequence[float], alpha: float) -> list[float]:
    """Return alpha / (m - k + 1), k the step of Holm's procedure that decided: its own, or the one that stopped."""
    count = len(p_values)
    levels = [0.0] * count
    stopped: float | None = None
    for rank, index in enumerate(np.argsort(p_values, kind="stable")):
        own = alpha / (count - rank)
        if stopped is None and p_values[index] > own:
            stopped = own
        levels[index] = own if stopped is None else stopped
    return levels
