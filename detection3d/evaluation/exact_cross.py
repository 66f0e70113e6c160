"""The cross product of two segments with a sign that is exact.

Where plain float64 comes close to zero, the product is written as a sum of sixteen float64 numbers without any rounding
(the eight products and the eight rounding errors, T. J. Dekker, "A floating-point technique for extending the available
precision", 1971), and the sum is found to the last bit (S. M. Rump, T. Ogita and S. Oishi, "Accurate floating-point
summation, part I: faithful rounding", 2008). The official metric does the same, in `CrossMaybeExact` of
math/polygon2d.cc.
"""

import math

import numpy as np

from detection3d.compiled_code import numba
from detection3d.types.scene import Float64Array

_NEAR_ZERO = 2.0**-50
_SPLITTER = 134217729.0  # 2^27 + 1
_UNIT = 2.0**-53
_MARGIN = 32.0  # a power of two of at least the number of terms and two
_SMALLEST = 2.2250738585072014e-308

Point = tuple[float, float]


@numba.njit(cache=True, nogil=True)
def cross(a0: Point, a1: Point, b0: Point, b1: Point) -> float:
    """Return the cross product of a0 -> a1 and b0 -> b1; where it is close to zero, as if in exact arithmetic."""
    if (a0[0] == a1[0] and a0[1] == a1[1]) or (b0[0] == b1[0] and b0[1] == b1[1]):
        return 0.0
    plain = (a1[0] - a0[0]) * (b1[1] - b0[1]) - (a1[1] - a0[1]) * (b1[0] - b0[0])
    if abs(plain) > _NEAR_ZERO:
        return plain
    return _accurate_sum(_exact_terms(a0, a1, b0, b1))


@numba.njit(cache=True, nogil=True)
def _exact_terms(a0: Point, a1: Point, b0: Point, b1: Point) -> Float64Array:
    """Return the eight products that the cross product consists of, and the rounding error of each, float64 [16]."""
    left = (a1[0], -a0[0], -a1[0], a0[0], -a1[1], a0[1], a1[1], -a0[1])
    right = (b1[1], b1[1], b0[1], b0[1], b1[0], b1[0], b0[0], b0[0])
    terms = np.empty(16, np.float64)
    for k in range(8):
        product = left[k] * right[k]
        wide = _SPLITTER * left[k]
        left_high = wide - (wide - left[k])
        left_low = left[k] - left_high
        wide = _SPLITTER * right[k]
        right_high = wide - (wide - right[k])
        right_low = right[k] - right_high
        terms[k] = product
        # The error of a product is a float64 number, too.
        rest = product - left_high * right_high - left_low * right_high - left_high * right_low
        terms[k + 8] = left_low * right_low - rest
    return terms


@numba.njit(cache=True, nogil=True)
def _accurate_sum(terms: Float64Array) -> float:
    """Return the sum of the terms, which are used up, rounded faithfully."""
    while True:
        largest = 0.0
        for k in range(len(terms)):
            largest = max(largest, abs(terms[k]))
        if largest == 0.0:
            return 0.0
        sigma = _MARGIN * 2.0 ** math.ceil(math.log2(largest))
        total = 0.0
        while True:
            # The leading bits of all terms, which add up without rounding, and what is left of each.
            leading = 0.0
            rest = 0.0
            for k in range(len(terms)):
                part = (sigma + terms[k]) - sigma
                leading += part
                terms[k] -= part
                rest += terms[k]
            so_far = total + leading
            if abs(so_far) >= _UNIT * _MARGIN * _MARGIN * sigma or sigma <= _SMALLEST:
                return so_far + ((leading - (so_far - total)) + rest)
            total = so_far
            if total == 0.0:
                break
            sigma = _UNIT * _MARGIN * sigma
