"""Intervals against published quantiles, and properties of the curve functions."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lfi_pipeline.report.statistics import (
    difference,
    estimate,
    mean_curve,
    t_coverage,
    t_quantile,
    thin,
)

values = st.lists(st.floats(-100, 100), min_size=2, max_size=8)


@pytest.mark.parametrize(
    ("degrees", "quantile"), [(1, 12.7062), (2, 4.3027), (3, 3.1824), (4, 2.7764), (9, 2.2622), (30, 2.0423)]
)
def test_quantiles_are_those_of_the_tables(degrees: int, quantile: float) -> None:
    assert t_quantile(degrees) == pytest.approx(quantile, abs=1e-4)


@given(st.integers(1, 40), st.floats(0.05, 0.99))
def test_the_quantile_inverts_the_coverage(degrees: int, coverage: float) -> None:
    assert t_coverage(t_quantile(degrees, coverage), degrees) == pytest.approx(coverage, abs=1e-9)


def test_impossible_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="degrees"):
        t_coverage(1.0, 0)
    with pytest.raises(ValueError, match="coverage"):
        t_quantile(2, 1.0)


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


def test_other_seeds_add_their_variances() -> None:
    gap = difference({0: 0.30, 1: 0.50}, {0: 0.20, 1: 0.40, 2: 0.30})
    assert gap is not None
    assert gap.half == pytest.approx(12.7062 * math.sqrt(0.02 / 2 + 0.01 / 3), abs=1e-4)
    assert gap.sign == 0


def test_a_single_seed_leaves_a_difference_without_interval() -> None:
    gap = difference({0: 0.3}, {0: 0.2, 1: 0.4})
    assert gap is not None
    assert gap.half is None
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
