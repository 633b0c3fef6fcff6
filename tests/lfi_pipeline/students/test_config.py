"""Settings of student and queries: names, bounds, and what heads a width allows."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lfi_pipeline.core.errors import ConfigError, UnknownNameError
from lfi_pipeline.core.options import build, flatten
from lfi_pipeline.students.config import QueryConfig, StudentConfig


@given(width=st.integers(1, 64), heads=st.integers(1, 16))
def test_a_width_of_queries_is_split_evenly_over_heads_or_refused(width: int, heads: int) -> None:
    if width in range(0, width + 1, heads):
        assert QueryConfig(width=width, heads=heads).heads == heads
    else:
        with pytest.raises(ConfigError, match=f"width must be divisible by heads, got {width} and {heads}"):
            QueryConfig(width=width, heads=heads)


def test_queries_are_built_by_the_names_of_their_options() -> None:
    given_options = {"query_width": 96, "query_heads": 3, "readout": "text"}
    found = build(QueryConfig, given_options)
    assert found == QueryConfig(width=96, heads=3, readout="text")
    assert flatten(found) == given_options | {"state": "persistent", "query_scale": "auto"}
    with pytest.raises(UnknownNameError, match=r"setting 'query_widths'\. Did you mean 'query_width'"):
        build(QueryConfig, {"query_widths": 96})


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"state": "resett"}, r"state 'resett'\. Did you mean 'reset'"),
        ({"readout": "mean"}, r"readout 'mean'.*Choices: auto, class, text"),
        ({"scale": "1"}, r"scale '1'.*Choices: 1/d, 1/sqrt\(d\), auto"),
        ({"heads": 0}, "heads must be 1 or more, got 0"),  # before the width is divided by it
        ({"width": 10, "heads": 4}, "width must be divisible by heads, got 10 and 4"),
    ],
)
def test_queries_that_cannot_be_are_refused(values: dict[str, object], told: str) -> None:
    with pytest.raises((ConfigError, UnknownNameError), match=told):
        QueryConfig(**values)  # type: ignore[arg-type]


def test_a_student_comes_back_from_its_plain_values() -> None:
    found = build(
        StudentConfig, {"student": "resnet18", "student_arg": {"depth": 3, "act": ["gelu"]}, "taps": [1, 3, -1]}
    )
    assert (found.name, found.taps, found.image_size) == ("resnet18", (1, 3, -1), None)
    assert build(StudentConfig, flatten(found)) == found
    assert StudentConfig().kwargs == {}


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"image_size": 0}, "image_size must be 1 or more, got 0"),
        ({"taps": ["1"]}, "taps must be a list of whole numbers"),
        ({"pretrained": 1}, "pretrained must be true or false, got 1"),
        ({"student_arg": {"depth": None}}, "student_arg must be a table of plain values, such as KEY=VALUE"),
    ],
)
def test_a_student_of_other_types_is_refused(values: dict[str, object], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        build(StudentConfig, values)
