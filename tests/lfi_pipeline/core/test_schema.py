"""Dataclasses as plain JSON and back, and fields of JSON that somebody else wrote."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lfi_pipeline.core.errors import ConfigError, RunError
from lfi_pipeline.core.schema import (
    Fields,
    check_types,
    from_plain,
    plain_differences,
    plain_short,
    read_text,
    to_plain,
)


@dataclass(frozen=True)
class Part:
    """A record in a record."""

    mode: Literal["fast", "slow"]
    sides: tuple[int, float]


@dataclass(frozen=True)
class Whole:
    """A record of every kind of field."""

    name: str
    share: float
    on: bool
    parts: tuple[Part, ...]


PLAIN: dict[str, Any] = {"name": "a", "share": 0.5, "on": True, "parts": [{"mode": "fast", "sides": [1, 2.5]}]}


@settings(max_examples=25)
@given(
    st.builds(
        Whole,
        name=st.text(),
        share=st.floats(allow_nan=False) | st.integers(-1000, 1000),
        on=st.booleans(),
        parts=st.lists(
            st.builds(Part, mode=st.sampled_from(["fast", "slow"]), sides=st.tuples(st.integers(), st.floats(0, 1)))
        ).map(tuple),
    )
)
def test_a_record_comes_back_from_its_json(record: Whole) -> None:
    check_types(record)
    plain = json.loads(json.dumps(to_plain(record, Whole)))
    assert isinstance(plain["share"], float)
    assert from_plain(Whole, plain) == record


def test_plain_is_what_json_has() -> None:
    record = Whole(name="a", share=0.5, on=True, parts=(Part("fast", (1, 2.5)),))
    assert to_plain(record, Whole) == PLAIN
    assert from_plain(Whole, PLAIN) == record


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"share": "much"}, r"top\.share must be float, got 'much'\."),
        ({"share": True}, r"top\.share must be float, got True\."),
        ({"on": 1}, r"top\.on must be bool, got 1\."),
        ({"parts": {}}, r"top\.parts must be a list, got \{\}\."),
        ({"parts": [3]}, r"top\.parts\[0\] must be an object, got 3\."),
        ({"parts": [{"mode": "fast", "sides": [1]}]}, r"top\.parts\[0\]\.sides must have 2 items, got 1\."),
        ({"parts": [{"mode": "fast", "sides": [1.5, 2]}]}, r"top\.parts\[0\]\.sides\[0\] must be int, got 1\.5\."),
        ({"parts": [{"mode": "odd", "sides": [1, 2]}]}, r"parts\[0\]\.mode must be one of 'fast', 'slow', got 'odd'\."),
        ({"parts": [{"mode": "fast"}]}, r"missing field top\.parts\[0\]\.sides\."),
        ({"extra": 1}, r"unknown field top\.extra\."),
    ],
)
def test_a_value_that_does_not_fit_is_named_by_its_way(change: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=f"{told}$"):
        from_plain(Whole, PLAIN | change, "top")


@pytest.mark.parametrize(
    ("record", "told"),
    [
        (Part("odd", (1, 2.0)), r"Part\.mode must be one of 'fast', 'slow', got 'odd'\."),  # type: ignore[arg-type]
        (Part("fast", [1, 2.0]), r"Part\.sides must be a tuple, got list\."),  # type: ignore[arg-type]
        (Part("fast", (1, 2.0, 3)), r"Part\.sides must have 2 items, got 3\."),  # type: ignore[arg-type]
        (Part("fast", (True, 2.0)), r"Part\.sides\[0\] must be int, got True\."),
        (Whole("a", 1, False, (3,)), r"Whole\.parts\[0\] must be Part, got 3\."),  # type: ignore[arg-type]
    ],
)
def test_types_of_an_instance_are_checked(record: object, told: str) -> None:
    with pytest.raises(ConfigError, match=f"^{told}$"):
        check_types(record)


def test_differences_name_the_way_and_stop_after_four_items() -> None:
    ours = PLAIN | {"only": 1, "runs": list(range(7))}
    theirs = PLAIN | {"parts": [{"mode": "slow", "sides": [1, 2.5]}], "runs": [9] * 7}
    assert plain_differences(ours, ours) == []
    assert plain_differences(ours, theirs) == [
        "only: 1 != None",
        "parts[0].mode: 'fast' != 'slow'",
        *(f"runs[{i}]: {i} != 9" for i in range(4)),
        "runs: and 3 more items differ",
    ]
    assert plain_differences([0] * 4, [9] * 4, "runs") == [f"runs[{i}]: 0 != 9" for i in range(4)]
    assert plain_differences([0] * 5, [9] * 5, "runs")[4:] == ["runs: and 1 more items differ"]
    assert plain_differences([1, 2], [1], "runs") == ["runs: [1, 2] != [1]"]
    assert plain_short(list(range(9))) == "9 items"
    assert len(plain_short("x" * 500)) == 120


FIELDS = Fields.parse(
    '{"text": "a", "null": null, "count": 3, "minus": -1, "yes": true, "rate": 0.25, "two": 2, "nan": NaN,'
    ' "list": ["a", "b"], "mixed": ["a", 1], "rows": [[true, null], [false, true]],'
    ' "inner": {"deep": {"count": "x"}, "many": [{}]}, "many": [{"count": 1}, {"count": -1}]}',
    "metrics.json",
)


def test_fields_of_the_right_type_are_given() -> None:
    assert (FIELDS.text("text"), FIELDS.text_or("null", "b"), FIELDS.text_or("absent", "c")) == ("a", "b", "c")
    assert (FIELDS.integer("count"), FIELDS.number("count"), FIELDS.share("rate")) == (3, 3.0, 0.25)
    assert isinstance(FIELDS.number("count"), float)
    assert math.isnan(FIELDS.number("nan"))
    assert (FIELDS.number_or_none("null"), FIELDS.share_or_none("absent"), FIELDS.child_or_none("null")) == (None,) * 3
    assert FIELDS.texts("list") == ("a", "b")
    assert FIELDS.verdict_rows("rows", 2) == ((True, None), (False, True))
    assert FIELDS.verdict_rows("absent", 2) == ()
    assert [each.prefix for each in FIELDS.children("many")] == ["many[0].", "many[1]."]
    assert FIELDS.child("inner").children("many")[0].prefix == "inner.many[0]."


@pytest.mark.parametrize(
    ("ask", "told"),
    [
        (lambda: FIELDS.text("count"), "'count' must be a string, got 3."),
        (lambda: FIELDS.text("absent"), "'absent' must be a string, got nothing."),
        (lambda: FIELDS.integer("minus"), "'minus' must be a whole number of at least 0, got -1."),
        (lambda: FIELDS.integer("yes"), "'yes' must be a whole number of at least 0, got True."),
        (lambda: FIELDS.number("yes"), "'yes' must be a number, got True."),
        (lambda: FIELDS.share("two"), "'two' must be a number in [0, 1], got 2."),
        (lambda: FIELDS.share("nan"), "'nan' must be a number in [0, 1], got nan."),
        (lambda: FIELDS.texts("mixed"), "'mixed' must be a list of strings, got ['a', 1]."),
        (lambda: FIELDS.children("list"), "'list' must be a list of objects, got ['a', 'b']."),
        (
            lambda: FIELDS.verdicts("list", 2),
            "'list' must be true, false or null for each of 2 words, got ['a', 'b'].",
        ),
        (
            lambda: FIELDS.child("inner").child("deep").integer("count"),
            "'inner.deep.count' must be a whole number of at least 0, got 'x'.",
        ),
        (
            lambda: FIELDS.children("many")[1].integer("count"),
            "'many[1].count' must be a whole number of at least 0, got -1.",
        ),
    ],
)
def test_a_wrong_field_is_named_with_its_file_and_way(ask: Callable[[], object], told: str) -> None:
    with pytest.raises(RunError) as raised:
        ask()
    assert str(raised.value) == f"metrics.json: field {told}"


def test_a_file_that_is_no_object_or_no_text_is_named(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_bytes(b"[1]")
    with pytest.raises(RunError, match=r"results\.json must hold a JSON object, got list"):
        Fields.read(path)
    path.write_bytes(b'{"a": "\xff"}')
    with pytest.raises(RunError, match=r"results\.json must be readable UTF-8"):
        read_text(path)
    path.write_text('{"a": "é"}', encoding="utf-8")
    assert Fields.read(path).text("a") == "é"


def test_an_integer_that_no_float_holds_is_one_error() -> None:
    huge = 10**400
    with pytest.raises(RunError, match=r"a number that a float can hold"):
        Fields.parse(json.dumps({"a": huge}), "metrics.jsonl").number("a")
