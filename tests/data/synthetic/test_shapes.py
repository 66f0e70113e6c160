import numpy as np
import pytest

from detection3d.data.synthetic.population import draw_cyclist, draw_pedestrian, draw_vehicle

DRAWS = [draw_vehicle, draw_pedestrian, draw_cyclist]


@pytest.mark.parametrize("draw", DRAWS)
def test_parts_span_exactly_the_size(draw) -> None:
    generator = np.random.default_rng(0)
    for _ in range(300):
        shape = draw(generator)
        low = np.min([part.low for part in shape.parts], axis=0)
        high = np.max([part.high for part in shape.parts], axis=0)
        length, width, height = shape.size
        np.testing.assert_allclose(low, [-length / 2, -width / 2, 0.0], atol=1e-9)
        np.testing.assert_allclose(high, [length / 2, width / 2, height], atol=1e-9)
        assert all((np.subtract(part.high, part.low) > 0).all() for part in shape.parts)


@pytest.mark.parametrize("draw", DRAWS)
def test_sizes_vary_by_eight_per_cent(draw) -> None:
    generator = np.random.default_rng(1)
    sizes = np.array([draw(generator).size for _ in range(2000)])
    assert (sizes.std(axis=0) / sizes.mean(axis=0) >= 0.08).all()


def test_front_and_back_of_a_vehicle_differ() -> None:
    generator = np.random.default_rng(2)
    for _ in range(100):
        geometry = draw_vehicle(generator).geometry()
        mirrored = geometry * [-1, 1, 1, 1, 1, 1]
        lacking = [not np.isclose(geometry, part, atol=0.02).all(axis=1).any() for part in mirrored]
        assert any(lacking)
