"""Counter-based noise: each number is a hash of its own address, so threads and their order change nothing.

The mixing step is the finaliser of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014).
"""

import numpy as np

from detection3d.compiled_code import numba

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX2 = np.uint64(0x94D049BB133111EB)
_TO_UNIT = 1.0 / (1 << 53)
# The sum of four uniforms has a standard deviation of sqrt(4 / 12).
_IRWIN_HALL_SCALE = float(np.sqrt(3.0)) / (1 << 16)


@numba.njit(cache=True, inline="always")
def mix(value: np.uint64) -> np.uint64:
    """Scramble 64 bits."""
    value = (value ^ (value >> np.uint64(30))) * _MIX1
    value = (value ^ (value >> np.uint64(27))) * _MIX2
    return value ^ (value >> np.uint64(31))


@numba.njit(cache=True, inline="always")
def hash_at(key: np.uint64, index: int, stream: int) -> np.uint64:
    """Return the 64 bits at (key, index, stream)."""
    return mix(mix(key + _GOLDEN * np.uint64(index + 1)) + _GOLDEN * np.uint64(stream + 1))


@numba.njit(cache=True, inline="always")
def uniform_at(key: np.uint64, index: int, stream: int) -> float:
    """Return a number in [0, 1)."""
    return float(hash_at(key, index, stream) >> np.uint64(11)) * _TO_UNIT


@numba.njit(cache=True, inline="always")
def normal_at(key: np.uint64, index: int, stream: int) -> float:
    """Return a number of mean 0 and standard deviation 1, bell-shaped and within +-3.47.

    It is a sum of four uniforms: cheap, and its bound keeps surface points within a known distance of the surface.
    """
    bits = hash_at(key, index, stream)
    total = 0.0
    for shift in (0, 16, 32, 48):
        total += float((bits >> np.uint64(shift)) & np.uint64(0xFFFF)) + 0.5
    return (total - 131072.0) * _IRWIN_HALL_SCALE


def derive_key(*parts: int) -> int:
    """Return a 64-bit key from non-negative integers such as (seed, frame, lidar)."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0])
