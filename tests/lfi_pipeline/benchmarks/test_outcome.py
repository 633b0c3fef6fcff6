"""Outcomes: limits, tables, and the refusal to time what is wrong."""

from __future__ import annotations

import pytest

from lfi_pipeline.benchmarks.outcome import Asked, Measurement, Outcome, format_number, require
from lfi_pipeline.core.errors import BenchmarkError


def of(case: str, metric: str, value: float, unit: str = "s") -> Measurement:
    return Measurement(case=case, shape="1", metric=metric, value=value, unit=unit)


@pytest.mark.parametrize(
    ("asked", "met", "limit"),
    [
        (Asked(what="x", value=0.9, least=0.9), True, ">= 0.9"),
        (Asked(what="x", value=0.89, least=0.9), False, ">= 0.9"),
        (Asked(what="x", value=1.1, most=1.1), True, "<= 1.1"),
        (Asked(what="x", value=1.2, most=1.1), False, "<= 1.1"),
        (Asked(what="x", value=2, least=1, most=3), True, ">= 1 and <= 3"),
        (Asked(what="x", value=float("nan"), most=1), False, "<= 1"),
    ],
)
def test_a_limit_holds_or_does_not(asked: Asked, met: bool, limit: str) -> None:
    assert asked.met is met
    assert asked.limit == limit


def test_a_table_has_a_row_a_case_and_a_column_a_metric() -> None:
    outcome = Outcome(
        benchmark="b", checked="all", measurements=(of("a", "t", 1), of("a", "n", 2000, ""), of("c", "t", 0.25))
    )
    assert outcome.table() == (["case", "t, s", "n"], [["a", "1", "2,000"], ["c", "0.25", ""]])
    assert format_number(12345.6) == "12,346"


def test_a_table_by_shape_has_a_row_for_each() -> None:
    rows = tuple(Measurement(case="a", shape=shape, metric="t", value=i, unit="s") for i, shape in enumerate("xy"))
    outcome = Outcome(benchmark="b", checked="all", by_shape=True, measurements=rows)
    assert outcome.table() == (["case", "shape", "t, s"], [["a", "x", "0"], ["a", "y", "1"]])


def test_a_topic_has_a_table_of_its_own() -> None:
    rows = (of("a", "t", 1), of("a", "n", 2, ""), of("c", "t", 3), of("c", "u", 4))
    outcome = Outcome(benchmark="b", checked="all", measurements=rows)
    assert outcome.tables() == [("", *outcome.table())]
    outcome = Outcome(benchmark="b", checked="all", measurements=rows, topics={"x": "z", "n": "y", "t": "w", "u": "w"})
    assert outcome.tables() == [
        ("y", ["case", "n"], [["a", "2"]]),
        ("w", ["case", "t, s", "u, s"], [["a", "1", ""], ["c", "3", "4"]]),
    ]


def test_an_outcome_as_plain_values_says_whether_its_limits_hold() -> None:
    asked = Asked(what="x", value=2, most=1)
    plain = Outcome(benchmark="b", checked="c", measurements=(of("a", "t", 1),), asked=(asked,)).to_plain()
    assert plain["asked"] == [{"what": "x", "value": 2, "least": None, "most": 1, "met": False}]
    assert plain["measurements"] == [{"case": "a", "shape": "1", "metric": "t", "value": 1, "unit": "s"}]


def test_what_is_wrong_is_not_timed() -> None:
    require(True, "never said")
    with pytest.raises(BenchmarkError, match=r"must sum to 1\. Nothing was timed"):
        require(False, "Rows must sum to 1.")
