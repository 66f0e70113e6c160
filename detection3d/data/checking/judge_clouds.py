"""Suspicions about points as a whole: which way is up, how far they go, where the ground is, how bright they are."""

from collections.abc import Sequence

import numpy as np

from detection3d.data.checking.clouds import FEWEST, REACH, Cloud
from detection3d.data.checking.report import Suspicion

_AXES = "xyz"
_GROUND = 1.0  # metres from z = 0; the configs' ranges begin 2 m below it
_BRIGHT = 2.0  # where tanh is 0.96: most intensities above it look the same


def judge_up(clouds: Sequence[Cloud]) -> list[Suspicion]:
    """The world is wide and not high, and the ground is its lower side."""
    if not clouds:
        return []
    spread = np.median([cloud.spread for cloud in clouds], axis=0)
    up = int(spread.argmin())
    above = float(np.median([cloud.above[up] for cloud in clouds]))
    below = float(np.median([cloud.below[up] for cloud in clouds]))
    evidence = "points spread over " + ", ".join(
        f"{value:.1f} m in {axis}" for axis, value in zip(_AXES, spread, strict=True)
    )
    if up != 2 and spread[up] < 0.5 * spread[2]:
        sign = "+" if above > below else "-"
        cause = f"{sign}{_AXES[up]} seems to point up, not +z; turn points, boxes and poses to x forward, y left, z up"
        return [Suspicion("up", cause, evidence)]
    if up == 2 and below > 1.5 * above:
        evidence += f"; from the densest height they reach {above:.1f} m up and {below:.1f} m down"
        return [
            Suspicion("up", "z seems to point down; turn points, boxes and poses to x forward, y left, z up", evidence)
        ]
    return []


def judge_presence(clouds: Sequence[Cloud], frames: int) -> list[Suspicion]:
    """Frames should hold points."""
    if clouds or not frames:
        return []
    cause = f"no frame that was looked at holds {FEWEST} points; does the reader read the scans?"
    return [Suspicion("points", cause, f"in {frames} frames")]


def judge_reach(clouds: Sequence[Cloud]) -> list[Suspicion]:
    """Points that the store leaves out."""
    points, beyond = sum(cloud.points for cloud in clouds), sum(cloud.beyond for cloud in clouds)
    if beyond <= 0.005 * points:
        return []
    cause = (
        f"points lie beyond the store's reach of {REACH:.1f} m and would be left out; are they in metres, and in the"
    )
    evidence = f"{beyond} of {points} points ({beyond / points:.0%})"
    return [Suspicion("reach", f"{cause} vehicle frame rather than the global one?", evidence)]


def judge_ground(clouds: Sequence[Cloud]) -> list[Suspicion]:
    """The configs' ranges take the ground to be near z = 0."""
    heights = np.array([cloud.ground for cloud in clouds])
    heights = heights[np.isfinite(heights)]
    if len(heights) == 0 or abs(height := float(np.median(heights))) <= _GROUND:
        return []
    cause = f"the ground lies at z = {height:.2f} m, and model.point_range expects it near 0 (-2 to 4 m); add"
    cause += f" {-height:.2f} m to z of points and boxes, or move model.point_range by {height:.2f} m"
    evidence = f"median of {len(heights)} frames, within 15 m; 5% to 95% of them: "
    evidence += " to ".join(f"{value:.2f}" for value in np.percentile(heights, (5, 95)))
    return [Suspicion("ground", cause, evidence)]


def judge_intensity(clouds: Sequence[Cloud]) -> list[Suspicion]:
    """The network sees tanh of the intensity."""
    if not clouds:
        return []
    lit = float(np.median([cloud.lit for cloud in clouds]))
    if max(cloud.lit for cloud in clouds) == 0:
        cause = "intensities are all 0; if there are some, give them as the fourth column of the points"
        return [Suspicion("intensity", cause, f"in {len(clouds)} frames")]
    typical = float(np.median([cloud.intensity for cloud in clouds]))
    if typical <= _BRIGHT:
        return []
    bright = float(np.median([cloud.bright for cloud in clouds]))
    full = next((full for full in (255, 65535) if bright <= full), round(bright))
    cause = f"intensities seem to go from 0 to {full}, and the network, which takes their tanh, would see 1 everywhere;"
    evidence = f"of those that aren't 0 ({lit:.0%}) the median is {typical:.3g}, the 99th percentile {bright:.4g}"
    return [Suspicion("intensity", f"{cause} divide by {full}", evidence)]
