"""The ray caster against plain geometry, written another way: every shot against every solid, in numpy."""

import numpy as np
import pytest

from detection3d.data.synthetic.raycast import GROUND, NOTHING, Hits, Sweep, cast, cast_behind
from detection3d.data.synthetic.rigs import tiny_rig
from detection3d.data.synthetic.scene import Snapshot
from detection3d.data.synthetic.street import Ground, random_ground
from detection3d.data.synthetic.sweep import make_sweep
from detection3d.geometry.host.poses import rotation_from_angles

BELOW = np.concatenate([np.zeros(2), np.zeros(12)])  # flat ground at z = 0


def _snapshot(solids: list[int], boxes: np.ndarray) -> Snapshot:
    """One object for each solid; boxes are (centre, half size, heading), [P, 7]."""
    count = len(solids)
    placed = np.column_stack([boxes[:, :6], np.cos(boxes[:, 6]), np.sin(boxes[:, 6])])
    return Snapshot(
        thing=np.arange(count, dtype=np.int32),
        first_part=np.arange(count + 1, dtype=np.int32),
        bounds=placed,
        solid=np.array(solids, np.int32),
        material=np.zeros(count, np.int32),
        shade=np.ones(count),
        parts=placed,
    )


def _directions(sweep: Sweep) -> np.ndarray:
    """[H, W, 3], scene frame."""
    inclination, azimuth = np.meshgrid(sweep.inclinations, sweep.azimuths, indexing="ij")
    local = np.stack(
        [np.cos(azimuth) * np.cos(inclination), np.sin(azimuth) * np.cos(inclination), np.sin(inclination)], axis=-1
    )
    return np.einsum("wij,hwj->hwi", sweep.rotations, local)


def _oracle(sweep: Sweep, solids: list[int], boxes: np.ndarray) -> np.ndarray:
    """Range to each solid, [P, H, W], infinite where the shot misses, from the solids' implicit equations."""
    directions = _directions(sweep)
    ranges = np.full((len(solids), *directions.shape[:2]), np.inf)
    for p, (solid, box) in enumerate(zip(solids, boxes, strict=True)):
        unturn = rotation_from_angles(0.0, 0.0, box[6]).T
        start = (sweep.origins - box[:3]) @ unturn.T / box[3:6]
        step = directions @ unturn.T / box[3:6]
        candidates = []
        if solid in (0, 1):
            for axis in (0, 1, 2) if solid == 0 else (2,):
                for face in (-1.0, 1.0):
                    with np.errstate(divide="ignore", invalid="ignore"):
                        candidates.append((face - start[:, axis]) / step[..., axis])
        if solid in (1, 2):
            weights = np.array([1.0, 1.0, 0.0 if solid == 1 else 1.0])
            a = (weights * step**2).sum(-1)
            b = 2 * (weights * step * start).sum(-1)
            c = (weights * start**2).sum(-1) - 1
            with np.errstate(invalid="ignore"):
                root = np.sqrt(b * b - 4 * a * c)
                candidates += [(-b - root) / (2 * a), (-b + root) / (2 * a)]
        for t in candidates:
            with np.errstate(invalid="ignore"):
                met = np.abs(start + t[..., None] * step)
            round_part = np.hypot(met[..., 0], met[..., 1]) if solid == 1 else np.linalg.norm(met, axis=-1)
            inside = {
                0: (met <= 1 + 1e-9).all(-1),
                1: (round_part <= 1 + 1e-9) & (met[..., 2] <= 1 + 1e-9),
                2: round_part <= 1 + 1e-9,
            }[solid]
            better = inside & (t > 0) & (t < ranges[p])
            ranges[p][better] = t[better]
    return ranges


def _height(ground: Ground, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    waves = sum(amplitude * np.sin(kx * x + ky * y + phase) for amplitude, kx, ky, phase in ground.waves)
    return ground.slope[0] * x + ground.slope[1] * y + waves


def _sweep(pose: tuple[float, ...]) -> Sweep:
    return make_sweep(tiny_rig().lidars[0], np.array([pose]), key=7)


def test_one_box_straight_ahead_of_a_level_lidar() -> None:
    # By hand: the front face of the box is the plane x = 8, 2 m to both sides, from the ground to 4 m.
    sweep = _sweep((-0.003, 0.002, 0.0, 0.0, 0.0, 0.0))
    hits = cast(sweep, _snapshot([0], np.array([[9.0, 0.0, 2.0, 1.0, 2.0, 2.0, 0.0]])), BELOW, np.zeros(1))
    directions = _directions(sweep)
    expected = (8.0 - sweep.origins[:, 0]) / directions[..., 0]
    place = sweep.origins + expected[..., None] * directions
    on_face = (directions[..., 0] > 0) & (np.abs(place[..., 1]) < 2) & (place[..., 2] > 0) & (place[..., 2] < 4)
    assert on_face.sum() > 400
    np.testing.assert_array_equal(hits.part == 0, on_face)
    np.testing.assert_allclose(hits.ranges[on_face], expected[on_face], atol=1e-9)
    np.testing.assert_allclose(hits.cosine[on_face], directions[on_face][:, 0], atol=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_a_crowd_of_solids_seen_from_a_tilted_vehicle(seed: int) -> None:
    generator = np.random.default_rng(seed)
    count = 60
    solids = generator.integers(0, 3, count).tolist()
    centre = generator.uniform([-25, -25, -1], [25, 25, 4], (count, 3))
    centre[:10] *= [0.15, 0.15, 1.0]
    boxes = np.column_stack([centre, generator.uniform(0.1, 3.0, (count, 3)), generator.uniform(-4, 4, count)])
    sweep = _sweep((0.05, -0.08, 2.0, 1.0, -2.0, 0.3))
    turned = np.einsum("pij,pi->pj", rotation_from_angles(0.0, 0.0, boxes[:, 6]), sweep.origins[0] - boxes[:, :3])
    boxes = boxes[(np.abs(turned) / boxes[:, 3:6]).max(axis=1) > 1.01]  # the lidar stands in no solid
    solids = solids[: len(boxes)]
    hits = cast(sweep, _snapshot(solids, boxes), np.array([0, 0, *(0.0,) * 12]), np.zeros(len(boxes)))
    directions = _directions(sweep)
    with np.errstate(divide="ignore"):
        plane = np.where(directions[..., 2] < 0, -sweep.origins[:, 2] / directions[..., 2], np.inf)
    ranges = np.concatenate([_oracle(sweep, solids, boxes), plane[None]])
    nearest, first = ranges.min(axis=0), ranges.argmin(axis=0)
    met = nearest < sweep.max_range
    expected = np.where(met, np.where(first == len(boxes), GROUND, first), NOTHING)
    # Grazing shots may be seen either way by a rounding error.
    assert (expected != hits.part).mean() < 2e-4
    same = met & (expected == hits.part)
    assert (hits.part >= 0).mean() > 0.1
    np.testing.assert_allclose(hits.ranges[same], nearest[same], atol=1e-6)
    again = np.ones(met.shape, bool)
    behind = cast_behind(sweep, _snapshot(solids, boxes), BELOW, np.zeros(len(boxes)), hits, again)
    ranges_behind = np.where(np.arange(len(ranges))[:, None, None] == hits.part, np.inf, ranges).min(axis=0)
    shots = hits.part >= 0
    expected_behind = np.where(ranges_behind < sweep.max_range, ranges_behind, -1.0)[shots]
    assert (np.abs(expected_behind - behind.ranges[shots]) > 1e-6).mean() < 1e-3
    assert (behind.ranges[~shots] == -1.0).all()


def test_shots_meet_the_waves_of_the_ground() -> None:
    ground: Ground = random_ground(np.random.default_rng(5))
    sweep = _sweep((0.01, 0.0, 0.4, 3.0, 4.0, ground.height(3.0, 4.0)))
    hits: Hits = cast(sweep, _snapshot([], np.zeros((0, 7))), ground.parameters(), np.zeros(0))
    directions = _directions(sweep)
    place = sweep.origins + hits.ranges[..., None] * directions
    height = _height(ground, place[..., 0], place[..., 1])
    met = hits.part == GROUND
    assert 0.35 < met.mean() < 0.9
    np.testing.assert_allclose(place[met][:, 2], height[met], atol=1e-6)
    # A shot that met nothing stays above the ground all the way.
    for t in np.linspace(0.5, sweep.max_range, 60):
        place = sweep.origins + t * directions
        above = place[..., 2] - _height(ground, place[..., 0], place[..., 1])
        assert above[~met].min() > -1e-6


def test_leaves_let_some_shots_through() -> None:
    sweep = _sweep((0.0, 0.0, 0.0, 0.0, 0.0, 0.0))
    crown = _snapshot([2], np.array([[10.0, 0.0, 2.0, 1.5, 1.5, 1.5, 0.0]]))
    solid = cast(sweep, crown, BELOW, np.zeros(1))
    airy = cast(sweep, crown, BELOW, np.full(1, 1.0))
    shots = solid.part == 0
    met = airy.part == 0
    assert not (met & ~shots).any()
    assert 0.4 < met.sum() / shots.sum() < 0.95
    assert (airy.ranges[met] > solid.ranges[met]).all()
    assert (airy.ranges[met] < solid.ranges[met] + 3.0).all()
