"""Suspicions about what moves: times, poses, velocities, directions, tracks."""

import numpy as np

from detection3d.data.checking.alternatives import ALL_HEADINGS, Heading
from detection3d.data.checking.motion import Motion, Steps
from detection3d.data.checking.report import Suspicion
from detection3d.geometry.host.boxes import wrap_angle
from detection3d.types.scene import BoolArray, Float64Array

_PLAUSIBLE = (0.01, 5.0)  # seconds between frames
_UNITS = {"nanoseconds": 1e-9, "milliseconds": 1e-3, "seconds": 1.0}
_NUMBERED = " (single scans that are only numbered may stay so)"
_FEWEST = 8
_FEWEST_DRIVES = 5
_MOVED = 0.3  # metres of the vehicle between frames
_FAST = 2.0  # m/s; slower motion is lost in the labels' own errors
_DIRECTIONS = ("+x", "+y", "-x", "-y")


def judge_times(motion: Motion) -> tuple[list[Suspicion], float]:
    """Judge the time between frames; returns the suspicions, and the seconds in a unit of the timestamps."""
    if len(motion.intervals) == 0:
        return [], 1e-6
    interval = float(np.median(motion.intervals))
    if _PLAUSIBLE[0] <= interval * 1e-6 <= _PLAUSIBLE[1]:
        return [], 1e-6
    evidence = f"the median step is {interval:.6g}, which is {interval * 1e-6:.3g} s if these are microseconds"
    for name, unit in _UNITS.items():
        if _PLAUSIBLE[0] <= interval * unit <= _PLAUSIBLE[1]:
            evidence += f", and {interval * unit:.3g} s if they are {name}"
            return [
                Suspicion("timestamps", f"timestamps seem to be in {name}; give microseconds{_NUMBERED}", evidence)
            ], unit
    cause = f"the time between frames is implausible; give microseconds{_NUMBERED}"
    return [Suspicion("timestamps", cause, evidence)], 1e-6


def judge_poses(motion: Motion) -> list[Suspicion]:
    """Most things by the road stand still: the poses that let them are the right ones."""
    steps = motion.steps
    moved = np.linalg.norm(steps.vehicle, axis=1) > _MOVED
    stated, inverse = np.linalg.norm(steps.shift, axis=1)[moved], steps.inverse_shift[moved]
    if len(stated) < _FEWEST or np.median(stated) < 0.1:
        return []
    evidence = f"of {len(stated)} objects followed while the vehicle moved, the median shift between two frames is"
    evidence += f" {np.median(stated):.2f} m with the poses as stated, {np.median(inverse):.2f} m with their inverses"
    if np.median(inverse) < 0.5 * np.median(stated) and (inverse < stated).mean() > 0.75:
        cause = "poses are inverted (global to vehicle); use their inverses, see geometry.host.poses.invert_pose"
        return [Suspicion("pose", cause, evidence)]
    return []


def judge_drive(motion: Motion) -> list[Suspicion]:
    """A vehicle drives along its x axis."""
    drives = motion.drives[np.linalg.norm(motion.drives, axis=1) > _MOVED]
    if len(drives) < _FEWEST_DRIVES:
        return []
    quarter = np.rint(np.arctan2(drives[:, 1], drives[:, 0]) / (np.pi / 2)).astype(int) % 4
    shares = np.bincount(quarter, minlength=4) / len(quarter)
    main = int(shares.argmax())
    if main == 0 or shares[main] < 0.75:
        return []
    cause = (
        f"the vehicle drives along its {_DIRECTIONS[main]}, not +x; turn points, boxes and poses so that x is forward"
    )
    if main == 2:
        cause = "the vehicle drives backwards: x points to its rear, or the poses are those of another frame"
    return [Suspicion("forward", cause, f"so in {shares[main]:.0%} of {len(drives)} steps of more than {_MOVED} m")]


def judge_velocities(steps: Steps, unit: float) -> list[Suspicion]:
    """Compare stated velocities with how the tracks move.

    Args:
        steps: of the objects.
        unit: seconds in a unit of the timestamps.
    """
    steps = _lasting(steps)
    seconds = steps.micros * unit
    actual = steps.shift / seconds[:, None]
    candidates: dict[str, Float64Array] = {
        "": steps.velocity,
        "they are in the axes of the global frame; use R^T v, with R of the pose": steps.turned,
        "they have the opposite sign; use -v": -steps.velocity,
        "they are relative to the vehicle; add its own velocity": steps.velocity + steps.vehicle / seconds[:, None],
        "they are in km/h; divide by 3.6": steps.velocity / 3.6,
        "y points to the right in them; use -v_y": steps.velocity * (1, -1, 1),
    }
    speed = np.linalg.norm(actual[:, :2], axis=1)
    fast = np.maximum(speed, np.linalg.norm(steps.velocity[:, :2], axis=1)) > _FAST
    if fast.sum() < _FEWEST:
        return []
    errors = {name: _error(velocity[fast], actual[fast]) for name, velocity in candidates.items()}
    best = min(errors, key=lambda name: errors[name])
    if errors[""] < 0.5:
        return []
    evidence = f"of {int(fast.sum())} fast steps the median difference to the tracks' motion is {errors['']:.2g} times"
    evidence += " the speed"
    if not steps.velocity.any():
        return [Suspicion("velocity", "velocities are all 0, yet objects move; give them, or use none", evidence)]
    if best and errors[best] < min(0.3, 0.5 * errors[""]):
        return [Suspicion("velocity", f"velocities are wrong: {best}", f"{evidence}, {errors[best]:.2g} if so read")]
    cause = (
        "velocities disagree with the tracks' motion, and nothing that was tried helps; are ids, poses and times right?"
    )
    return [Suspicion("velocity", cause, evidence)]


def judge_directions(steps: Steps, unit: float, degrees: bool, known: Heading | None) -> list[Suspicion]:
    """Objects move the way they head; this tells front from rear, which points can't.

    Args:
        steps: of the objects.
        unit: seconds in a unit of the timestamps.
        degrees: whether headings can only be degrees; otherwise they can't be.
        known: what the points say of the headings, where they do: then only front and rear are left to be told.
    """
    steps = _lasting(steps)
    velocity = steps.shift[:, :2] / (steps.micros * unit)[:, None]
    fast = np.linalg.norm(velocity, axis=1) > _FAST
    if fast.sum() < _FEWEST:
        return []
    direction = np.arctan2(velocity[fast, 1], velocity[fast, 0])
    choices = [heading for heading in ALL_HEADINGS if heading.in_degrees == degrees]
    if known is not None:
        choices = [heading for heading in choices if heading.same_outline(known)]
    hits = [float(_near(direction, heading.apply(steps.heading[fast])).mean()) for heading in choices]
    stated = float(_near(direction, steps.heading[fast]).mean())
    best = int(np.argmax(hits))
    if hits[best] < 0.7 or hits[best] - stated < 0.2 or not choices[best].meaning:
        return []
    evidence = (
        f"of {int(fast.sum())} moving objects {hits[best]:.0%} would head where they go, {stated:.0%} do as stated"
    )
    return [Suspicion("heading", choices[best].meaning, evidence)]


def judge_tracks(motion: Motion) -> list[Suspicion]:
    """Objects should be met again."""
    if motion.repeated or not motion.sequences:
        return []
    cause = "no id occurs in two frames, so objects aren't followed; give an object the same id in all frames"
    cause += " (single scans have no tracks, and train all the same)"
    evidence = f"so in all {motion.sequences} recordings with labels in several frames"
    return [Suspicion("tracks", cause, evidence)]


def _lasting(steps: Steps) -> Steps:
    later: BoolArray = steps.micros > 0  # what isn't is an error of the timestamps, told elsewhere
    return Steps(**{name: values[later] for name, values in vars(steps).items()})


def _error(velocity: Float64Array, actual: Float64Array) -> float:
    difference = np.linalg.norm((velocity - actual)[:, :2], axis=1)
    return float(np.median(difference / np.maximum(np.linalg.norm(actual[:, :2], axis=1), 1.0)))


def _near(direction: Float64Array, heading: Float64Array) -> BoolArray:
    return np.abs(wrap_angle(direction - heading)) < np.pi / 6
