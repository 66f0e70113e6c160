"""Statistics of paired runs, against printed tables and worked examples of the literature."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from detection3d.evaluation.paired import compare_paired, critical_t, holm, t_interval, two_sided_p

# Additional hours of sleep by two drugs on the same ten patients (Student, "The probable error of a mean", 1908).
SLEEP = (
    np.array([0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]),
    np.array([1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]),
)
numbers = st.lists(st.floats(-100, 100, allow_subnormal=False), min_size=2, max_size=12)


@pytest.mark.parametrize(
    ("level", "degrees", "expected"),
    [
        (0.05, 1, 12.7062),
        (0.05, 2, 4.30265),
        (0.05, 3, 3.18245),
        (0.05, 7, 2.36462),
        (0.05, 10, 2.22814),
        (0.05, 30, 2.04227),
        (0.05, 120, 1.97993),
        (0.01, 1, 63.6567),
        (0.01, 7, 3.49948),
        (0.01, 10, 3.16927),
        (0.2, 5, 1.47588),
        (0.001, 4, 8.61030),
    ],
)
def test_critical_values_are_those_of_the_printed_table(level, degrees, expected):
    assert critical_t(level, degrees) == pytest.approx(expected, rel=5e-6)


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 7, 8, 41])
def test_the_tail_is_the_integral_of_the_density(degrees):
    # the density integrated by the midpoint rule, as an oracle that shares nothing with the finite sums
    for t in (0.0, 0.3, 1.0, 2.5, 6.0):
        edges = np.linspace(0, t, 200_001)
        middle = (edges[1:] + edges[:-1]) / 2
        factor = math.exp(math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2)) / math.sqrt(degrees * math.pi)
        inside = 2 * factor * ((1 + middle**2 / degrees) ** (-(degrees + 1) / 2)).sum() * t / 200_000
        assert two_sided_p(t, degrees) == pytest.approx(1 - inside, abs=1e-9)


@given(st.floats(1e-6, 0.999), st.integers(1, 60))
def test_tail_and_critical_value_are_inverse(level, degrees):
    assert two_sided_p(critical_t(level, degrees), degrees) == pytest.approx(level, rel=1e-8)


def test_student_s_sleep_data():
    differences = SLEEP[0] - SLEEP[1]
    result = compare_paired({"drug": differences.tolist()})["drug"]
    assert result.mean == pytest.approx(-1.58, abs=1e-12)
    assert result.p_value == pytest.approx(0.002833, abs=5e-7)
    assert result.interval == pytest.approx((-2.4598858, -0.7001142), abs=5e-8)
    assert result.corrected_interval == result.interval, "a family of one needs no correction"
    assert result.verdict == "lower"


def test_holm_s_worked_example():
    # the example of en.wikipedia.org/wiki/Holm-Bonferroni_method: at 5 %, the first and the last are rejected
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []
    assert holm([0.9, 0.8]) == [1.0, 1.0]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=10))
def test_holm_s_adjusted_values_reject_what_the_step_down_procedure_rejects(p_values):
    rejected = set()
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda index: p_values[index])):
        if p_values[index] * (len(p_values) - rank) > 0.05:
            break
        rejected.add(index)
    assert {index for index, value in enumerate(holm(p_values)) if value <= 0.05} == rejected


@given(st.lists(numbers, min_size=1, max_size=6))
def test_a_verdict_and_its_corrected_interval_agree(samples):
    results = compare_paired({str(index): values for index, values in enumerate(samples)})
    for values, result in zip(samples, results.values(), strict=True):
        assert result.count == len(values)
        if result.corrected_interval is None:
            assert result.verdict == "no difference shown"
            continue
        low, high = result.corrected_interval
        assert (result.verdict == "higher") == (low > 0)
        assert (result.verdict == "lower") == (high < 0)
        assert result.interval is not None
        assert low <= result.interval[0] + 1e-9
        assert high >= result.interval[1] - 1e-9


def test_what_one_interval_shows_alone_may_not_hold_among_many():
    shown = [1.0, 2.0, 0.5, 1.5, 0.2, 2.6]
    noise = [0.5, -0.4, 0.3, -0.6, 0.1, 0.2]
    alone = compare_paired({"shown": shown})["shown"]
    assert 0.005 < alone.p_value < 0.05
    among = compare_paired({"shown": shown, **{str(index): noise for index in range(9)}})["shown"]
    assert alone.verdict == "higher"
    assert among.verdict == "no difference shown"
    assert among.interval == alone.interval
    assert among.interval is not None
    assert among.interval[0] > 0 > among.corrected_interval[0]


def test_after_a_step_that_rejects_nothing_no_later_interval_leaves_out_zero():
    # alone both would pass; the first fails at 5 % / 2, so the second may not pass at 5 %
    shown = [1.0, 2.0, 0.3, 1.5, -0.1, 2.2]
    results = compare_paired({"first": shown, "second": [value + 0.01 for value in shown]})
    assert all(0.025 < result.p_value < 0.05 for result in results.values())
    for result in results.values():
        assert result.verdict == "no difference shown"
        assert result.corrected_interval is not None
        assert result.corrected_interval[0] < 0 < result.corrected_interval[1]


def test_methods_without_runs_still_count_in_the_family():
    shown = [1.0, 2.0, 0.5, 1.5, 0.2, 2.6]
    with_failed = compare_paired({"shown": shown, "failed": [], "one run": [3.0]})
    assert with_failed["shown"].adjusted_p == pytest.approx(3 * compare_paired({"shown": shown})["shown"].p_value)
    assert with_failed["failed"].mean is None
    assert (with_failed["one run"].mean, with_failed["one run"].interval) == (3.0, None)
    assert {result.verdict for name, result in with_failed.items() if name != "shown"} == {"no difference shown"}


@pytest.mark.parametrize("value", [0.0, 0.25, -3.1])
def test_equal_differences_have_no_spread_to_judge_by(value):
    result = compare_paired({"same": [value] * 5})["same"]
    assert (result.mean, result.interval, result.p_value) == (pytest.approx(value), None, 1.0)
    assert result.verdict == "no difference shown"


def test_a_nominal_family_error_of_five_percent_is_kept():
    # 2,000 families of 4 methods and 8 seeds without any difference: 5 % +- 4 standard errors of 0.49 %
    generator = np.random.default_rng(0)
    wrong = 0
    for _ in range(2000):
        family = generator.normal(size=(4, 8))
        results = compare_paired({str(index): values for index, values in enumerate(family.tolist())})
        wrong += any(result.verdict != "no difference shown" for result in results.values())
    assert wrong / 2000 < 0.05 + 4 * 0.0049
    assert wrong / 2000 > 0.02, "so careful that nothing would ever be shown"


def test_refusals():
    with pytest.raises(ValueError, match="each must be a finite number"):
        compare_paired({"a": [1.0, math.nan]})
    with pytest.raises(ValueError, match="0 degrees of freedom"):
        two_sided_p(1.0, 0)
    with pytest.raises(ValueError, match="level 1"):
        critical_t(1.0, 3)
    assert t_interval(np.array([1.0]), 0.05) is None
