import numpy as np
import pytest

from detection3d.geometry.host.boxes import corners_bev, count_points_in_boxes, points_in_boxes, wrap_angle


def test_wrap_angle_reaches_minus_pi_but_never_pi() -> None:
    angles = np.array([np.pi, -np.pi, 3 * np.pi, np.nextafter(-np.pi, -4.0), 0.5, 7.0])
    wrapped = wrap_angle(angles)
    assert (wrapped >= -np.pi).all()
    assert (wrapped < np.pi).all()
    np.testing.assert_allclose(np.exp(1j * wrapped), np.exp(1j * angles), atol=1e-14)


def test_corners_of_a_box_turned_by_a_right_angle() -> None:
    corners = corners_bev(np.array([[10.0, 20.0, 0.0, 4.0, 2.0, 1.5, np.pi / 2]]))
    expected = [[9.0, 22.0], [9.0, 18.0], [11.0, 18.0], [11.0, 22.0]]
    np.testing.assert_allclose(corners[0], expected, atol=1e-12)


def test_points_in_boxes_agrees_with_rotating_each_point_back() -> None:
    generator = np.random.default_rng(3)
    points = generator.uniform(-6, 6, (500, 4))
    boxes = np.column_stack(
        [generator.uniform(-3, 3, (9, 3)), generator.uniform(1, 6, (9, 3)), generator.uniform(-4, 4, 9)]
    )
    expected = np.zeros((500, 9), bool)
    for m, box in enumerate(boxes):
        turn = np.exp(-1j * box[6])
        flat = (points[:, 0] - box[0] + 1j * (points[:, 1] - box[1])) * turn
        local = np.column_stack([flat.real, flat.imag, points[:, 2] - box[2]])
        expected[:, m] = (np.abs(local) <= box[3:6] / 2).all(axis=1)
    assert expected.sum() > 50
    np.testing.assert_array_equal(points_in_boxes(points, boxes), expected)
    np.testing.assert_array_equal(count_points_in_boxes(points, boxes), expected.sum(axis=0))


@pytest.mark.parametrize(("points", "boxes"), [(0, 0), (3, 0), (0, 2)])
def test_nothing_in_nothing(points: int, boxes: int) -> None:
    assert points_in_boxes(np.zeros((points, 3)), np.zeros((boxes, 7))).shape == (points, boxes)
    assert count_points_in_boxes(np.zeros((points, 3)), np.zeros((boxes, 7))).tolist() == [0] * boxes
