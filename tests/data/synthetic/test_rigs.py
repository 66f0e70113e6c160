import numpy as np
import pytest

from detection3d.data.synthetic.rigs import RigConfig, full_rig, tiny_rig


@pytest.mark.parametrize("rig", [full_rig(), tiny_rig()])
def test_the_calibration_says_where_the_beams_are(rig: RigConfig) -> None:
    for lidar in rig.lidars:
        low, high = lidar.inclination_limits
        assert (np.diff(lidar.inclinations) > 0).all()
        if lidar.uniform:
            # Waymo's `compute_inclination`.
            expected = low + (np.arange(lidar.rows) + 0.5) / lidar.rows * (high - low)
            np.testing.assert_allclose(lidar.inclinations, expected, atol=1e-12)
            np.testing.assert_allclose([low, high], [-np.pi / 2, np.pi / 6], atol=1e-12)


def test_the_full_rig_is_waymos() -> None:
    shapes = [(lidar.rows, lidar.columns) for lidar in full_rig().lidars]
    assert shapes == [(64, 2650), *[(200, 600)] * 4]
    assert [int(lidar.name) for lidar in full_rig().lidars] == [1, 2, 3, 4, 5]
    spacing = np.diff(full_rig().lidars[0].inclinations)
    assert spacing[0] > 2.5 * spacing[-1]


def test_every_lidar_looks_outwards() -> None:
    for lidar in full_rig().lidars[1:]:
        outwards = np.array(lidar.mount[:2]) - [1.43, 0.0]
        assert lidar.extrinsic[:2, 0] @ outwards > 0.8 * np.linalg.norm(outwards) or abs(lidar.mount[1]) > 1
        if abs(lidar.mount[1]) > 1:
            assert lidar.extrinsic[1, 0] * lidar.mount[1] > 0.9
