"""Cast a lidar's shots into a scene.

All beams of a range image's column lie in one plane, so the objects that a column can meet are found once for all its
beams, exactly, and tried from the nearest on. Columns run in parallel and share nothing.
"""

from dataclasses import dataclass

import numpy as np

from detection3d.compiled_code import numba
from detection3d.data.synthetic.noise import uniform_at
from detection3d.data.synthetic.scene import Snapshot
from detection3d.types.scene import BoolArray, Float64Array, Int32Array

NOTHING = -1
GROUND = -2
_NO_SHOT = -3
_MAX_CANDIDATES = 512
_FOLIAGE_STREAM = 16  # streams of noise below it belong to `sensor`


@dataclass(frozen=True)
class Sweep:
    """Where the shots of one lidar start and point, scene frame.

    Attributes:
        origins: float64 [W, 3], the lidar's place at each column.
        rotations: float64 [W, 3, 3], lidar to scene.
        azimuths: float64 [W], radians, lidar frame.
        inclinations: float64 [H], radians, top row first.
        fires: bool [H, W], whether the pixel carries a shot.
        max_range: metres.
        key: of the noise.
    """

    origins: Float64Array
    rotations: Float64Array
    azimuths: Float64Array
    inclinations: Float64Array
    fires: BoolArray
    max_range: float
    key: int


@dataclass(frozen=True)
class Hits:
    """What the shots met.

    Attributes:
        ranges: float64 [H, W], metres, -1 where nothing.
        part: int32 [H, W], index into `Snapshot.solid`, `GROUND` or `NOTHING`.
        cosine: float64 [H, W], of the angle between shot and surface normal, in [0, 1].
    """

    ranges: Float64Array
    part: Int32Array
    cosine: Float64Array


def cast(sweep: Sweep, snapshot: Snapshot, ground: Float64Array, free_path: Float64Array) -> Hits:
    """Find the first surface on each shot.

    Args:
        sweep: the shots.
        snapshot: the objects.
        ground: float64 [14], `Ground.parameters()`.
        free_path: float64 [P], metres that a shot travels inside each part on average; 0 where it is opaque.

    Returns:
        The hits; exact to rounding for solids, within 1e-5 m for the ground.
    """
    ignored = np.where(sweep.fires, np.int32(NOTHING), np.int32(_NO_SHOT))
    return _cast(sweep, snapshot, ground, free_path, ignored)


def cast_behind(
    sweep: Sweep, snapshot: Snapshot, ground: Float64Array, free_path: Float64Array, first: Hits, again: BoolArray
) -> Hits:
    """Find what lies behind the object that was met first, for the shots where `again`, bool [H, W], is set."""
    owner = np.repeat(np.arange(len(snapshot.thing), dtype=np.int32), np.diff(snapshot.first_part))
    ignored = np.full(again.shape, _NO_SHOT, np.int32)
    chosen = again & (first.part >= 0)
    ignored[chosen] = owner[first.part[chosen]]
    return _cast(sweep, snapshot, ground, free_path, ignored)


def _cast(sweep: Sweep, snapshot: Snapshot, ground: Float64Array, free_path: Float64Array, ignored: Int32Array) -> Hits:
    """Cast the shots; `ignored`, int32 [H, W], names the object that each passes through, `NOTHING` or `_NO_SHOT`."""
    hits = Hits(np.full(ignored.shape, -1.0), np.full(ignored.shape, NOTHING, np.int32), np.zeros(ignored.shape))
    _cast_columns(
        sweep.origins,
        sweep.rotations,
        sweep.azimuths,
        sweep.inclinations,
        sweep.max_range,
        np.uint64(sweep.key),
        snapshot.first_part,
        snapshot.bounds,
        snapshot.solid,
        snapshot.parts,
        free_path,
        ground,
        ignored,
        hits.ranges,
        hits.part,
        hits.cosine,
    )
    return hits


@numba.njit(cache=True, parallel=True)
def _cast_columns(
    origins,
    rotations,
    azimuths,
    inclinations,
    max_range,
    key,
    first_part,
    bounds,
    solid,
    parts,
    free_path,
    ground,
    ignored,
    ranges,
    part_index,
    cosines,
) -> None:
    # The loop's body is a function of its own because Numba takes very long to compile it inside a parallel loop.
    for w in numba.prange(ranges.shape[1]):
        _cast_column(
            *(w, origins[w], rotations[w], azimuths[w], inclinations, max_range, key, first_part, bounds, solid, parts),
            *(free_path, ground, ignored, ranges, part_index, cosines),
        )


@numba.njit(cache=True)
def _cast_column(
    w,
    origin,
    rotation,
    azimuth,
    inclinations,
    max_range,
    key,
    first_part,
    bounds,
    solid,
    parts,
    free_path,
    ground,
    ignored,
    ranges,
    part_index,
    cosines,
) -> None:
    rows, columns = ranges.shape
    fires = False
    for row in range(rows):
        fires = fires or ignored[row, w] != _NO_SHOT
    if not fires:
        return
    ca, sa = np.cos(azimuth), np.sin(azimuth)
    forward = rotation[:, 0] * ca + rotation[:, 1] * sa
    across = rotation[:, 1] * ca - rotation[:, 0] * sa
    up = rotation[:, 2]
    candidates = np.empty(_MAX_CANDIDATES, np.int32)
    near = np.empty(_MAX_CANDIDATES)
    tangents = np.empty((_MAX_CANDIDATES, 2))
    found = _find_candidates(bounds, origin, forward, across, up, max_range, candidates, near, tangents)
    for row in range(rows):
        if ignored[row, w] == _NO_SHOT:
            continue
        ci, si = np.cos(inclinations[row]), np.sin(inclinations[row])
        dx, dy, dz = forward[0] * ci + up[0] * si, forward[1] * ci + up[1] * si, forward[2] * ci + up[2] * si
        best, cosine = _meet_ground(ground, origin, dx, dy, dz, max_range)
        met = GROUND if best < max_range else NOTHING
        tangent = si / max(ci, 1e-9)
        for c in range(found):
            if near[c] >= best:
                break
            if tangent < tangents[c, 0] or tangent > tangents[c, 1] or candidates[c] == ignored[row, w]:
                continue
            thing = candidates[c]
            for p in range(first_part[thing], first_part[thing + 1]):
                pixel = row * columns + w
                t, normal = _meet_part(solid[p], parts[p], free_path[p], origin, dx, dy, dz, key, pixel, p)
                if t < best:
                    best, cosine, met = t, normal, p
        if met != NOTHING:
            ranges[row, w], part_index[row, w], cosines[row, w] = best, met, cosine


@numba.njit(cache=True)
def _find_candidates(bounds, origin, forward, across, up, max_range, candidates, near, tangents) -> int:
    """List the objects that the column's half plane can meet, nearest first, with the beams' tangents that can."""
    found = 0
    for o in range(len(bounds)):
        box = bounds[o]
        rx, ry, rz = box[0] - origin[0], box[1] - origin[1], box[2] - origin[2]
        if abs(rx * across[0] + ry * across[1] + rz * across[2]) > _extent(box, across):
            continue
        depth, half_depth = rx * forward[0] + ry * forward[1] + rz * forward[2], _extent(box, forward)
        if depth + half_depth < 0.0 or depth - half_depth > max_range:
            continue
        height, half_height = rx * up[0] + ry * up[1] + rz * up[2], _extent(box, up)
        nearest, farthest = depth - half_depth, depth + half_depth
        low, high = -np.inf, np.inf
        if nearest > 0.1:
            bottom, top = height - half_height, height + half_height
            low = bottom / (farthest if bottom > 0 else nearest)
            high = top / (nearest if top > 0 else farthest)
        if found == len(candidates):
            raise ValueError("more objects in one column than the ray caster has room for")
        place = found
        while place > 0 and near[place - 1] > nearest:
            near[place], candidates[place] = near[place - 1], candidates[place - 1]
            tangents[place, 0], tangents[place, 1] = tangents[place - 1, 0], tangents[place - 1, 1]
            place -= 1
        near[place], candidates[place] = nearest, o
        tangents[place, 0], tangents[place, 1] = low, high
        found += 1
    return found


@numba.njit(cache=True, inline="always")
def _extent(box, direction) -> float:
    """Return half the box's extent along a direction."""
    along = abs(direction[0] * box[6] + direction[1] * box[7])
    across = abs(direction[1] * box[6] - direction[0] * box[7])
    return box[3] * along + box[4] * across + box[5] * abs(direction[2])


@numba.njit(cache=True)
def _meet_ground(ground, origin, dx, dy, dz, max_range) -> tuple[float, float]:
    """Return range and cosine of incidence on the height field, by Newton's method; the largest range if none."""
    t = 0.0
    for _ in range(8):
        x, y = origin[0] + t * dx, origin[1] + t * dy
        height, gx, gy = ground[0] * x + ground[1] * y, ground[0], ground[1]
        for k in range(2, 14, 4):
            phase = ground[k + 1] * x + ground[k + 2] * y + ground[k + 3]
            slope = ground[k] * np.cos(phase)
            height += ground[k] * np.sin(phase)
            gx, gy = gx + ground[k + 1] * slope, gy + ground[k + 2] * slope
        fall = gx * dx + gy * dy - dz
        if fall <= 1e-4:
            return max_range, 0.0
        step = (origin[2] + t * dz - height) / fall
        t += step
        if t > 2.0 * max_range or t < 0.0:
            return max_range, 0.0
        if abs(step) < 1e-6:
            return min(t, max_range), fall / np.sqrt(1.0 + gx * gx + gy * gy)
    return max_range, 0.0


@numba.njit(cache=True)
def _meet_part(solid, part, free_path, origin, dx, dy, dz, key, pixel, index) -> tuple[float, float]:
    """Return range and cosine of incidence; infinity where the shot misses, or passes between the leaves."""
    rx, ry, oz = origin[0] - part[0], origin[1] - part[1], origin[2] - part[2]
    ox, oy = rx * part[6] + ry * part[7], ry * part[6] - rx * part[7]
    ux, uy, uz = dx * part[6] + dy * part[7], dy * part[6] - dx * part[7], dz
    hx, hy, hz = part[3], part[4], part[5]
    if solid == 0:
        enter, leave, cosine = _cross_box(ox, oy, oz, ux, uy, uz, hx, hy, hz)
    else:
        # In units of the half sizes the solid is round, and the ray's parameter stays the distance in metres.
        enter, leave, cosine = _cross_round(solid, ox / hx, oy / hy, oz / hz, ux / hx, uy / hy, uz / hz, hx, hy, hz)
    if enter >= leave or leave <= 0.0:
        return np.inf, 0.0
    if free_path > 0.0:
        depth = -free_path * np.log(1.0 - uniform_at(key, pixel, _FOLIAGE_STREAM + index))
        enter = max(enter, 0.0) + depth
        if enter >= leave:
            return np.inf, 0.0
        return enter, 0.7
    return (enter, cosine) if enter > 0.0 else (np.inf, 0.0)


@numba.njit(cache=True)
def _cross_box(ox, oy, oz, ux, uy, uz, hx, hy, hz) -> tuple[float, float, float]:
    enter, leave, cosine = -np.inf, np.inf, 0.0
    for o, u, h in ((ox, ux, hx), (oy, uy, hy), (oz, uz, hz)):
        if abs(u) < 1e-12:
            if abs(o) > h:
                return np.inf, -np.inf, 0.0
            continue
        middle, half = -o / u, h / abs(u)
        if middle - half > enter:
            enter, cosine = middle - half, abs(u)
        leave = min(leave, middle + half)
    return enter, leave, cosine


@numba.njit(cache=True)
def _cross_round(solid, ox, oy, oz, ux, uy, uz, hx, hy, hz) -> tuple[float, float, float]:
    capped = solid == 1
    wz = 0.0 if capped else 1.0
    a = ux * ux + uy * uy + wz * uz * uz
    b = ox * ux + oy * uy + wz * oz * uz
    c = ox * ox + oy * oy + wz * oz * oz - 1.0
    enter, leave, on_cap = -np.inf, np.inf, False
    if a > 1e-18:
        root = b * b - a * c
        if root <= 0.0:
            return np.inf, -np.inf, 0.0
        root = np.sqrt(root)
        enter, leave = (-b - root) / a, (-b + root) / a
    elif c > 0.0:
        return np.inf, -np.inf, 0.0
    if capped:
        if abs(uz) > 1e-12:
            middle, half = -oz / uz, 1.0 / abs(uz)
            if middle - half > enter:
                enter, on_cap = middle - half, True
            leave = min(leave, middle + half)
        elif abs(oz) > 1.0:
            return np.inf, -np.inf, 0.0
    if on_cap:
        return enter, leave, abs(uz) * hz
    nx, ny, nz = (ox + enter * ux) / hx, (oy + enter * uy) / hy, wz * (oz + enter * uz) / hz
    along = nx * ux * hx + ny * uy * hy + nz * uz * hz
    return enter, leave, abs(along) / np.sqrt(nx * nx + ny * ny + nz * nz)
