"""One-to-one matching of detections and ground truth that maximises the sum of the overlaps.

The matching of greatest weight is often not unique, and which one is taken decides which detection counts as found. So
equal metrics need the official tie-break, not just an optimal matching. This is the algorithm of Kuhn and Munkres in
the variant that Waymo's metrics use (metrics/hungarian.cc and matcher.h): rows are served in ascending order; the
alternating tree takes, among the columns that its rows reach by tight edges, the one that was reached first: by the row
that joined the tree first, then the lowest column.
"""

import math

import numpy as np
import numpy.typing as npt

from detection3d.compiled_code import numba
from detection3d.types.scene import Float32Array

WEIGHT_SCALE = np.float32(1_000_000)  # an overlap of 1 in the matcher's integer weights

_FAR = np.iinfo(np.int64).max

Int32Matrix = npt.NDArray[np.int32]
BoolMatrix = npt.NDArray[np.bool_]
IndexArray = npt.NDArray[np.int64]


@numba.njit(cache=True, nogil=True)
def maximum_weight_matching(weights: Int32Matrix) -> IndexArray:
    """Return the complete matching of greatest total weight, with the official tie-break.

    Args:
        weights: int32 [n, n], not negative; rows are detections, columns ground truth, padded with 0.

    Returns:
        int64 [n]: the column of each row.
    """
    return _padded_matching(weights, _greatest(weights), np.arange(len(weights)), len(weights))


@numba.njit(cache=True, nogil=True)
def _greatest(weights: Int32Matrix) -> IndexArray:
    """Return the greatest weight of each row, 0 where there are no columns."""
    greatest = np.zeros(len(weights), np.int64)
    for i in range(len(weights)):
        for j in range(weights.shape[1]):
            greatest[i] = max(greatest[i], np.int64(weights[i, j]))
    return greatest


@numba.njit(cache=True, nogil=True)
def _padded_matching(weights: Int32Matrix, greatest: IndexArray, rows: IndexArray, count: int | np.int64) -> IndexArray:
    """Match some rows of a matrix, as if it were padded with zeros to a square.

    Args:
        weights: int32 [P, g], not negative.
        greatest: int64 [P], the greatest weight of each row.
        rows: int64 [p or more], the rows that take part, in their order.
        count: p, how many of `rows` count.

    Returns:
        int64 [n], n the larger of p and g: the column of each row; columns from g on are padding.
    """
    g = weights.shape[1]
    n = max(count, g)
    row_label = np.zeros(n, np.int64)
    column_label = np.zeros(n, np.int64)
    column_of = np.full(n, -1, np.int64)
    row_of = np.full(n, -1, np.int64)
    for i in range(count):
        row_label[i] = max(greatest[rows[i]], 0)

    tree_rows = np.empty(n, np.int64)  # in the order in which they joined
    in_tree = np.empty(n, np.bool_)  # columns
    slack = np.empty(n, np.int64)  # of each column: the least over the tree's rows
    slack_row = np.empty(n, np.int64)  # place in tree_rows of the first row with that slack
    first_free = 0
    for root in range(n):
        if row_label[root] == 0:
            # A row without any weight reaches every column whose label is 0, which all free columns are, before its
            # tree grows any other branch. So the tree always ends at the first free column, and changes nothing else.
            while row_of[first_free] >= 0:
                first_free += 1
            row_of[first_free] = root
            column_of[root] = first_free
            continue

        # Most trees are no more than their root and its first tight column.
        first_tight = 0
        while first_tight < g and row_label[root] + column_label[first_tight] > weights[rows[root], first_tight]:
            first_tight += 1
        if first_tight < g and row_of[first_tight] < 0:
            row_of[first_tight] = root
            column_of[root] = first_tight
            continue

        for j in range(n):
            in_tree[j] = False
            slack[j] = _FAR
        tree_rows[0] = root
        size = 1
        while True:
            newest = tree_rows[size - 1]
            weighted = g if newest < count else 0
            least = _FAR
            for j in range(n):
                if in_tree[j]:
                    continue
                gap = row_label[newest] + column_label[j]
                if j < weighted:
                    gap -= weights[rows[newest], j]
                if gap < slack[j]:
                    slack[j] = gap
                    slack_row[j] = size - 1
                least = min(least, slack[j])
            if least > 0:
                for k in range(size):
                    row_label[tree_rows[k]] -= least
                for j in range(n):
                    if in_tree[j]:
                        column_label[j] += least
                    else:
                        slack[j] -= least

            chosen = -1
            for j in range(n):
                if not in_tree[j] and slack[j] == 0 and (chosen < 0 or slack_row[j] < slack_row[chosen]):
                    chosen = j
            in_tree[chosen] = True
            if row_of[chosen] < 0:
                break
            tree_rows[size] = row_of[chosen]
            size += 1

        while True:
            row = tree_rows[slack_row[chosen]]
            previous = column_of[row]
            column_of[row] = chosen
            row_of[chosen] = row
            if row == root:
                break
            chosen = previous
    return column_of


@numba.njit(cache=True, nogil=True)
def weight_of(overlap: np.float32) -> np.int32:
    """Return an overlap as the matcher's weight: half away from zero, on the product in float32, as std::round does."""
    return np.int32(math.floor(np.float64(overlap * WEIGHT_SCALE) + 0.5))


@numba.njit(cache=True, nogil=True)
def match_rows(
    weights: Int32Matrix,
    greatest: IndexArray,
    allowed: BoolMatrix,
    rows: IndexArray,
    count: int | np.int64,
    partners: IndexArray,
) -> None:
    """Match some detections of a frame with its objects.

    Args:
        weights: int32 [P, g], `weight_of` the overlaps of those that may match, else 0.
        greatest: int64 [P], the greatest weight of each detection, -1 where it may match nothing.
        allowed: bool [P, g], who may match.
        rows: int64 [p or more], the detections that take part, in the frame's order.
        count: p, how many of `rows` count.
        partners: int64 [p or more]; filled in with the partner of each of the p detections, -1 where it has none.
    """
    g = weights.shape[1]
    any_pair = False
    for i in range(count):
        partners[i] = -1
        any_pair |= greatest[rows[i]] >= 0
    if not any_pair:
        return
    column_of = _padded_matching(weights, greatest, rows, count)
    for i in range(count):
        j = column_of[i]
        if j < g and allowed[rows[i], j]:
            partners[i] = j


@numba.njit(cache=True, nogil=True)
def match_subset(
    overlaps: Float32Array,
    rows: IndexArray,
    columns: IndexArray,
    threshold: np.float32,
) -> IndexArray:
    """Match some detections with some ground truth, all of one type.

    Args:
        overlaps: float32 [P, G], IoU of each detection with each ground-truth box.
        rows: int64 [p], the detections taking part, in the frame's order.
        columns: int64 [g], the ground truth taking part, likewise.
        threshold: the least overlap that counts.

    Returns:
        int64 [p]: place in `columns` of each detection's partner, -1 where it has none.
    """
    allowed = np.zeros((len(rows), len(columns)), np.bool_)
    weights = np.zeros((len(rows), len(columns)), np.int32)
    greatest = np.full(len(rows), -1, np.int64)
    for i in range(len(rows)):
        for j in range(len(columns)):
            overlap = overlaps[rows[i], columns[j]]
            if overlap >= threshold:
                allowed[i, j] = True
                weights[i, j] = weight_of(np.float32(overlap))
                greatest[i] = max(greatest[i], np.int64(weights[i, j]))
    partners = np.empty(len(rows), np.int64)
    match_rows(weights, greatest, allowed, np.arange(len(rows)), len(rows), partners)
    return partners
