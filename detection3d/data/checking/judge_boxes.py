"""Suspicions about boxes: axes, headings, centres, sizes, counts."""

from collections.abc import Sequence
from itertools import permutations

import numpy as np

from detection3d.data.checking.alternatives import HEADINGS, LIFTS, Heading, axes
from detection3d.data.checking.fitting import Fit, Tally
from detection3d.data.checking.report import Suspicion
from detection3d.types.scene import Float64Array, ObjectType

USUAL_SIZES = {
    ObjectType.VEHICLE: (4.7, 2.1, 1.7),
    ObjectType.PEDESTRIAN: (0.9, 0.85, 1.75),
    ObjectType.CYCLIST: (1.8, 0.85, 1.75),
}
"""Length, width and height in metres that are usual with Waymo."""

SWAPPED = "length and width are swapped; exchange the two"

_FEWEST = 8  # boxes that must speak for an alternative
_MAJORITY = 3  # for one that speaks against it
_CONVINCING = 0.5  # score that another place must have by itself
_MARGIN = 0.08  # by which its score must be better, too
_FEWEST_SIZES = 10
_FAR = 0.5  # in the logarithm of a size: a factor of 1.65
_AXIS_NAMES = ("length", "width", "height")
_PLACEHOLDER = np.eye(4)
_PLACEHOLDER[0, 3] = 1e3  # any pose that isn't the identity: the names of the frames don't depend on it


def judge_place(fit: Fit, degrees: bool, swapped: bool) -> tuple[list[Suspicion], Heading | None]:
    """Compare how well the boxes hold the points with how well they would under other conventions.

    Args:
        fit: what the points say.
        degrees: whether headings can only be degrees; otherwise they can't be.
        swapped: whether length and width are known to be exchanged, which to the points is a quarter turn.

    Returns:
        The suspicions, and how headings must be read to fit, where that is another way than ours.
    """
    found = []
    choices = [index for index, heading in enumerate(HEADINGS) if heading.in_degrees == degrees]
    frame, lift = _best_place(fit.everything, choices)
    index = _best_heading(fit.elongated, frame, lift, choices)
    chosen = axes(_PLACEHOLDER)[frame]
    if frame and chosen is not None:
        found.append(Suspicion("axes", chosen.meaning, _support(fit.everything, (frame, index, lift))))
    heading = HEADINGS[index ^ 1 if swapped else index]  # each stands beside itself turned by a quarter
    if index and heading.meaning:
        found.append(Suspicion("heading", heading.meaning, _support(fit.elongated, (frame, index, lift))))
    if lift:
        where = "bottom" if LIFTS[lift] > 0 else "top"
        sign = "+" if LIFTS[lift] > 0 else "-"
        cause = f"box centres lie at the {where}, not in the middle; use z {sign} height / 2"
        found.append(Suspicion("centre", cause, _support(fit.everything, (frame, index, lift))))
    if not found and fit.boxes >= _FEWEST and fit.filled < 0.5 * fit.boxes:
        cause = "most boxes hold no points, and no other axes, headings or centres that were tried help; compare the"
        cause += " frames, units and times of points and labels"
        found.append(Suspicion("empty", cause, f"{fit.filled} of {fit.boxes} boxes hold points"))
    return found, heading if index and heading.meaning else None


def _best_place(votes: Tally, headings: Sequence[int]) -> tuple[int, int]:
    """Return the axes and the lift that fit best, (0, 0) unless others fit clearly better than those stated."""
    # Headings are judged later: here each place is as good as its best one.
    allowed = votes.score[:, headings]
    score = allowed.max(axis=1)
    frame, lift = (int(index) for index in np.unravel_index(score.argmax(), score.shape))
    for simpler in ((0, 0), (0, lift), (frame, 0)):
        if score[frame, lift] - score[simpler] < _MARGIN * max(votes.boxes, 1):
            frame, lift = simpler
            break
    heading = headings[int(allowed[frame, :, lift].argmax())]
    convincing = score[frame, lift] >= _CONVINCING * votes.boxes
    return (frame, lift) if convincing and _is_supported(votes, (frame, heading, lift)) else (0, 0)


def _best_heading(votes: Tally, frame: int, lift: int, headings: Sequence[int]) -> int:
    score = votes.score[frame, :, lift]
    best = max(headings, key=lambda index: score[index])
    # Where all stand along one axis few boxes can tell senses apart: these alone are asked.
    decided = (
        votes.better[frame, best, lift] + votes.worse[frame, best, lift] if (frame, lift) == (0, 0) else votes.boxes
    )
    if best == 0 or score[best] - score[0] < _MARGIN * max(decided, 1):
        return 0
    # As stated is the alternative that only the heading changes; where the place is wrong, both lie elsewhere.
    return best if (frame, lift) != (0, 0) or _is_supported(votes, (frame, best, lift)) else 0


def _is_supported(votes: Tally, alternative: tuple[int, int, int]) -> bool:
    better, worse = votes.better[alternative], votes.worse[alternative]
    return bool(better >= _FEWEST and better >= _MAJORITY * worse)


def _support(votes: Tally, alternative: tuple[int, int, int]) -> str:
    boxes = max(votes.boxes, 1)
    return (
        f"so {int(votes.better[alternative])} of {votes.boxes} boxes hold more points, {int(votes.worse[alternative])}"
        f" fewer; on average {votes.score[alternative] / boxes:.0%} of the most that any convention gives, as stated"
        f" {votes.score[0, 0, 0] / boxes:.0%}"
    )


def judge_sizes(labels: Float64Array) -> list[Suspicion]:
    """Compare median sizes, of labels float64 [K, 5] (type, length, width, height, heading), with the usual ones."""
    medians = {}
    for kind in USUAL_SIZES:
        sizes = labels[labels[:, 0] == kind, 1:4]
        if len(sizes) >= _FEWEST_SIZES:
            medians[kind] = np.median(sizes, axis=0)
    if not medians:
        return []
    order = min(permutations(range(3)), key=lambda order: _distance(medians, order))
    stated = "; ".join(
        f"{kind.name} {_sizes(median)}, usual {_sizes(USUAL_SIZES[kind])}" for kind, median in medians.items()
    )
    evidence = f"median length, width, height: {stated}"
    if _distance(medians, (0, 1, 2)) - _distance(medians, order) > 0.3:
        if order == (1, 0, 2):
            cause = SWAPPED
        else:
            names = ", ".join(_AXIS_NAMES[order.index(axis)] for axis in range(3))
            cause = f"sizes seem to be in the order {names}; bring them into length, width, height"
        return [Suspicion("size", cause, evidence)]
    ratios = {kind: np.log(median / USUAL_SIZES[kind]) for kind, median in medians.items()}
    far = [kind.name for kind, ratio in ratios.items() if abs(ratio.mean()) > _FAR]
    if far:
        factor = float(np.exp(np.mean([ratio.mean() for ratio in ratios.values()])))
        cause = f"sizes of {', '.join(far)} are unusual, on average by a factor of {factor:.3g}; are they halves, other"
        return [Suspicion("size", f"{cause} units, or of another type?", evidence)]
    return []


def _distance(medians: dict[ObjectType, Float64Array], order: tuple[int, ...]) -> float:
    """Return how far sizes are from the usual ones if length, width and height are the stated columns `order`."""
    return max(float(np.abs(np.log(median[list(order)] / USUAL_SIZES[kind])).max()) for kind, median in medians.items())


def _sizes(values: Float64Array | tuple[float, ...]) -> str:
    return " x ".join(f"{value:.2f}" for value in values)


def look_like_degrees(labels: Float64Array) -> bool:
    """Tell whether headings, of labels as in `judge_sizes`, are too great for radians."""
    return len(labels) > 0 and float((np.abs(labels[:, 4]) > 2 * np.pi + 1e-3).mean()) > 0.2


def judge_wrapping(labels: Float64Array) -> list[Suspicion]:
    """Tell headings that are no angles between -pi and pi."""
    outside = np.abs(labels[:, 4]) > np.pi + 1e-3
    if not outside.any():
        return []
    evidence = f"the greatest is {np.abs(labels[:, 4]).max():.4g}, and {outside.mean():.0%} are beyond +-pi"
    if look_like_degrees(labels):
        return [Suspicion("heading", "headings are in degrees; use np.radians(stated)", evidence)]
    cause = "headings aren't wrapped to [-pi, pi); make_frame does it, or use geometry.host.boxes.wrap_angle"
    return [Suspicion("wrapping", cause, evidence)]


def judge_counts(fit: Fit) -> list[Suspicion]:
    """Compare stated numbers of points with the recount."""
    if fit.miscounted < _FEWEST or fit.miscounted < 0.25 * fit.boxes:
        return []
    cause = "num_points isn't the number of points in the box"
    if fit.stated_points == 0:
        cause += " (it is always 0, and objects without points are left out of training and evaluation)"
    evidence = f"{fit.miscounted} of {fit.boxes} boxes differ by more than 3 points and 10%;"
    evidence += f" stated {fit.stated_points} in all, found {fit.found_points}"
    return [Suspicion("num_points", f"{cause}; count over all lidars and returns, or let make_frame do it", evidence)]
