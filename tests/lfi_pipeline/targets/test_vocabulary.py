"""Digests of a plan tell columns apart and find a repeated key, whatever its short hash."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from lfi_pipeline.core.errors import ConfigError
from lfi_pipeline.targets import vocabulary as plans
from lfi_pipeline.targets.vocabulary import plan_digests


@pytest.mark.parametrize(
    ("column", "change"),
    [("keys", "key"), ("paths", "path"), ("labels", "labels"), ("domains", "domain"), ("captions", "caption")],
)
def test_one_changed_value_changes_its_column_alone(synthetic: Any, column: str, change: str) -> None:
    rows = synthetic.plan()
    before = plan_digests(rows)
    value: Any = (1, 7) if change == "labels" else "other"
    after = plan_digests([*rows[:3], dataclasses.replace(rows[3], **{change: value}), *rows[4:]])
    assert {name for name in before if before[name] != after[name]} == {column}


def test_columns_know_where_a_value_ends(synthetic: Any) -> None:
    first, second, *rest = synthetic.plan()
    moved = [dataclasses.replace(first, caption="a ca"), dataclasses.replace(second, caption="ta cat 1"), *rest]
    assert plan_digests(moved)["captions"] != plan_digests(synthetic.plan())["captions"]


def test_a_repeated_key_is_named(synthetic: Any) -> None:
    rows = synthetic.plan()
    with pytest.raises(ConfigError, match=r"unique keys; '002' stands in it twice"):
        plan_digests([*rows, dataclasses.replace(rows[2], path="other.jpg")])


def test_keys_whose_short_hashes_collide_are_still_two(synthetic: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = plan_digests(synthetic.plan())
    monkeypatch.setattr(plans, "_short", lambda key: 7)
    assert plan_digests(synthetic.plan()) == expected
