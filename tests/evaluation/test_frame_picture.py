import io
from dataclasses import replace

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.image import imread

from detection3d.evaluation.reporting.frame_picture import TYPE_COLOURS, frame_picture, short_ids
from detection3d.geometry.host.poses import pose_from_angles, transform_points
from detection3d.types.scene import Frame, ObjectType
from tests.evaluation.builders import box, frame, labels

REACH = 40.0
# The first is far to the left, so that its id isn't written over the others.
LABELS = replace(
    labels([box(10, 25), box(-10), box(30), box(90)], num_points=[50, 0, 9, 9]), ids=("aaaa11", "bbbb22", "cc", "dd")
)
FRAME = frame(LABELS)


def pixels(drawn: Frame, **options: object) -> np.ndarray:
    """Return the picture's colours, float [rows, columns, 3]; forward is up."""
    return imread(io.BytesIO(frame_picture(drawn, reach=REACH, inches=4, **options)), format="png")[..., :3]


def at(image: np.ndarray, x: float, y: float, metres: float) -> np.ndarray:
    """Return the colours [K, 3] within some metres of a place in the vehicle frame."""
    scale = len(image) / (2 * REACH)
    row, column, half = int((REACH - x) * scale), int((REACH - y) * scale), int(metres * scale)
    return image[row - half : row + half + 1, column - half : column + half + 1].reshape(-1, 3)


def holds(colours: np.ndarray, colour: str) -> bool:
    return bool((np.abs(colours - to_rgb(colour)).max(axis=1) < 0.02).any())


def test_svg_holds_the_ids_of_the_boxes_in_sight() -> None:
    text = frame_picture(FRAME, reach=REACH, kind="svg").decode()
    # Text is drawn as outlines, each with the text itself in a comment.
    for name in ("aaaa", "bbbb", "cc", "4 vehicle", "1 without points", "20 m"):
        assert f"<!-- {name} -->" in text
    assert "<!-- dd -->" not in text
    assert text == frame_picture(FRAME, reach=REACH, kind="svg").decode()


def test_boxes_are_drawn_where_they_are_in_the_colour_of_their_type() -> None:
    for kind, colour in TYPE_COLOURS.items():
        typed = replace(FRAME, labels=replace(LABELS, types=np.full(4, kind, np.uint8)))
        image = pixels(replace(typed, points=FRAME.points[:0], in_no_label_zone=FRAME.in_no_label_zone[:0]))
        assert holds(at(image, 10, 25, 2.5), colour)
        assert not holds(at(image, 10, -25, 2.5), colour)
        # The id stands to the right of the box, which is two metres wide.
        assert at(image, 10, 21.5, 1.0).min() < 0.8
        assert at(image, 10, 33, 1.0).min() == 1.0


def test_headings_point_ahead_of_the_boxes() -> None:
    image = pixels(replace(frame(labels([box(10, 25, heading=0.0)], [5])), points=FRAME.points[:0]))
    blue = TYPE_COLOURS[ObjectType.VEHICLE]
    assert holds(at(image, 12.8, 25, 0.3), blue)  # the box ends at 12
    assert not holds(at(image, 7.2, 25, 0.3), blue)


def test_heights_shade_the_points_and_zones_tint_them() -> None:
    points = np.zeros((4, 5), np.float32)
    points[:, 0], points[:, 2] = (-25, -15, 15, 25), (0.0, 2.0, 2.0, 0.0)
    drawn = replace(FRAME, points=points, labels=None, in_no_label_zone=np.array([False, False, True, True]))
    low, high, high_in_zone, low_in_zone = (darkest(pixels(drawn), x) for x in points[:, 0])
    assert high.sum() < low.sum() - 0.5
    assert high_in_zone.sum() < low_in_zone.sum() - 0.5
    assert low[2] > low[0]  # bluish
    assert low_in_zone[0] > low_in_zone[2]  # reddish
    raised = darkest(pixels(drawn, ground=2.0), -15)
    assert raised.sum() > high.sum() + 0.5


def darkest(image: np.ndarray, x: float) -> np.ndarray:
    colours = at(image, x, 0, 1.0)
    return colours[colours.sum(axis=1).argmin()]


def test_zones_are_outlined_in_the_vehicle_frame() -> None:
    pose = pose_from_angles((0.0, 0.0, 0.7), (500.0, -300.0, 20.0))
    corners = np.array([[20, -30], [30, -30], [30, -10], [20, -10]], np.float64)
    zone = transform_points(pose, np.column_stack([corners, np.zeros(4)]))[:, :2]
    plain = replace(FRAME, pose=pose, points=FRAME.points[:0], labels=None)
    before, after = pixels(plain), pixels(replace(plain, no_label_zones=(zone,)))
    changed = (np.abs(before - after).max(axis=2) > 0.02).nonzero()
    scale = len(before) / (2 * REACH)
    x, y = REACH - changed[0] / scale, REACH - changed[1] / scale
    assert (x.min(), x.max(), y.min(), y.max()) == pytest.approx((20, 30, -30, -10), abs=0.5)


def test_frames_without_anything_are_drawn() -> None:
    nothing = replace(frame(None, points=0), in_no_label_zone=np.zeros(0, np.bool_))
    assert "<!-- no labels -->" in frame_picture(nothing, kind="svg").decode()


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        ((), []),
        (("2f6a9c", "51b3d0"), ["2f6a", "51b3"]),
        (("only-one",), ["only"]),
        (("000123-0", "000123-1", "000123-12"), ["0", "1", "12"]),
        (("abcdef-x1", "abcdef-x2", "zbcdef-x3"), ["f-x1", "f-x2", "f-x3"]),
        (("aaaaaaaa-1-aaaaaaaa", "b", "aaaaaaaa-2-aaaaaaaa"), ["aaaaaaaa-1-aaaaaaaa", "b", "aaaaaaaa-2-aaaaaaaa"]),
        (("same", "same", "other"), ["same", "same", "othe"]),
    ],
)
def test_ids_are_shortened_to_what_tells_them_apart(ids: tuple[str, ...], expected: list[str]) -> None:
    assert short_ids(ids) == expected


@pytest.mark.parametrize("reach", [3.0, 75.0, 700.0, 20000.0])
def test_any_reach_has_rings(reach: float) -> None:
    assert frame_picture(FRAME, reach=reach, kind="svg")
