import numpy as np

from detection3d.data.synthetic.generate import context_name
from detection3d.types.segment_names import synthetic_name, synthetic_segments

REAL = (  # made up, in the form of Waymo's names
    "10017090168044687777_6380_000_6400_000",
    "1005081002024129653_5313_150_5333_150",
    "272435602399417322_2884_130_2904_130",
)
OLD = ("00424300532217263747_3747_000_3767_000", "00783410410106283829_3829_000_3849_000")


def test_what_the_generator_names_is_synthetic():
    names = [context_name(seed) for seed in range(50)]
    assert synthetic_segments(names) == 50
    assert synthetic_segments(names[:1]) == 1
    assert synthetic_segments([*names[:2], *REAL]) == 2


def test_real_names_are_not():
    assert synthetic_segments(REAL) == 0
    assert synthetic_segments([]) == 0
    assert synthetic_segments(["segment", "0b86f508-5df9-4a46-bc59-5b9536dbde9f"]) == 0
    rng = np.random.default_rng(0)
    starts = rng.integers(0, 8000, 200)
    numbers = rng.integers(10**18, 9 * 10**18, 200)
    assert synthetic_segments([f"{n:020d}_{s}_000_{s + 20}_000" for n, s in zip(numbers, starts, strict=True)]) == 0


def test_segments_from_before_the_mark_are_told_by_their_number_where_all_agree():
    assert synthetic_segments(OLD) == 2
    assert synthetic_segments(OLD[:1]) == 0, "one alone may be chance"
    assert synthetic_segments([*OLD, REAL[0]]) == 0
    assert synthetic_segments([*OLD, synthetic_name(7)]) == 3
