"""Statistics of a study, against published examples and scipy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from lfi_pipeline.study.score import (
    crossed_bootstrap,
    krippendorff_alpha,
    majority,
    odds,
    sign_test,
    wilson,
)


def _units(*raters: str) -> list[list[str]]:
    return [[value for value in column if value != "."] for column in zip(*raters, strict=True)]


def test_krippendorffs_own_examples() -> None:
    """Sections A, B and C of "Computing Krippendorff's Alpha-Reliability" (2011)."""
    assert krippendorff_alpha(_units("0100000010", "1110010000")) == pytest.approx(0.095, abs=5e-4)
    assert krippendorff_alpha(_units("aabbdcccedda", "babbbcccedDd".lower())) == pytest.approx(0.692, abs=5e-4)
    four = ("123321412...", "1233224125.3", ".3332342251.", "12332441251.")
    assert krippendorff_alpha(_units(*four)) == pytest.approx(0.743, abs=5e-4)


def test_alpha_at_its_ends() -> None:
    assert krippendorff_alpha(_units("ababab", "ababab")) == 1
    assert krippendorff_alpha(_units("ab" * 500, "ba" * 500)) == pytest.approx(-1, abs=0.01)
    assert krippendorff_alpha(_units("abab")) is None  # one rater
    assert krippendorff_alpha(_units("aaaa", "aaaa")) is None  # nothing varies
    assert krippendorff_alpha([]) is None
    assert krippendorff_alpha([["a"], ["a", "a"], ["b", "b"]]) == 1  # an item with one answer says nothing


def test_alpha_of_chance_is_near_zero() -> None:
    values = np.random.default_rng(0).integers(0, 3, (4000, 3))
    alpha = krippendorff_alpha(values.tolist())
    assert alpha is not None
    assert abs(alpha) < 0.03


def test_wilson_against_newcombes_table() -> None:
    """Newcombe, "Two-sided confidence intervals for the single proportion", 1998, table I, method 3."""
    for successes, trials, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611)):
        assert wilson(successes, trials) == pytest.approx((low, high), abs=5e-5)
    assert wilson(0, 0) is None


def test_sign_test() -> None:
    assert sign_test(8, 2) == pytest.approx(2 * sum(math.comb(10, k) for k in (0, 1, 2)) / 2**10)
    assert sign_test(2, 8) == sign_test(8, 2)
    assert sign_test(5, 5) == 1
    assert sign_test(0, 0) is None


def test_odds() -> None:
    assert odds(0.75) == 3
    assert odds(0) == 0
    assert odds(1.0) is None


def test_bootstrap_of_one_rater_is_the_plain_one() -> None:
    answers = (np.random.default_rng(1).random(200) < 0.7).astype(float)
    plain = stats.bootstrap((answers,), np.mean, method="percentile", rng=np.random.default_rng(2)).confidence_interval
    assert crossed_bootstrap(answers[None]) == pytest.approx((plain.low, plain.high), abs=0.01)


def test_bootstrap_is_not_fooled_by_many_answers_of_few() -> None:
    """Ten raters who answer alike know as much as one; two raters of opposite taste say nothing of a third."""
    answers = (np.random.default_rng(1).random((1, 100)) < 0.7).astype(float)
    alone, tenfold = crossed_bootstrap(answers), crossed_bootstrap(np.repeat(answers, 10, axis=0))
    assert alone is not None
    assert tenfold == pytest.approx(alone, abs=0.02)
    independent = wilson(int(answers.sum()) * 10, 1000)
    assert independent is not None
    assert independent[1] - independent[0] < 0.5 * (alone[1] - alone[0])
    opposite = np.stack([np.ones(100), np.zeros(100)])
    assert crossed_bootstrap(opposite) == (0, 1)


def test_bootstrap_without_answers() -> None:
    assert crossed_bootstrap(np.full((2, 3), np.nan)) is None
    assert crossed_bootstrap(np.array([[1.0, np.nan], [np.nan, np.nan]])) == (1, 1)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.sampled_from([0.0, 1.0, math.nan]), min_size=4, max_size=4), min_size=1, max_size=4))
def test_bootstrap_mirrors_when_the_sides_are_swapped(rows: list[list[float]]) -> None:
    answers = np.array(rows)
    straight, swapped = (crossed_bootstrap(a, replicates=200) for a in (answers, 1 - answers))
    if straight is None:
        assert swapped is None
    else:
        assert swapped == pytest.approx((1 - straight[1], 1 - straight[0]))


def test_majority() -> None:
    assert majority({"a": 3, "b": 1}, "a", "b") == "a"
    assert majority({"a": 1, "b": 3, "tie": 9}, "a", "b") == "b"
    assert majority({"a": 2, "b": 2}, "a", "b") is None
    assert majority({}, "a", "b") is None
