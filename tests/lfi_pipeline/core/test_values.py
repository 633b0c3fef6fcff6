"""One value against its type, range and choices."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lfi_pipeline.core.errors import ConfigError, LFIError, UnknownNameError
from lfi_pipeline.core.options import Option
from lfi_pipeline.core.values import fitting, requirement
from lfi_pipeline.training.config import Weight


@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [
        (int, 3, 3),
        (float, 3, 3.0),
        (Path, "a/b", Path("a/b")),
        (tuple[str, ...], ["a"], ("a",)),
        (tuple[Path, ...], ["a", Path("b")], (Path("a"), Path("b"))),
        (tuple[float, float], [1, 2], (1.0, 2.0)),
        (int | tuple[int, ...] | None, [1, 2], (1, 2)),
        (int | None, None, None),
        (Mapping[str, Weight], {"lfi": "0.5:cosine", "x": 1}, {"lfi": Weight(0.5, "cosine"), "x": Weight(1.0)}),
        (Mapping[str, Any], {"a": [1, {"b": True}]}, {"a": [1, {"b": True}]}),
    ],
)
def test_plain_values_become_what_is_declared(kind: Any, value: Any, expected: Any) -> None:
    made = fitting("x", kind, value, Option())
    assert made == expected
    assert type(made) is type(expected)
    assert fitting("x", kind, made, Option()) == made


@pytest.mark.parametrize(
    ("kind", "value", "told"),
    [
        (int, "3", "x must be a whole number, got '3'"),
        (int, True, "x must be a whole number, got True"),
        (int, 2**128, "x must be a whole number"),
        (float, float("nan"), "x must be a finite number, got nan"),
        (bool, 1, "x must be true or false, got 1"),
        (str, ["a"], "x must be a text"),
        (Path, 3, "x must be a path"),
        (tuple[str, ...], "a", "x must be a list of texts, got 'a'"),
        (tuple[float, float], [1], r"x must be 2 numbers, got \[1\]"),
        (int | tuple[int, ...] | None, "a", "x must be a whole number or a list of whole numbers"),
        (Mapping[str, Any], {"a": None}, "x must be a table of plain values"),
        (Mapping[str, Any], {"a": {1, 2}}, "x must be a table of plain values"),
        (Mapping[str, Weight], {"lfi": "much"}, r"x: lfi: A weight must be auto"),
    ],
)
def test_wrong_types_are_told(kind: Any, value: Any, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        fitting("x", kind, value, Option())


@pytest.mark.parametrize(
    ("option", "value", "told"),
    [
        (Option(ge=1), 0, "x must be 1 or more, got 0"),
        (Option(gt=0), -1.5, "x must be positive and finite, got -1.5"),
        (Option(gt=0, lt=1), 1.0, "x must be between 0 and 1, both excluded, got 1.0"),
        (Option(ge=0, le=1), 2, "x must be from 0 to 1, got 2"),
        (Option(gt=0, le=1), 0, "x must be above 0 to 1, got 0"),
        (Option(ge=0, lt=5), 5, "x must be from 0 to below 5, got 5"),
        (Option(le=3), 4, "x must be at most 3, got 4"),
        (Option(lt=3), 4, "x must be less than 3, got 4"),
    ],
)
def test_ranges_are_told(option: Option, value: float, told: str) -> None:
    with pytest.raises(ConfigError, match=f"^{told}\\.$"):
        fitting("x", type(value), value, option)


def test_each_number_of_a_list_has_the_range_and_each_text_the_choices() -> None:
    with pytest.raises(ConfigError, match="x must be 0 or more, got 1, -1"):
        fitting("x", tuple[int, ...], [1, -1], Option(ge=0))
    with pytest.raises(UnknownNameError, match=r"Unknown view 'ful'\. Did you mean 'full'"):
        fitting("x", tuple[str, ...], ["full", "ful"], Option(choices=lambda: ("full", "hflip"), noun="view"))
    with pytest.raises(ConfigError, match="x must name at least one, got none"):
        fitting("x", tuple[str, ...], [], Option(at_least_one=True))


def test_a_long_value_is_not_repeated_in_full() -> None:
    with pytest.raises(ConfigError) as raised:
        fitting("x", int, "9" * 100_000, Option())
    assert len(str(raised.value)) < 400


ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.binary(max_size=2),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=3),
    max_leaves=6,
)


@given(
    value=ANY,
    kind=st.sampled_from(
        [
            int,
            float,
            bool,
            str,
            Path,
            tuple[int, ...],
            tuple[float, float],
            int | None,
            Mapping[str, Any],
            Mapping[str, Weight],
        ]
    ),
)
def test_whatever_a_file_says_is_fitting_or_a_user_error(value: Any, kind: Any) -> None:
    try:
        made = fitting("x", kind, value, Option(ge=0))
    except LFIError:
        return
    assert fitting("x", kind, made, Option(ge=0)) == made


def test_what_a_type_asks_is_said_in_words() -> None:
    assert requirement(int | None) == "a whole number"
    assert requirement(tuple[int | None, ...]) == "a list of whole numbers"
    assert requirement(Mapping[str, Any], "KEY=VALUE") == "a table of plain values, such as KEY=VALUE"
