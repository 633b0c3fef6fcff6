"""Dataclasses as plain JSON and back, and fields of JSON that somebody else wrote."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lfi_pipeline.core.errors import ConfigError, RunError
from lfi_pipeline.core.schema import (
    Count,
    Share,
    check_types,
    from_plain,
    plain_differences,
    plain_short,
    read_as,
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
    plain = json.loads(json.dumps(to_plain(record)))
    assert isinstance(plain["share"], float)
    assert from_plain(Whole, plain) == record


def test_plain_is_what_json_has() -> None:
    record = Whole(name="a", share=0.5, on=True, parts=(Part("fast", (1, 2.5)),))
    assert to_plain(record) == PLAIN
    assert from_plain(Whole, PLAIN) == record


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"share": "much"}, "'share' must be a number (float64), got 'much'."),
        ({"share": True}, "'share' must be a number (float64), got True."),
        ({"on": 1}, "'on' must be true or false, got 1."),
        ({"parts": {}}, "'parts' must be a list, got {}."),
        ({"parts": [3]}, "'parts[0]' must be an object, got 3."),
        ({"parts": [{"mode": "fast", "sides": [1]}]}, "'parts[0].sides' must be 2 values, got [1]."),
        ({"parts": [{"mode": "fast", "sides": [1.5, 2]}]}, "'parts[0].sides[0]' must be a whole number, got 1.5."),
        ({"parts": [{"mode": "odd", "sides": [1, 2]}]}, "'parts[0].mode' must be one of 'fast', 'slow', got 'odd'."),
        ({"parts": [{"mode": "fast"}]}, "'parts[0].sides' must be 2 values, got nothing."),
        ({"parts": [{"sides": [1, 2]}]}, "'parts[0].mode' must be one of 'fast', 'slow', got nothing."),
        ({"extra": None}, "'extra' must be left out (unknown field), got None."),
    ],
)
def test_a_value_that_does_not_fit_is_named_by_its_way(change: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError) as raised:
        from_plain(Whole, PLAIN | change)
    assert str(raised.value) == f"field {told}"


@pytest.mark.parametrize(
    ("record", "told"),
    [
        (Part("odd", (1, 2.0)), "Part: field 'mode' must be one of 'fast', 'slow', got 'odd'."),
        (
            Part("fast", [1, 2.0]),
            "Part: field 'sides' must be of tuples and dataclasses, not lists and dicts, got [1, 2.0].",
        ),
        (Part("fast", (1, 2.0, 3)), "Part: field 'sides' must be 2 values, got (1, 2.0, 3)."),
        (Part("fast", (True, 2.0)), "Part: field 'sides[0]' must be a whole number, got True."),
        (Whole("a", 1, False, (3,)), "Whole: field 'parts[0]' must be an object (Part), got 3."),
        (
            Whole("a", 1, False, ({"mode": "fast", "sides": (1, 2.0)},)),
            "Whole: field 'parts' must be of tuples and dataclasses, not lists and dicts, "
            "got ({'mode': 'fast', 'sides': (1, 2.0)},).",
        ),
    ],
)
def test_types_of_an_instance_are_checked(record: object, told: str) -> None:
    with pytest.raises(ConfigError) as raised:
        check_types(record)
    assert str(raised.value) == told


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


class Inner(msgspec.Struct, rename={"told": "said"}):
    """What lies in a file of somebody else."""

    many: tuple[Part, ...] = ()
    told: str | None = None
    count: Count = 0


class File(msgspec.Struct):
    """A file of somebody else."""

    name: str
    share: Share | None = None
    number: float | None = None
    inner: Inner | None = None
    shares: Mapping[str, Share | None] = {}
    marks: Annotated[tuple[bool | None, ...], msgspec.Meta(min_length=2, description="two marks")] = (None, None)


def test_what_somebody_else_wrote_is_read_as_declared() -> None:
    file = read_as(File, {"name": "a", "number": 3, "inner": {"said": "b"}, "other": 1, "share": None}, "x.json")
    assert (file.name, file.number, file.share, file.inner) == ("a", 3.0, None, Inner(told="b"))
    assert isinstance(file.number, float)
    assert math.isnan(read_as(float, math.nan, "x.json"))
    assert read_as(tuple[Part, ...], [{"mode": "fast", "sides": [1, 2]}], "x.json") == (Part("fast", (1, 2.0)),)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"name": 3}, "'name' must be a string, got 3."),
        ({"name": ...}, "'name' must be a string, got nothing."),
        ({"share": True}, "'share' must be a number in [0, 1], got True."),
        ({"share": 2}, "'share' must be a number in [0, 1], got 2."),
        ({"share": math.nan}, "'share' must be a number in [0, 1], got nan."),
        ({"number": "x" * 500}, f"'number' must be a number (float64), got '{'x' * 116}...."),
        ({"number": 10**400}, f"'number' must be a number (float64), got 1{'0' * 116}...."),
        ({"number": 10**5000}, "'number' must be a number (float64), got a large int."),
        ({"inner": []}, "'inner' must be an object, got []."),
        ({"inner": {"count": -1}}, "'inner.count' must be a whole number of at least 0 (int64), got -1."),
        ({"inner": {"count": 10**30}}, f"'inner.count' must be a whole number of at least 0 (int64), got {10**30}."),
        ({"inner": {"count": 1.0}}, "'inner.count' must be a whole number of at least 0 (int64), got 1.0."),
        ({"inner": {"said": 1}}, "'inner.said' must be a string, got 1."),
        (
            {"inner": {"many": [{"mode": "\ud800"}]}},
            "'inner.many[0].mode' must be one of 'fast', 'slow', got '\\ud800'.",
        ),
        ({"inner": {"many": [3]}}, "'inner.many[0]' must be an object (Part), got 3."),
        ({"shares": {"a": 0.5, "b.c": "d"}}, "'shares.b.c' must be a number in [0, 1], got 'd'."),
        ({"shares": {"a": None, "\ud800": -1}}, "'shares.\\ud800' must be a number in [0, 1], got -1."),
        ({"marks": [True]}, "'marks' must be two marks, got [True]."),
        ({"marks": [True, 1]}, "'marks[1]' must be true or false, got 1."),
    ],
)
def test_a_wrong_field_is_named_with_its_file_and_way(change: dict[str, Any], told: str) -> None:
    values = {name: value for name, value in ({"name": "a"} | change).items() if value is not ...}
    with pytest.raises(RunError) as raised:
        read_as(File, values, "metrics.json, line 3")
    assert str(raised.value) == f"metrics.json, line 3: field {told}"


def test_a_whole_file_and_a_part_of_one_are_named() -> None:
    with pytest.raises(RunError, match=r"^results\.json must be an object, got \[1\]\.$"):
        read_as(File, [1], "results.json")
    with pytest.raises(RunError, match=r"^results\.json: field 'scores\[2\]\.name' must be a string, got None\.$"):
        read_as(File, {"name": None}, "results.json", "scores[2]")
    deep: list[Any] = []
    for _ in range(5000):
        deep = [deep]
    with pytest.raises(RunError, match=r"field 'name' must be a string, got a large list\.$"):
        read_as(File, {"name": deep}, "results.json")
