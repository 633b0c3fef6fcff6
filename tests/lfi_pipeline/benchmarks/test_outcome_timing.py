"""Interleaved timings: whose turn it is, and what counts."""

from __future__ import annotations

import time

import pytest

from lfi_pipeline.benchmarks.outcome import interleaved, median_ratio, rounds_of, seconds_of
from lfi_pipeline.core.errors import ConfigError


def test_cases_take_turns_and_the_first_one_moves_on() -> None:
    ran: list[str] = []
    cases = {name: (lambda name=name: ran.append(name)) for name in "abc"}  # type: ignore[misc]
    seconds = interleaved(cases, 3, name="test", warm_up=1)
    assert "".join(ran) == "abcbcacababc"
    assert list(seconds) == ["a", "b", "c"]


def test_the_median_counts_and_the_warm_up_does_not() -> None:
    waits = iter([0.2, 0.0, 0.2, 0.0])
    assert interleaved({"a": lambda: time.sleep(next(waits))}, 3, name="test", warm_up=1)["a"] < 0.1


def test_no_round_is_refused() -> None:
    with pytest.raises(ConfigError, match="rounds must be 1 or more, got 0"):
        interleaved({"a": lambda: None}, 0, name="test")
    assert seconds_of(lambda: time.sleep(0.01)) >= 0.01


def test_a_ratio_is_taken_round_by_round() -> None:
    assert median_ratio([2.0, 30.0, 5.0], [1.0, 10.0, 1.0]) == 3.0  # the machine was ten times slower in one round
    rounds = rounds_of({"a": lambda: None, "b": lambda: None}, 3, name="test", warm_up=2)
    assert [len(seconds) for seconds in rounds.values()] == [3, 3]
