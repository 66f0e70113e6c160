import numba
import numpy as np

from detection3d.data.synthetic.noise import derive_key, normal_at, uniform_at


@numba.njit
def _draw(key: np.uint64, count: int, stream: int) -> tuple[np.ndarray, np.ndarray]:
    flat, bell = np.empty(count), np.empty(count)
    for index in range(count):
        flat[index] = uniform_at(key, index, stream)
        bell[index] = normal_at(key, index, stream)
    return flat, bell


def test_noise_has_the_moments_it_claims() -> None:
    key = np.uint64(derive_key(1, 2))
    flat, bell = _draw(key, 50_000, 3)
    assert flat.min() >= 0
    assert flat.max() < 1
    histogram = np.histogram(flat, 20, (0, 1))[0]
    assert abs(histogram / 2500 - 1).max() < 0.1
    assert abs(bell.mean()) < 0.02
    assert abs(bell.std() - 1) < 0.02
    assert 3.0 < np.abs(bell).max() <= 2 * np.sqrt(3.0) + 1e-9


def test_neighbours_streams_and_keys_are_unrelated() -> None:
    first, _ = _draw(np.uint64(derive_key(1, 2)), 20_000, 3)
    stream, _ = _draw(np.uint64(derive_key(1, 2)), 20_000, 4)
    other, _ = _draw(np.uint64(derive_key(1, 3)), 20_000, 3)
    for a, b in ((first[1:], first[:-1]), (first, stream), (first, other), (first[4:], stream[:-4])):
        assert abs(np.corrcoef(a, b)[0, 1]) < 0.03
