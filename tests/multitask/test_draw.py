"""The draw: pinned values, and statistics that a poor hash fails."""

import math

import numpy as np
import pytest
import torch

from detection3d.multitask.draw import stream_words, uniform, uniform_at

CPU = torch.device("cpu")
MANY = 1 << 18


def draw(seed: int = 0, step: int = 0, name: str = "fork", count: int = MANY) -> np.ndarray:
    return uniform((count,), seed, step, name, CPU).double().numpy()


def hash_in_plain_integers(index: int, words: tuple[int, int], values: list[int]) -> float:
    """The same hash in Python's integers of any size, which never overflow."""

    def mix(x: int) -> int:
        x = ((x ^ (x >> 16)) * 0x7FEB352D) % 2**32
        x = ((x ^ (x >> 15)) * 0x846CA68B) % 2**32
        return x ^ (x >> 16)

    keys = list(words)
    for value in values:
        keys = [mix(mix(key ^ (value % 2**32)) ^ (value >> 32)) for key in keys]
    return (mix(mix(index ^ keys[0]) ^ keys[1]) >> 8) / 2**24


@pytest.mark.parametrize(("seed", "step", "name"), [(0, 0, "fork"), (-7, 2**40 + 3, "another"), (2**63, 5, "")])
def test_equals_the_hash_in_plain_integers(seed: int, step: int, name: str) -> None:
    words = stream_words(seed, name)
    wanted = [hash_in_plain_integers(index, words, [step]) for index in range(200)]
    assert uniform((10, 20), seed, step, name, CPU).flatten().tolist() == wanted
    samples = [3, 2**35 + 1]
    wanted = [hash_in_plain_integers(index, words, [step, sample]) for sample in samples for index in range(20)]
    found = uniform((2, 4, 5), seed, step, name, CPU, torch.tensor(samples))
    assert found.flatten().tolist() == wanted


def test_pinned_values() -> None:
    # A change here changes every training run: resumed runs would no longer equal uninterrupted ones.
    assert (draw(count=4) * 2**24).astype(int).tolist() == [7199292, 3665441, 15846126, 1460735]
    assert (draw(seed=1, step=2, name="b", count=4) * 2**24).astype(int).tolist() == [
        10019642,
        9539134,
        5590404,
        10573742,
    ]


def test_uniform_in_the_half_open_interval() -> None:
    values = draw()
    assert values.min() >= 0
    assert values.max() < 1
    counts = np.bincount((values * 256).astype(int), minlength=256)
    assert_chi_square(counts, 256)
    low_bits = np.bincount((values * 2**24).astype(int) % 256, minlength=256)
    assert_chi_square(low_bits, 256)


def assert_chi_square(counts: np.ndarray, cells: int) -> None:
    """Fails a true uniform draw once in about 10^5 fixed cases; the draw is fixed, so it never flickers."""
    expectation = counts.sum() / cells
    statistic = float(((counts - expectation) ** 2 / expectation).sum())
    freedom = cells - 1
    assert abs(statistic - freedom) < 4.4 * math.sqrt(2 * freedom), statistic


@pytest.mark.parametrize(
    ("seed", "step", "name"), [(0, 1, "fork"), (0, 2, "fork"), (0, 2**32, "fork"), (1, 0, "fork"), (0, 0, "fork2")]
)
def test_streams_are_independent(seed: int, step: int, name: str) -> None:
    a, b = draw(), draw(seed, step, name)
    for shift in (0, 1, 256):
        cells = (a * 16).astype(int) * 16 + (np.roll(b, shift) * 16).astype(int)
        assert_chi_square(np.bincount(cells, minlength=256), 256)
    assert not set(a[:64]) & set(b[:64])


@pytest.mark.parametrize("distance", [1, 2, 3, 7, 64, 256, 1000])
def test_neighbours_are_independent(distance: int) -> None:
    a = draw(step=11)
    cells = (a[:-distance] * 16).astype(int) * 16 + (a[distance:] * 16).astype(int)
    assert_chi_square(np.bincount(cells, minlength=256), 256)


def test_steps_at_one_position_are_independent() -> None:
    values = np.array([draw(step=step, count=4) for step in range(4096)])
    for position in range(4):
        column = values[:, position]
        assert_chi_square(np.bincount((column * 16).astype(int), minlength=16), 16)
        pairs = (column[:-1] * 8).astype(int) * 8 + (column[1:] * 8).astype(int)
        assert_chi_square(np.bincount(pairs, minlength=64), 64)


def test_keep_rate_lies_in_the_binomial_band() -> None:
    # Oracle 22. At purity 0.7, 70 % of the positions keep the positive sign.
    rate = (draw(step=3) < 0.7).mean()
    assert abs(rate - 0.7) < 4 * math.sqrt(0.7 * 0.3 / MANY)


def test_a_sample_draws_the_same_wherever_it_stands() -> None:
    together = uniform((3, 5, 4), 0, 1, "fork", CPU, torch.tensor([8, 2, 5]))
    apart = [uniform((1, 5, 4), 0, 1, "fork", CPU, torch.tensor([sample])) for sample in (8, 2, 5)]
    assert torch.equal(together, torch.cat(apart))
    assert not set(together[0].flatten().tolist()) & set(together[1].flatten().tolist())


@pytest.mark.parametrize(("seed", "step"), [(0, 0), (5, 2**35 + 7)])
def test_single_positions_draw_what_they_have_in_the_whole(seed: int, step: int) -> None:
    whole = uniform((64, 50), seed, step, "fork", CPU).flatten()
    index = torch.tensor([[3199, 0, 17], [17, 1, 2**5]])
    copy = index.clone()
    found = uniform_at(index, stream_words(seed, "fork"), torch.tensor(step))
    assert torch.equal(found, whole[index])
    assert torch.equal(index, copy)


def test_positions_beyond_the_whole_draw_numbers_of_their_own() -> None:
    # A grid of voxels may have more places than the 2^32 of one dense draw; the upper word is hashed in too.
    words, step = stream_words(0, "fork"), torch.tensor(0)
    near = torch.arange(MANY)
    a = uniform_at(near, words, step).double().numpy()
    for offset in (2**32, 2**33, 2**40):
        b = uniform_at(near + offset, words, step).double().numpy()
        assert not set(a[:64]) & set(b[:64])
        cells = (a * 16).astype(int) * 16 + (b * 16).astype(int)
        assert_chi_square(np.bincount(cells, minlength=256), 256)
    # Across the border the same rule holds for each side.
    border = uniform_at(torch.tensor([2**32 - 1, 2**32, 2**32 + 1]), words, step)
    assert border.tolist()[0] == hash_in_plain_integers(2**32 - 1, words, [0])
    assert len(set(border.tolist())) == 3


def test_the_global_generator_stays_as_it_is() -> None:
    # Oracle 19.
    before = torch.get_rng_state()
    draw(count=100)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_step_may_be_a_tensor() -> None:
    assert torch.equal(uniform((9,), 4, torch.tensor(6), "a", CPU), uniform((9,), 4, 6, "a", CPU))


def test_wrong_shapes() -> None:
    with pytest.raises(ValueError, match=r"sample_index has shape \(2,\)"):
        uniform((3, 5), 0, 0, "fork", CPU, torch.tensor([1, 2]))
    with pytest.raises(ValueError, match="4294967297 positions"):
        uniform((2**32 + 1,), 0, 0, "fork", CPU)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_same_bits_on_cuda() -> None:
    samples = torch.tensor([4, 2**40])
    for index in (None, samples):
        on_cpu = uniform((2, 64, 100), 3, 2**33 + 1, "fork", CPU, index)
        on_gpu = uniform((2, 64, 100), 3, 2**33 + 1, "fork", "cuda", None if index is None else index.cuda())
        assert torch.equal(on_cpu, on_gpu.cpu())
