"""One-to-one matching of detections and ground truth that maximises the sum of the overlaps.

The matching of greatest weight is often not unique, and which one is taken decides which detection counts as found. So
equal metrics need the official tie-break, not just an optimal matching. This is the algorithm of Kuhn and Munkres in
the variant that Waymo's metrics use (metrics/hungarian.cc and matcher.h): rows are served in ascending order; the
alternating tree takes, among the columns that its rows reach by tight edges, the one that was reached first: by the row
that joined the tree first, then the lowest column.
"""

import numba
import numpy as np
import numpy.typing as npt

from detection3d.types.scene import Float32Array

WEIGHT_SCALE = np.float32(1_000_000)  # an overlap of 1 in the matcher's integer weights

Int32Matrix = npt.NDArray[np.int32]
IndexArray = npt.NDArray[np.int64]


@numba.njit(cache=True, nogil=True)
def maximum_weight_matching(weights: Int32Matrix) -> IndexArray:
    """Return the complete matching of greatest total weight, with the official tie-break.

    Args:
        weights: int32 [n, n], not negative; rows are detections, columns ground truth, padded with 0.

    Returns:
        int64 [n]: the column of each row.
    """
    n = len(weights)
    row_label = np.zeros(n, np.int64)
    column_label = np.zeros(n, np.int64)
    column_of = np.full(n, -1, np.int64)
    row_of = np.full(n, -1, np.int64)
    for i in range(n):
        for j in range(n):
            row_label[i] = max(row_label[i], weights[i, j])

    tree_rows = np.empty(n, np.int64)  # in the order in which they joined
    in_tree = np.empty(n, np.bool_)  # columns
    slack = np.empty(n, np.int64)  # of each column: the least over the tree's rows
    slack_row = np.empty(n, np.int64)  # place in tree_rows of the first row with that slack
    for root in range(n):
        if row_label[root] == 0:
            # A row without any weight reaches every column whose label is 0, which all free columns are, before its
            # tree grows any other branch. So the tree always ends at the first free column, and changes nothing else.
            for j in range(n):
                if row_of[j] < 0:
                    row_of[j] = root
                    column_of[root] = j
                    break
            continue

        in_tree[:] = False
        slack[:] = np.iinfo(np.int64).max
        tree_rows[0] = root
        size = 1
        while True:
            newest = tree_rows[size - 1]
            for j in range(n):
                gap = row_label[newest] + column_label[j] - weights[newest, j]
                if not in_tree[j] and gap < slack[j]:
                    slack[j] = gap
                    slack_row[j] = size - 1

            least = np.iinfo(np.int64).max
            for j in range(n):
                if not in_tree[j]:
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
    return match_rows(overlaps, rows, columns, np.full(len(overlaps), threshold, np.float32))


@numba.njit(cache=True, nogil=True)
def match_rows(
    overlaps: Float32Array,
    rows: IndexArray,
    columns: IndexArray,
    thresholds: Float32Array,
) -> IndexArray:
    """Match some detections with some ground truth; as `match_subset`, with a threshold for each detection.

    Args:
        overlaps: float32 [P, G], IoU of each detection with each ground-truth box.
        rows: int64 [p], the detections taking part, in the frame's order.
        columns: int64 [g], the ground truth taking part, likewise.
        thresholds: float32 [P], the least overlap that counts for each detection.

    Returns:
        int64 [p]: place in `columns` of each detection's partner, -1 where it has none.
    """
    partners = np.full(len(rows), -1, np.int64)
    n = max(len(rows), len(columns))
    any_pair = False
    for i in range(len(rows)):
        for j in range(len(columns)):
            if overlaps[rows[i], columns[j]] >= thresholds[rows[i]]:
                any_pair = True
    if not any_pair:
        return partners
    weights = np.zeros((n, n), np.int32)
    for i in range(len(rows)):
        for j in range(len(columns)):
            overlap = overlaps[rows[i], columns[j]]
            if overlap >= thresholds[rows[i]]:
                # Half away from zero, on the product in float32, as std::round does there.
                weights[i, j] = np.int32(np.floor(np.float64(overlap * WEIGHT_SCALE) + 0.5))
    column_of = maximum_weight_matching(weights)
    for i in range(len(rows)):
        j = column_of[i]
        if j < len(columns) and overlaps[rows[i], columns[j]] >= thresholds[rows[i]]:
            partners[i] = j
    return partners
