"""Turn what the shots met into two range images: lost shots, noise, brightness, echoes and no-label zones."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from detection3d.compiled_code import numba
from detection3d.data.synthetic.materials import Material, material_table
from detection3d.data.synthetic.noise import normal_at, uniform_at
from detection3d.data.synthetic.raycast import Sweep, cast, cast_behind
from detection3d.data.synthetic.rigs import LidarConfig
from detection3d.data.synthetic.scene import Scene, Snapshot
from detection3d.geometry.host.poses import invert_pose, pose_from_angles
from detection3d.types.scene import BoolArray, Float32Array, Float64Array, Int32Array

RANGE_DEVIATION = 0.012  # metres; `noise.normal_at` stays within 3.47 of it
_LEAVES = int(Material.LEAVES)
_GROUND_MATERIAL = int(Material.GROUND)

# Streams of noise for one pixel; stream 0 belongs to `sweep`, those from 16 on to `raycast`. The second return takes
# the same ones four higher.
_ECHO_STREAM = 1
_LOSS_STREAM, _RANGE_STREAM, _BRIGHT_STREAM, _LONG_STREAM = 2, 3, 4, 5
_SECOND_RETURN = 4


@dataclass(frozen=True)
class RoadProfile:
    """Where the main street lies, for the brightness of the ground.

    Attributes:
        middle: float64 [K], y of its middle line at every metre of x, scene frame.
        first: the first x, metres.
        half: half its width, metres.
    """

    middle: Float64Array
    first: float
    half: float


@dataclass(frozen=True)
class Observation:
    """What one lidar saw in one turn.

    Attributes:
        images: first and second return, each float32 [H, W, 4]: range, intensity, elongation, and 1 in a no-label zone
            or -1 outside; all -1 where nothing returned.
        points: float32 [N, 3], of the first return, then the second, row-major, vehicle frame at the frame's pose.
    """

    images: tuple[Float32Array, Float32Array]
    points: Float32Array


def road_profile(scene: Scene) -> RoadProfile:
    """Tabulate the main street of a scene."""
    # Its direction stays within a third of a radian of +x, so x rises along it.
    s = np.arange(scene.street.first, scene.street.last, 2.0)
    line = np.array([scene.street.at(float(value), 0.0)[:2] for value in s])
    first = float(np.floor(line[0, 0]))
    middle = np.interp(np.arange(first, line[-1, 0] + 1.0), line[:, 0], line[:, 1])
    return RoadProfile(middle, first, scene.road_half)


def observe(
    scene: Scene, road: RoadProfile, snapshot: Snapshot, lidar: LidarConfig, sweep: Sweep, vehicle: Float64Array
) -> Observation:
    """Look at a snapshot with one lidar.

    Args:
        scene: the scene.
        road: its main street.
        snapshot: its things at the moment.
        lidar: the lidar.
        sweep: its shots.
        vehicle: float64 [6], roll, pitch, yaw, x, y, z of the vehicle at the frame's timestamp, scene frame.

    Returns:
        The range images and the points in them.
    """
    table = material_table()
    ground = scene.ground.parameters()
    free_path = table[snapshot.material, 3]
    first = cast(sweep, snapshot, ground, free_path)
    key = np.uint64(sweep.key)
    echoes = np.zeros(first.part.shape, np.bool_)
    _choose_echoes(first.ranges, first.part, snapshot.material, key, echoes)
    second = cast_behind(sweep, snapshot, ground, free_path, first, echoes)
    from_scene = invert_pose(pose_from_angles(vehicle[:3], vehicle[3:]))
    corners, starts = _zone_arrays(scene.no_label_zones)
    images, points = [], []
    for hits, shift in ((first, 0), (second, _SECOND_RETURN)):
        image = np.full((*hits.part.shape, 4), -1.0, np.float32)
        place = np.empty((*hits.part.shape, 3), np.float32)
        _respond(
            *(hits.ranges, hits.part, hits.cosine, snapshot.material, snapshot.shade, table, lidar.bright_range, key),
            *(shift, sweep.origins, sweep.rotations, sweep.azimuths, sweep.inclinations, from_scene, corners, starts),
            *(road.middle, road.first, road.half, image, place),
        )
        if images:
            # A second return needs a first, clearly apart from it.
            alone = (images[0][..., 0] <= 0) | (image[..., 0] < images[0][..., 0] + 0.4)
            image[alone] = -1.0
        images.append(image)
        points.append(place[image[..., 0] > 0])
    return Observation((images[0], images[1]), np.concatenate(points))


def _zone_arrays(zones: tuple[Float64Array, ...]) -> tuple[Float64Array, Int32Array]:
    starts = np.concatenate([[0], np.cumsum([len(zone) for zone in zones])]).astype(np.int32)
    return np.concatenate([*zones, np.zeros((0, 2))]), starts


@numba.njit(cache=True, parallel=True)
def _choose_echoes(ranges, part, material, key, echoes) -> None:
    """Mark shots that a leaf or an edge may have split: a neighbour sees something well behind, or nothing."""
    rows, columns = part.shape
    for row in numba.prange(rows):
        for w in range(columns):
            met = part[row, w]
            if met < 0:
                continue
            limit = ranges[row, w] + 0.6
            chance = 0.35 if material[met] == _LEAVES else 0.0
            for step_row, step_column in ((0, 1), (0, -1), (1, 0), (-1, 0)):
                other_row, other = row + step_row, (w + step_column) % columns
                if other_row < 0 or other_row >= rows:
                    continue
                if ranges[other_row, other] > limit or (
                    ranges[other_row, other] < 0.0 and part[other_row, other] == -1
                ):
                    chance = max(chance, 0.3)
            echoes[row, w] = uniform_at(key, row * columns + w, _ECHO_STREAM) < chance


@numba.njit(cache=True, parallel=True)
def _respond(
    ranges,
    part,
    cosine,
    material,
    shade,
    table,
    bright_range,
    key,
    shift,
    origins,
    rotations,
    azimuths,
    inclinations,
    from_scene,
    corners,
    starts,
    road,
    road_first,
    road_half,
    image,
    place,
) -> None:
    ca, sa = np.cos(azimuths), np.sin(azimuths)
    # As in `raycast`, the body is a function of its own to compile fast.
    for row in numba.prange(len(part)):
        _respond_row(
            row,
            ca,
            sa,
            ranges,
            part,
            cosine,
            material,
            shade,
            table,
            bright_range,
            key,
            shift,
            origins,
            rotations,
            azimuths,
            inclinations,
            from_scene,
            corners,
            starts,
            road,
            road_first,
            road_half,
            image,
            place,
        )


@numba.njit(cache=True)
def _respond_row(
    row,
    ca,
    sa,
    ranges,
    part,
    cosine,
    material,
    shade,
    table,
    bright_range,
    key,
    shift,
    origins,
    rotations,
    azimuths,
    inclinations,
    from_scene,
    corners,
    starts,
    road,
    road_first,
    road_half,
    image,
    place,
) -> None:
    columns = part.shape[1]
    ci, si = np.cos(inclinations[row]), np.sin(inclinations[row])
    for w in range(columns):
        met = part[row, w]
        if met == -1:
            continue
        pixel = row * columns + w
        rotation = rotations[w]
        lx, ly, lz = ci * ca[w], ci * sa[w], si
        dx = rotation[0, 0] * lx + rotation[0, 1] * ly + rotation[0, 2] * lz
        dy = rotation[1, 0] * lx + rotation[1, 1] * ly + rotation[1, 2] * lz
        dz = rotation[2, 0] * lx + rotation[2, 1] * ly + rotation[2, 2] * lz
        distance = ranges[row, w]
        if met >= 0:
            kind, tint = material[met], shade[met]
        else:
            kind = _GROUND_MATERIAL
            tint = _ground_shade(
                origins[w, 0] + distance * dx, origins[w, 1] + distance * dy, road, road_first, road_half
            )
        echo = table[kind, 0] * tint * max(cosine[row, w], 0.02)
        strength = echo * (bright_range / distance) ** 2
        kept = (1.0 - table[kind, 2]) * strength / (strength + 0.012)
        if uniform_at(key, pixel, shift + _LOSS_STREAM) >= kept:
            continue
        # Sensors report in steps, and round numbers make small files.
        noisy = np.float32(
            np.round((distance + RANGE_DEVIATION * normal_at(key, pixel, shift + _RANGE_STREAM)) * 1024.0) / 1024.0
        )
        if noisy <= 0.0:
            continue
        bright = echo * (1.0 + 0.2 * normal_at(key, pixel, shift + _BRIGHT_STREAM))
        slant = 0.15 * (1.0 - cosine[row, w])
        stretch = table[kind, 1] * (1.0 + 0.5 * normal_at(key, pixel, shift + _LONG_STREAM)) + slant
        image[row, w, 0] = noisy
        image[row, w, 1] = np.round(max(bright, 0.002) * 512.0) / 512.0
        image[row, w, 2] = np.round(min(max(stretch, 0.0), 1.5) * 512.0) / 512.0
        x, y, z = origins[w, 0] + noisy * dx, origins[w, 1] + noisy * dy, origins[w, 2] + noisy * dz
        image[row, w, 3] = 1.0 if _in_zones(x, y, corners, starts) else -1.0
        for axis in range(3):
            place[row, w, axis] = (
                from_scene[axis, 0] * x + from_scene[axis, 1] * y + from_scene[axis, 2] * z + from_scene[axis, 3]
            )


@numba.njit(cache=True)
def _ground_shade(x, y, road, road_first, road_half) -> float:
    """Return the brightness of asphalt, lane markings, paving and grass about the main street."""
    index = min(max(int(x - road_first), 0), len(road) - 2)
    rise = road[index + 1] - road[index]
    middle = road[index] + (x - road_first - index) * rise
    offset = abs(y - middle) / np.sqrt(1.0 + rise * rise)
    if offset > road_half + 9.0:
        return 2.2
    if offset > road_half + 3.0:
        return 1.6
    lane = offset - 3.5 * np.floor(offset / 3.5)
    if offset < road_half and (lane < 0.08 or lane > 3.42):
        return 4.0
    return 0.8


@numba.njit(cache=True)
def _in_zones(x, y, corners, starts) -> bool:
    """Tell whether a place lies in any polygon, by the even-odd rule."""
    for zone in range(len(starts) - 1):
        inside = False
        j = starts[zone + 1] - 1
        for i in range(starts[zone], starts[zone + 1]):
            if (corners[i, 1] > y) != (corners[j, 1] > y):
                cut = (corners[j, 0] - corners[i, 0]) * (y - corners[i, 1]) / (corners[j, 1] - corners[i, 1])
                if x < cut + corners[i, 0]:
                    inside = not inside
            j = i
        if inside:
            return True
    return False


def in_zones(places: npt.NDArray[np.floating], zones: tuple[Float64Array, ...]) -> BoolArray:
    """Tell which places lie in any of the polygons.

    Args:
        places: [N, 2], x and y.
        zones: polygons, each float64 [Q, 2], in the frame of the places.

    Returns:
        bool [N].
    """
    corners, starts = _zone_arrays(zones)
    return np.array([_in_zones(float(x), float(y), corners, starts) for x, y in places], np.bool_)
