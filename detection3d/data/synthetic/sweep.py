"""Where the vehicle is while a lidar turns, and the shots that follow from it.

Waymo stores TOP's poses as float32 global coordinates, which move a point by up to half a millimetre at some thousand
metres. The shots start from the stored poses, so a reader's points lie on the surfaces all the same.
"""

import numpy as np
import numpy.typing as npt

from detection3d.compiled_code import numba
from detection3d.data.synthetic.motion import vehicle_poses
from detection3d.data.synthetic.noise import uniform_at
from detection3d.data.synthetic.raycast import Sweep
from detection3d.data.synthetic.rigs import SWEEP_SECONDS, LidarConfig
from detection3d.data.synthetic.scene import Scene
from detection3d.geometry.host.boxes import wrap_angle
from detection3d.geometry.host.poses import pose_from_angles
from detection3d.types.scene import BoolArray, Float32Array, Float64Array

_ANGLE_STEP = 2.0**-21  # radians; the angles of neighbouring columns share their bits, and so compress
_FIRE_STREAM = 0


def to_global(scene: Scene, poses: Float64Array) -> Float64Array:
    """Take (roll, pitch, yaw, x, y, z), [..., 6], from the scene frame to the global one."""
    return _turn(poses, scene.yaw, np.zeros(3), scene.offset)


def to_scene(scene: Scene, poses: npt.NDArray[np.floating]) -> Float64Array:
    """Take (roll, pitch, yaw, x, y, z), [..., 6], from the global frame to the scene's."""
    return _turn(np.asarray(poses, np.float64), -scene.yaw, scene.offset, np.zeros(3))


def column_poses(scene: Scene, lidar: LidarConfig, time: float) -> Float32Array:
    """Return the vehicle's global pose at each column, float32 [W, 6], as the range image's pose stores it.

    The turn is centred on `time`, and the columns follow the lidar clockwise, from the left edge to the right.
    """
    moment = time + SWEEP_SECONDS * ((np.arange(lidar.columns) + 0.5) / lidar.columns - 0.5)
    # A vehicle's path is smooth on the scale of a sweep: a few poses and a parabola are exact to a micrometre.
    knots = np.linspace(moment[0], moment[-1], 3)
    poses = to_global(scene, vehicle_poses(scene.ego, scene.ground, knots))
    poses[:, 2] = np.unwrap(poses[:, 2])
    u = (moment - knots[1])[:, None] / (knots[2] - knots[1])
    smooth = poses[1] + 0.5 * u * (poses[2] - poses[0]) + 0.5 * u * u * (poses[2] - 2 * poses[1] + poses[0])
    smooth[:, 2] = wrap_angle(smooth[:, 2])
    smooth[:, :3] = np.round(smooth[:, :3] / _ANGLE_STEP) * _ANGLE_STEP
    return smooth.astype(np.float32)


def make_sweep(lidar: LidarConfig, poses: Float64Array, key: int) -> Sweep:
    """Lay out the shots of one turn.

    Args:
        lidar: the lidar.
        poses: float64 [W, 6] or [1, 6], roll, pitch, yaw, x, y, z of the vehicle, scene frame.
        key: of the noise.

    Returns:
        The shots, scene frame.
    """
    mounted = pose_from_angles(poses[:, :3], poses[:, 3:]) @ lidar.extrinsic
    mounted = np.ascontiguousarray(np.broadcast_to(mounted, (lidar.columns, 4, 4)))
    azimuths = lidar.azimuths()
    return Sweep(
        origins=np.ascontiguousarray(mounted[:, :3, 3]),
        rotations=np.ascontiguousarray(mounted[:, :3, :3]),
        azimuths=azimuths,
        inclinations=np.array(lidar.inclinations[::-1]),
        fires=_fires(lidar, azimuths, key),
        max_range=lidar.max_range,
        key=key,
    )


def _fires(lidar: LidarConfig, azimuths: Float64Array, key: int) -> BoolArray:
    in_view = np.abs(wrap_angle(azimuths)) <= lidar.half_view
    fires = np.repeat(in_view[None], lidar.rows, axis=0)
    if lidar.fill < 1.0:
        _thin_out(fires, lidar.fill, np.uint64(key))
    return fires


def _turn(poses: Float64Array, yaw: float, before: Float64Array, after: Float64Array) -> Float64Array:
    cosine, sine = np.cos(yaw), np.sin(yaw)
    turned = poses.copy()
    x, y, z = np.moveaxis(poses[..., 3:] - before, -1, 0)
    turned[..., 2] = wrap_angle(poses[..., 2] + yaw)
    turned[..., 3:] = np.stack([cosine * x - sine * y, sine * x + cosine * y, z], axis=-1) + after
    return turned


@numba.njit(cache=True, parallel=True)
def _thin_out(fires: BoolArray, fill: float, key: np.uint64) -> None:
    rows, columns = fires.shape
    for row in numba.prange(rows):
        for w in range(columns):
            fires[row, w] &= uniform_at(key, row * columns + w, _FIRE_STREAM) < fill
