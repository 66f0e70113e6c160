"""Settings that change with the step, computed on the device."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Ramp:
    """A straight line between two steps, constant before and after.

    Attributes:
        first: value up to step `start`.
        last: value from step `stop` on.
        start: the step at which the change begins.
        stop: the step at which it ends, after `start`.

    Raises:
        ValueError: `stop` does not come after `start`.
    """

    first: float
    last: float
    start: int
    stop: int

    def __post_init__(self) -> None:
        """Check the order of the steps."""
        if not 0 <= self.start < self.stop:
            raise ValueError(f"a ramp from step {self.start} to step {self.stop} has no length; stop comes after start")

    def at(self, step: Tensor) -> Tensor:
        """Return the value at `step`, an int64 scalar, as a float64 scalar on its device."""
        share = ((step - self.start).double() / (self.stop - self.start)).clamp(0, 1)
        return torch.lerp(torch.full_like(share, self.first), torch.full_like(share, self.last), share)


Scheduled = float | Ramp


def value_at(value: Scheduled, step: Tensor) -> float | Tensor:
    """Return a setting's value at `step`; constants stay plain numbers, so that nothing is computed for them."""
    return value.at(step) if isinstance(value, Ramp) else float(value)


def check_share(name: str, value: Scheduled) -> None:
    """Raise ValueError unless the value lies in [0, 1] at every step."""
    ends = (value.first, value.last) if isinstance(value, Ramp) else (value,)
    if not all(0.0 <= float(end) <= 1.0 for end in ends):
        raise ValueError(f"{name} is {value}; it must lie in [0, 1]")
