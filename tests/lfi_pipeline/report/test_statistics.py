"""Intervals and tests against scipy's own and by hand, and properties of the curve functions."""

from __future__ import annotations

import math
from random import Random

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats

from lfi_pipeline.report.statistics import (
    difference,
    estimate,
    holm,
    mean_curve,
    thin,
)

values = st.lists(st.floats(-100, 100), min_size=2, max_size=8)


def test_three_seeds_by_hand() -> None:
    score = estimate([1.0, 2.0, 3.0])
    assert score is not None
    assert score.mean == 2
    assert score.half == pytest.approx(4.302653 / math.sqrt(3), abs=1e-5)


def test_one_value_has_no_interval_and_none_has_no_estimate() -> None:
    single = estimate([0.5])
    assert single is not None
    assert (single.half, single.low, single.high, single.sign) == (None, None, None, 0)
    assert estimate([]) is None


@given(values, st.floats(-50, 50))
def test_a_shift_moves_the_mean_and_not_the_width(sample: list[float], shift: float) -> None:
    before, after = estimate(sample), estimate([value + shift for value in sample])
    assert before is not None
    assert after is not None
    assert after.mean == pytest.approx(before.mean + shift, abs=1e-9)
    assert after.half == pytest.approx(before.half, abs=1e-6)


@given(values)
def test_the_interval_holds_the_mean_and_more_confidence_is_not_less_wide(sample: list[float]) -> None:
    score = estimate(sample)
    assert score is not None
    assert score.low is not None
    assert score.high is not None
    assert score.low <= score.mean <= score.high


def test_the_same_seeds_are_paired() -> None:
    gap = difference({0: 0.30, 1: 0.50, 2: 0.40}, {0: 0.20, 1: 0.40, 2: 0.30})
    assert gap is not None
    assert gap.mean == pytest.approx(0.1)
    assert gap.half == pytest.approx(0.0, abs=1e-12)
    assert gap.sign == 1


@given(values, values)
def test_other_seeds_are_compared_as_scipy_does(first: list[float], second: list[float]) -> None:
    assume(np.ptp(first) > 1e-3)
    assume(np.ptp(second) > 1e-3)
    gap = difference(dict(enumerate(first)), dict(enumerate(second, start=1)))
    expected = stats.ttest_ind(first, second, equal_var=False)
    low, high = expected.confidence_interval()
    assert gap is not None
    assert not gap.paired
    assert (gap.low, gap.high) == (pytest.approx(low, abs=1e-6), pytest.approx(high, abs=1e-6))
    assert gap.p == pytest.approx(expected.pvalue, abs=1e-9)


@given(st.lists(st.tuples(st.floats(-100, 100), st.floats(-100, 100)), min_size=2, max_size=8), st.randoms())
def test_the_same_seeds_are_compared_as_scipy_does(pairs: list[tuple[float, float]], random: Random) -> None:
    first, second = zip(*pairs, strict=True)
    assume(np.ptp(np.subtract(first, second)) > 1e-3)
    shuffled = random.sample(range(len(pairs)), len(pairs))
    gap = difference(dict(enumerate(first)), {seed: second[seed] for seed in shuffled})
    expected = stats.ttest_rel(first, second)
    low, high = expected.confidence_interval()
    assert gap is not None
    assert gap.paired
    assert (gap.low, gap.high) == (pytest.approx(low, abs=1e-6), pytest.approx(high, abs=1e-6))
    assert gap.p == pytest.approx(expected.pvalue, abs=1e-9)


def test_values_that_do_not_vary() -> None:
    same = difference({0: 0.5, 1: 0.5}, {0: 0.5, 1: 0.5})
    apart = difference({0: 0.5, 1: 0.5}, {1: 0.25, 2: 0.25})
    assert same is not None
    assert apart is not None
    assert (same.half, same.p, same.sign) == (0, 1, 0)
    assert (apart.half, apart.p, apart.sign) == (0, 0, 1)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), max_size=12))
def test_holm_is_between_no_correction_and_bonferroni_and_keeps_the_order(p_values: list[float]) -> None:
    corrected = holm(p_values)
    for p, more in zip(p_values, corrected, strict=True):
        assert p <= more <= min(1.0, p * len(p_values)) or more == p
    ranked = sorted(zip(p_values, corrected, strict=True))
    assert [more for _, more in ranked] == sorted(corrected)


def test_a_single_seed_leaves_a_difference_without_interval() -> None:
    gap = difference({0: 0.3}, {0: 0.2, 1: 0.4})
    assert gap is not None
    assert (gap.half, gap.p) == (None, None)
    assert difference({}, {0: 1.0}) is None


def test_a_mean_curve_has_only_the_steps_that_all_have() -> None:
    assert mean_curve([[(1, 0.0), (2, 1.0), (3, 9.0)], [(1, 2.0), (2, 3.0)]]) == [
        (1, 1.0, 0.0, 2.0),
        (2, 2.0, 1.0, 3.0),
    ]
    assert mean_curve([]) == []


@given(st.lists(st.floats(0, 1), max_size=200), st.integers(1, 50))
def test_thinning_keeps_bounds_and_order(ys: list[float], count: int) -> None:
    curve = [(float(i), y) for i, y in enumerate(ys)]
    thinned = thin(curve, count)
    assert len(thinned) <= max(count, 0) or len(thinned) == len(curve)
    assert [step for step, _ in thinned] == sorted(step for step, _ in thinned)
    assert all(0 <= value <= 1 + 1e-12 for _, value in thinned)


def test_thinning_drops_what_is_not_finite() -> None:
    assert thin([(1, math.nan), (2, 0.5), (3, math.inf)], 10) == [(2, 0.5)]
