import numpy as np
import pytest

from detection3d.data.synthetic.motion import Arrive, Cruise, Depart, Mover, vehicle_poses, velocity_and_acceleration
from detection3d.data.synthetic.street import random_ground, winding_path
from detection3d.geometry.host.poses import pose_from_angles

PROGRESS = [Cruise(8.0, 0.5, 12.0, 1.0), Arrive(7.0, 4.0, 1.2), Depart(7.0, 4.0, 1.2)]


@pytest.mark.parametrize("progress", PROGRESS)
def test_nothing_rolls_back(progress: Cruise | Arrive | Depart) -> None:
    distance = np.array([progress.distance(float(t)) for t in np.linspace(-5, 30, 400)])
    assert (np.diff(distance) >= 0).all()


def test_a_cruise_begins_at_zero_and_swings_about_its_speed() -> None:
    cruise = Cruise(8.0, 0.5, 12.0, 1.0)
    assert cruise.distance(0.0) == pytest.approx(0.0, abs=1e-12)
    for time in (0.0, 3.0, 7.0):
        speed = (cruise.distance(time + 1e-4) - cruise.distance(time - 1e-4)) / 2e-4
        assert speed == pytest.approx(8.0 * (1 + 0.5 * np.sin(2 * np.pi * time / 12.0 + 1.0)), abs=1e-5)


def test_arriving_ends_at_the_stop_and_leaving_begins_there() -> None:
    assert Arrive(7.0, 4.0, 1.2).distance(40.0) == pytest.approx(0.0, abs=1e-9)
    assert Depart(7.0, 4.0, 1.2).distance(-40.0) == pytest.approx(0.0, abs=1e-9)
    assert Depart(7.0, 4.0, 1.2).distance(31.0) - Depart(7.0, 4.0, 1.2).distance(30.0) == pytest.approx(7.0)


@pytest.mark.parametrize("direction", [1, -1])
@pytest.mark.parametrize("progress", PROGRESS)
def test_motion_is_smooth_and_goes_where_it_faces(progress: Cruise | Arrive | Depart, direction: int) -> None:
    generator = np.random.default_rng(4)
    ground = random_ground(generator)
    mover = Mover(winding_path(generator, -100.0, 300.0), 20.0, 3.0, direction, progress)
    for time in (1.0, 3.7, 4.4, 8.0):
        velocity, acceleration = velocity_and_acceleration(mover, ground, time)
        x, y, heading = mover.at(time)
        speed = np.hypot(*velocity[:2])
        if speed > 0.2:
            np.testing.assert_allclose(velocity[:2] / speed, [np.cos(heading), np.sin(heading)], atol=5e-3)
        rise = np.dot(ground.gradient(x, y), velocity[:2])
        assert velocity[2] == pytest.approx(rise, abs=1e-3)
        earlier, _ = velocity_and_acceleration(mover, ground, time - 0.1)
        later, _ = velocity_and_acceleration(mover, ground, time + 0.1)
        np.testing.assert_allclose((later - earlier) / 0.2, acceleration, atol=0.25)


def test_a_vehicle_stands_square_on_the_ground() -> None:
    generator = np.random.default_rng(6)
    ground = random_ground(generator)
    mover = Mover(winding_path(generator, -100.0, 300.0), 0.0, -1.75, 1, Cruise(8.0))
    pose = vehicle_poses(mover, ground, np.array([2.0]))[0]
    up = pose_from_angles(pose[:3], pose[3:])[:3, 2]
    gx, gy = ground.gradient(pose[3], pose[4])
    normal = np.array([-gx, -gy, 1.0]) / np.linalg.norm([-gx, -gy, 1.0])
    np.testing.assert_allclose(up, normal, atol=1e-4)
