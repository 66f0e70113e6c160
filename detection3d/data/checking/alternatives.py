"""Other ways to read a data set's boxes, such as those of other data sets: axes, headings, and where the centre is."""

from dataclasses import dataclass

import numpy as np

from detection3d.geometry.host.poses import invert_pose
from detection3d.types.scene import Float64Array


@dataclass(frozen=True)
class Axes:
    """A frame that boxes may be given in, instead of the points'.

    Attributes:
        meaning: what is wrong if this fits, and what to do.
        matrix: float64 [4, 4], to the points' frame.
        sense: of the heading there: a heading h becomes sense * h + turn.
        turn: radians.
    """

    meaning: str
    matrix: Float64Array
    sense: int = 1
    turn: float = 0.0


@dataclass(frozen=True)
class Heading:
    """A way to count headings: our heading is `sense * unit * stated + turn`.

    Attributes:
        meaning: as in `Axes`.
        unit: radians.
        sense: -1 where clockwise is positive.
        turn: radians.
    """

    meaning: str
    unit: float = 1.0
    sense: int = 1
    turn: float = 0.0

    @property
    def in_degrees(self) -> bool:
        """Whether the stated ones are degrees."""
        return self.unit != 1.0

    def same_outline(self, other: "Heading") -> bool:
        """Whether boxes read so or so hold the same points: all but front and rear agree."""
        turn = abs(self.turn - other.turn)
        return (self.unit, self.sense) == (other.unit, other.sense) and min(turn, abs(turn - np.pi)) < 0.1

    def apply(self, stated: Float64Array) -> Float64Array:
        """Return our headings."""
        return self.sense * self.unit * stated + self.turn


def _headings() -> tuple[Heading, ...]:
    found = []
    for unit, degrees in ((1.0, ""), (float(np.pi / 180), "in degrees; ")):
        for sense, clockwise in ((1, ""), (-1, "clockwise; ")):
            for quarters, turned in enumerate(("", "off by 90 degrees; ", "reversed; ", "off by -90 degrees; ")):
                wrong = degrees + clockwise + turned
                stated = "stated" if not degrees else "np.radians(stated)"
                turn = ("", " + pi / 2", " + pi", " - pi / 2")[quarters]
                meaning = f"headings are {wrong}use {'-' if sense < 0 else ''}{stated}{turn}" if wrong else ""
                found.append(Heading(meaning, unit, sense, quarters * float(np.pi) / 2))
    return tuple(found)


ALL_HEADINGS = _headings()
"""Every unit, sense and quarter turn, 16; the first one is ours."""

HEADINGS = tuple(heading for heading in ALL_HEADINGS if heading.turn < 2)
"""Those that points can tell apart: a box turned by 180 degrees holds the same ones. The first one is ours."""

LIFTS = (0.0, 0.5, -0.5)
"""Where the stated z lies: shares of the height from there up to the centre."""

AXES_COUNT = 9


def axes(pose: Float64Array) -> tuple[Axes | None, ...]:
    """Return the frames that the boxes may be in, always in the same order, `AXES_COUNT` of them; the first is ours.

    Args:
        pose: float64 [4, 4], vehicle to global. Where it is the identity, the global frame is ours: None.
    """
    yaw = float(np.arctan2(pose[1, 0], pose[0, 0]))
    moved = not np.allclose(pose, np.eye(4), atol=0.5)
    half = float(np.pi / 2)
    camera = "boxes are in camera axes (x right, y down, z forward), points aren't; turn the boxes, or calibrate"
    glob = "boxes are in the global frame, points in the vehicle's; take the boxes through the inverse pose"
    points = "points are in the global frame, boxes in the vehicle's; take the points through the inverse pose"
    return (
        Axes("", np.eye(4)),
        Axes("the boxes' y points to the right of the points'; use -y and -heading", _matrix("+x-y+z"), -1),
        Axes("the boxes' x points backwards to the points'; use -x and pi - heading", _matrix("-x+y+z"), -1, 2 * half),
        Axes(
            "boxes are turned by -90 degrees to the points; use (-y, x) and heading + pi / 2",
            _matrix("-y+x+z"),
            1,
            half,
        ),
        Axes(
            "boxes are turned by 90 degrees to the points; use (y, -x) and heading - pi / 2",
            _matrix("+y-x+z"),
            1,
            -half,
        ),
        Axes(
            "boxes are turned by 180 degrees to the points; use (-x, -y) and heading + pi",
            _matrix("-x-y+z"),
            1,
            2 * half,
        ),
        Axes(camera, _matrix("+z-x-y"), -1, -half),
        Axes(glob, invert_pose(pose), 1, -yaw) if moved else None,
        Axes(points, pose, 1, yaw) if moved else None,
    )


def alternatives(boxes: Float64Array, frame: Axes) -> Float64Array:
    """Return boxes as they'd be if they were in a frame, for every heading and lift.

    Args:
        boxes: float64 [M, 7], as stated.
        frame: the frame.

    Returns:
        float64 [len(HEADINGS), len(LIFTS), M, 7], in the points' frame.
    """
    result = np.broadcast_to(boxes, (len(HEADINGS), len(LIFTS), *boxes.shape)).copy()
    result[..., :3] = boxes[:, :3] @ frame.matrix[:3, :3].T + frame.matrix[:3, 3]
    result[..., 2] += np.array(LIFTS)[:, None] * boxes[:, 5]
    for index, heading in enumerate(HEADINGS):
        result[index, ..., 6] = frame.sense * heading.apply(boxes[:, 6]) + frame.turn
    return result


def _matrix(rows: str) -> Float64Array:
    """Return the matrix whose rows are signed axes, as "-y+x+z": x is the stated -y ..."""
    matrix = np.eye(4)
    for row in range(3):
        matrix[row, :3] = np.where(np.array(list("xyz")) == rows[2 * row + 1], 1.0, 0.0)
        matrix[row, :3] *= 1.0 if rows[2 * row] == "+" else -1.0
    return matrix
