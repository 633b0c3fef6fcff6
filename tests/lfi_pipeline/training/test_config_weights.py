"""Weights of terms: how they are written, and how they move over a run."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lfi_pipeline.core.errors import ConfigError, UnknownNameError
from lfi_pipeline.training.config import WEIGHT_SCHEDULES, Weight

WEIGHTS = st.builds(
    Weight,
    st.floats(min_value=0, allow_nan=False, allow_infinity=False),
    st.sampled_from(WEIGHT_SCHEDULES),
) | st.builds(
    Weight, st.integers(0, 10**6).map(lambda n: n / 1000), st.sampled_from(WEIGHT_SCHEDULES), relative=st.just(True)
)


@given(weight=WEIGHTS)
@settings(max_examples=60, deadline=None)
def test_what_is_written_is_read(weight: Weight) -> None:
    assert Weight.parse(str(weight)) == weight


def test_forms() -> None:
    assert Weight.parse("0.1") == Weight.parse(0.1) == Weight(0.1, "constant")
    assert Weight.parse(1) == Weight(1.0)
    assert Weight.parse("3e-1:cosine") == Weight(0.3, "cosine")
    assert Weight.parse("auto") == Weight.parse("50%") == Weight(0.5, relative=True)
    assert Weight.parse("25%:linear") == Weight(0.25, "linear", relative=True)
    assert Weight.parse(str(Weight(0.3, relative=True))) == Weight(0.3, relative=True)


@pytest.mark.parametrize("text", ["", "x", "%", "-1%", "auto%", "lfi=0.1", ":cosine", "-0.1", "nan", "inf", "true"])
def test_what_is_no_weight(text: str) -> None:
    with pytest.raises(ConfigError):
        Weight.parse(text)


@pytest.mark.parametrize("text", ["0.1:", "0.1:cosin", "0.1:cosine:linear"])
def test_what_is_no_schedule(text: str) -> None:
    with pytest.raises(UnknownNameError, match="constant, cosine, linear"):
        Weight.parse(text)


@pytest.mark.parametrize(
    ("schedule", "quarter", "half", "end"),
    [("constant", 2.0, 2.0, 2.0), ("linear", 1.5, 1.0, 0.0), ("cosine", 1 + math.sqrt(0.5), 1.0, 0.0)],
)
def test_values_over_a_run(schedule: str, quarter: float, half: float, end: float) -> None:
    weight = Weight(2.0, schedule)
    assert [weight.at(p) for p in (0.0, 0.25, 0.5, 1.0)] == pytest.approx([2.0, quarter, half, end], abs=1e-12)
