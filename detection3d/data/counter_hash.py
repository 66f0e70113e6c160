"""Random numbers that are functions of where they are used, not of what was drawn before.

A counter-based generator: the key (seed, stream) and the counter go through an integer hash, 32-bit xor-shift-multiply
(constants from Chris Wellons' hash-prospector), whose top 24 bits become a number in [0, 1). So the same sample gets
the same draws after a resume, in another process, on another device, and however many there are.
"""

from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

_LOW = 0xFFFFFFFF
_GOLDEN = 0x9E3779B9
Bits = TypeVar("Bits", int, Tensor)


def uniform(seed: int, stream: int, *counters: Tensor) -> Tensor:
    """Draw one number for each position of the broadcast counters.

    Args:
        seed: any integer; its lowest 64 bits count.
        stream: what the numbers are for; two streams are independent. Below 2^32.
        counters: int64 tensors that can be broadcast against each other, not negative; all their 64 bits count.

    Returns:
        float32 in [0, 1), multiples of 2^-24, shaped like the broadcast counters and on their device.
    """
    state = torch.full((), _key(seed, stream), dtype=torch.int64, device=counters[0].device)
    for counter in counters:
        state = _mix((state ^ (counter & _LOW)) + _GOLDEN)
        state = _mix((state ^ ((counter >> 32) & _LOW)) + _GOLDEN)
    return (state >> 8).to(torch.float32) * 2.0**-24


def permutation(seed: int, stream: int, size: int) -> npt.NDArray[np.int64]:
    """Return a permutation of `range(size)` that depends on seed and stream alone, not on numpy's version.

    Args:
        seed: any integer; its lowest 64 bits count.
        stream: any non-negative integer, such as the epoch's number.
        size: number of elements.
    """
    # The mixing step maps 32 bits one to one, so no two positions share a sorting key.
    position = torch.arange(size, dtype=torch.int64)
    return np.argsort(_mix((position ^ _key(seed, stream)) + _GOLDEN).numpy(), kind="stable")


def _key(seed: int, stream: int) -> int:
    state = 0
    for word in (seed & _LOW, (seed >> 32) & _LOW, stream & _LOW, (stream >> 32) & _LOW):
        state = _mix((state ^ word) + _GOLDEN)
    return state


def _mix(value: Bits) -> Bits:
    """Mix the lowest 32 bits of an integer or an int64 tensor; the result is in [0, 2^32)."""
    value = value & _LOW
    value = value ^ (value >> 16)
    value = (value * 0x21F0AAAD) & _LOW
    value = value ^ (value >> 15)
    value = (value * 0x735A2D97) & _LOW
    return value ^ (value >> 15)
