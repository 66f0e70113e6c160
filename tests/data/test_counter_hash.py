import numpy as np
import pytest
import torch

from detection3d.data.counter_hash import permutation, uniform


def mix(value: int) -> int:
    """The mixing step in plain integers."""
    value %= 2**32
    value ^= value >> 16
    value = value * 0x21F0AAAD % 2**32
    value ^= value >> 15
    value = value * 0x735A2D97 % 2**32
    return value ^ (value >> 15)


def absorb(state: int, word: int) -> int:
    return mix((state ^ word) + 0x9E3779B9)


def oracle(seed: int, stream: int, *counters: int) -> float:
    state = 0
    for value in (seed, stream, *counters):
        state = absorb(absorb(state, value % 2**32), (value >> 32) % 2**32)
    return (state >> 8) / 2**24


@pytest.mark.parametrize("seed", [0, 1, -1, 2**40 + 3])
def test_equals_the_same_hash_in_plain_integers(seed):
    samples = torch.tensor([0, 1, 2**31, 2**32, 2**62 + 5])
    places = torch.tensor([[0], [170_000], [2**33]])
    draws = uniform(seed, 7, samples, places)
    expected = [[oracle(seed, 7, int(sample), int(place)) for sample in samples] for place in places]
    assert draws.dtype == torch.float32
    np.testing.assert_array_equal(draws.numpy(), np.array(expected, np.float32))


def test_is_even_and_uncorrelated():
    counter = torch.arange(200_000)
    first, second = uniform(0, 1, counter), uniform(0, 2, counter)
    assert float(first.min()) >= 0
    assert float(first.max()) < 1
    counts = torch.histc(first, 100, 0, 1)
    # Chi-squared with 99 degrees of freedom: mean 99, standard deviation 14.1.
    assert abs(float(((counts - 2000) ** 2 / 2000).sum()) - 99) < 5 * 14.1
    for other in (second, first.roll(1), uniform(1, 1, counter)):
        correlation = float(torch.corrcoef(torch.stack((first, other)))[0, 1])
        assert abs(correlation) < 5 / 200_000**0.5


def test_leaves_the_global_generator_alone():
    state = torch.get_rng_state()
    uniform(0, 1, torch.arange(10))
    permutation(0, 1, 10)
    assert torch.equal(state, torch.get_rng_state())


def test_permutations_are_whole_and_differ_by_seed_and_epoch():
    orders = [permutation(seed, epoch, 1000) for seed in (0, 1) for epoch in (0, 1, 2**32)]
    for order in orders:
        np.testing.assert_array_equal(np.sort(order), np.arange(1000))
    # Two random permutations agree at one place on average.
    assert all((a == b).sum() < 8 for i, a in enumerate(orders) for b in orders[:i])
    assert (orders[0] == np.arange(1000)).sum() < 8


def test_permutations_put_every_element_everywhere():
    places = np.array([np.flatnonzero(permutation(3, epoch, 10) == 4)[0] for epoch in range(2000)])
    counts = np.bincount(places, minlength=10)
    assert np.abs(counts - 200).max() < 5 * (2000 * 0.1 * 0.9) ** 0.5
