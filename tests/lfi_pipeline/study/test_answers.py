"""Raters' files and keys that are not what they should be: one clear error naming file and item."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lfi_pipeline.core.errors import StudyError
from lfi_pipeline.study.answers import read_answers, read_key, write_key
from tests.lfi_pipeline.study.conftest import key_of, sheet

Write = Callable[[object], Path]


def _set(**values: object) -> Callable[[dict[str, Any]], None]:
    return lambda content: content.update(values)


def _first(**values: object) -> Callable[[dict[str, Any]], None]:
    return lambda content: content["answers"][0].update(values)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (_set(format="lfi-study-key"), "lfi-study-answers of version 1"),
        (_set(version=2), "version 1"),
        (_set(study="another"), "study 'another'"),
        (_set(study=None), "'study' must be a string"),
        (_set(rater=""), "'rater'"),
        (_set(rater="   "), "'rater'"),
        (_set(rater="x" * 81), "'rater'"),
        (_set(rater="\x1b[31mred"), "'rater'"),
        (_set(rater="\ud800"), "'rater'"),
        (_set(rater=["ann"]), "'rater'"),
        (_set(answers=[]), "at least one answer"),
        (_set(answers={}), "'answers' must be a list"),
        (_set(answers=[1]), r"'answers\[0\]' must be an object"),
        (_first(item="i99"), r"answers\[0\].item' must be one of the 8 items"),
        (_first(item=None), "a string"),
        (_first(item={}), "a string"),
        (_first(answer="up"), r"item 'i0': field 'answers\[0\].answer' must be one of 'left', 'right', 'none'"),
        (_first(answer=None), "item 'i0': .* must be one of 'left', 'right', 'none'"),
        (_first(answer=["left"]), "must be one of 'left', 'right', 'none'"),
        (_first(x_side="none"), "item 'i0': .* must be one of 'left', 'right', got"),
        (_first(x_side="right"), "item 'i0' has its maps on the same sides"),
        (_first(showing=2), "'i0' is answered twice .showing 2"),
        (_first(showing=3), "item 'i0': .* must be one of 1, 2, got 3"),
        (_first(showing=True), "must be one of 1, 2, got True"),
        (_first(item="i7", showing=2), "item 'i7': .* shown once"),
        (_first(item="i1"), "'i1' is answered twice"),
        (_first(ms=-1), "at least 0"),
        (_first(ms=float("nan")), "at least 0"),
        (_first(ms=float("inf")), "at least 0"),
        (_first(ms=10**400), "at least 0"),
        (_first(ms=True), "item 'i0': .* a number"),
        (_first(ms="5"), "item 'i0': .* a number"),
    ],
)
def test_a_wrong_field(write_sheet: Write, change: Callable[[dict[str, Any]], None], told: str) -> None:
    content = sheet(key_of(), "ann", lambda *_: "a")
    change(content)
    path = write_sheet(content)
    with pytest.raises(StudyError, match=told) as caught:
        read_answers([path], key_of())
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("text", ["", "no", "[]", "null", "{", "[" * 100_000, '{"a": 1' + "0" * 5000 + "}"])
def test_no_json_object(write_sheet: Write, text: str, tmp_path: Path) -> None:
    path = write_sheet(text)
    with pytest.raises(StudyError, match=path.name):
        read_answers([path], key_of())
    with pytest.raises(StudyError, match=path.name):
        read_key(path)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "latin.json").write_bytes(b"\xff\xfe\x00")
    for name in ("missing.json", "latin.json", "."):
        with pytest.raises(StudyError, match=r"must be|No such file"):
            read_answers([tmp_path / name], key_of())


def test_one_file_a_rater(write_sheet: Write) -> None:
    with pytest.raises(StudyError, match="at least one file"):
        read_answers([], key_of())
    files = [write_sheet(sheet(key_of(), name, lambda *_: "a")) for name in ("Ann  Lee", " ann lee")]
    with pytest.raises(StudyError, match="both of rater") as caught:
        read_answers(files, key_of())
    assert all(str(path) in str(caught.value) for path in files)


def test_a_key_comes_back(tmp_path: Path) -> None:
    key = key_of(catch=2)
    write_key(tmp_path / "key.json", key)
    assert read_key(tmp_path / "key.json") == key


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda key: key.update(format="x"), "lfi-study-key of version 1"),
        (lambda key: key.update(items=[]), "at least one"),
        (lambda key: key.pop("a"), "'a' must be a string"),
        (lambda key: key["items"].append(key["items"][0]), "each item once"),
        (lambda key: key["items"][0].update(x="b", y="b"), r"items\[0\].x'"),
        (lambda key: key["items"][0].update(x="a", y="teacher"), r"items\[0\].x'"),
        (lambda key: key["items"][0].update(repeated=1), "repeated"),
        (lambda key: key.update(passed_over={"a": "x"}), "passed_over.a"),
    ],
)
def test_a_wrong_key(tmp_path: Path, change: Callable[[dict[str, Any]], object], told: str) -> None:
    path = tmp_path / "key.json"
    write_key(path, key_of())
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(StudyError, match=told) as caught:
        read_key(path)
    assert str(path) in str(caught.value)
