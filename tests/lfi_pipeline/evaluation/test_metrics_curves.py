"""Where a curve reaches a score, and what it is at a step."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lfi_pipeline.evaluation.metrics import score_at, steps_to_reach

rising = st.lists(st.floats(0.01, 1), min_size=2, max_size=12).map(
    lambda gains: [(10.0 * (i + 1), sum(gains[: i + 1])) for i in range(len(gains))]
)


def test_the_crossing_is_linear_between_evaluations() -> None:
    assert steps_to_reach([(100, 0.1), (200, 0.3), (300, 0.2)], 0.2) == pytest.approx(150)
    assert steps_to_reach([(100, 0.1), (200, 0.3)], 0.4) is None
    assert steps_to_reach([(100, 0.5)], 0.4) == 100
    assert steps_to_reach([], 0.1) is None
    assert steps_to_reach([(1, math.nan), (2, 0.5)], 0.4) == 2


@given(rising, st.floats(0, 1))
def test_the_crossing_is_where_the_line_has_the_score(curve: list[tuple[float, float]], share: float) -> None:
    score = curve[0][1] + share * (curve[-1][1] - curve[0][1])
    step = steps_to_reach(curve, min(score, curve[-1][1]))
    assert step is not None
    assert curve[0][0] <= step <= curve[-1][0]
    lower = steps_to_reach(curve, score * 0.9)
    assert lower is not None
    assert lower <= step + 1e-9


@given(rising, st.floats(0, 1))
def test_the_score_where_a_rising_curve_reaches_it_is_that_score(
    curve: list[tuple[float, float]], share: float
) -> None:
    score = min(curve[0][1] + share * (curve[-1][1] - curve[0][1]), curve[-1][1])
    step = steps_to_reach(curve, score)
    assert step is not None
    assert score_at(curve, step) == pytest.approx(score)


def test_nothing_is_known_before_the_first_evaluation_and_after_the_last() -> None:
    curve = [(100.0, 0.1), (200.0, 0.3)]
    found = [score_at(curve, step) for step in (99, 100, 150, 200, 201)]
    assert found == [None, *map(pytest.approx, (0.1, 0.2, 0.3)), None]
    assert [score_at(curve[:1], step) for step in (99, 100)] == [None, 0.1]
    assert score_at([], 1) is None
