"""Scoring: what counts, what does not, and what changes when A and B change places."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from lfi_pipeline.study import score_study
from lfi_pipeline.study.answers import KeyItem, write_key
from lfi_pipeline.study.score import wilson
from tests.lfi_pipeline.study.conftest import key_of, sheet

Write = Callable[[object], Path]


def test_a_rater_who_always_prefers_a(key_file: Path, write_sheet: Write) -> None:
    score = score_study([write_sheet(sheet(key_of(), "ann", lambda *_: "a"))], key_file)
    assert (score.preference.a, score.preference.b, score.preference.ties) == (8, 0, 0)  # repeats do not count
    assert score.preference.share == 1
    assert score.preference.wilson == wilson(8, 8)
    assert score.bootstrap == (1, 1)
    assert score.ratio is None
    assert score.ratio_interval == (None, None)
    assert score.sign_test == score.sign_test_answers == 2 / 2**8
    assert asdict(score.repeats) == {"count": 2, "same": 2}
    assert score.agreement is None
    assert any("One rater" in note for note in score.notes)
    assert {name: p.a for name, p in score.domains.items()} == {"ink": 4, "photo": 4}
    (rater,) = score.raters
    assert (rater.rater, rater.left, rater.catch, rater.seconds, rater.unanswered) == ("ann", 0.5, None, 1.5, 0)


def test_ratio_ties_and_domains(key_file: Path, write_sheet: Write) -> None:
    """Of eight items: 4 for A, 2 for B, 2 ties: 2x."""
    wish = dict(zip((f"i{n}" for n in range(8)), ("a", "a", "b", "none", "a", "a", "b", "none"), strict=True))
    score = score_study([write_sheet(sheet(key_of(), "ann", lambda item, _: wish[item.id]))], key_file)
    assert score.ratio == 2
    assert score.preference.share == 4 / 6
    assert score.preference.ties == 2
    assert score.domains["ink"].a == 4
    assert (score.domains["photo"].b, score.domains["photo"].ties) == (2, 2)


def test_pressing_one_side_is_told_from_preferring(key_file: Path, write_sheet: Write) -> None:
    content = sheet(key_of(), "lazy", lambda *_: "a")
    for answer in content["answers"]:
        answer["answer"] = "left"
    score = score_study([write_sheet(content)], key_file)
    assert score.preference.share == 0.5
    assert asdict(score.repeats) == {"count": 2, "same": 0}
    assert score.raters[0].left == 1


def test_catch_trials_count_for_the_rater_only(tmp_path: Path, write_sheet: Write) -> None:
    key = key_of(catch=4)
    write_key(tmp_path / "key.json", key)
    wish = {"c0": "teacher", "c1": "teacher", "c2": "teacher", "c3": "shuffled"}
    content = sheet(key, "ann", lambda item, _: wish.get(item.id, "b"))
    score = score_study([write_sheet(content)], tmp_path / "key.json")
    assert score.raters[0].catch == 0.75
    assert (score.preference.a, score.preference.b) == (0, 8)
    assert score.ratio == 0


def test_raters_agree(key_file: Path, write_sheet: Write) -> None:
    def by_item(item: KeyItem, _: int) -> str:
        return "a" if item.id in ("i0", "i1", "i2", "i3", "i4") else "b"

    files = [write_sheet(sheet(key_of(), name, by_item)) for name in ("ann", "bob", "cas")]
    score = score_study(files, key_file)
    assert score.agreement == 1
    assert score.preference.a == 15
    one = score_study(files[:1], key_file)
    assert score.sign_test == one.sign_test  # three who say the same are no more evidence over items
    assert score.sign_test_answers is not None
    assert one.sign_test_answers is not None
    assert score.sign_test_answers < one.sign_test_answers
    assert score.bootstrap is not None
    assert score.preference.wilson is not None
    assert score.bootstrap[0] < score.preference.wilson[0]
    assert not score.notes


def test_changing_a_and_b_mirrors_everything(tmp_path: Path, write_sheet: Write) -> None:
    key, draws = key_of(30, repeated=5), random.Random(4)
    swap = {"a": "b", "b": "a", "none": "none"}
    items = tuple(replace(item, x=swap[item.x], y=swap[item.y]) for item in key.items)
    mirrored = replace(key, a=key.b, b=key.a, items=items)
    write_key(tmp_path / "key.json", key)
    write_key(tmp_path / "mirrored.json", mirrored)
    files = [
        write_sheet(sheet(key, name, lambda *_: draws.choices(("a", "b", "none"), (5, 3, 1))[0])) for name in "abc"
    ]
    straight, swapped = (score_study(files, tmp_path / name) for name in ("key.json", "mirrored.json"))
    assert straight.preference.share is not None
    assert swapped.preference.share == pytest.approx(1 - straight.preference.share)
    assert straight.ratio is not None
    assert swapped.ratio == pytest.approx(1 / straight.ratio)
    for interval in ("bootstrap", "wilson"):
        ends = [getattr(s, interval, None) or getattr(s.preference, interval) for s in (straight, swapped)]
        assert ends[1] == pytest.approx((1 - ends[0][1], 1 - ends[0][0]))
    for name in ("agreement", "sign_test", "sign_test_answers", "repeats", "notes"):
        assert getattr(straight, name) == getattr(swapped, name)


def test_one_who_stopped_early(key_file: Path, write_sheet: Write) -> None:
    content = sheet(key_of(), "ann", lambda *_: "a")
    content["answers"] = content["answers"][:3]
    score = score_study([write_sheet(content)], key_file)
    assert score.raters[0].unanswered == 7
    assert any("ann (7)" in note for note in score.notes)


def test_only_ties(key_file: Path, write_sheet: Write) -> None:
    score = score_study([write_sheet(sheet(key_of(), name, lambda *_: "none")) for name in "ab"], key_file)
    assert score.preference.ties == 16
    for name in ("ratio", "ratio_interval", "bootstrap", "sign_test", "sign_test_answers", "agreement"):
        assert getattr(score, name) is None
    assert any("not defined" in note for note in score.notes)


def test_words_without_a_map_are_told(tmp_path: Path, write_sheet: Write) -> None:
    write_key(tmp_path / "key.json", replace(key_of(), passed_over={"b": 7, "image": 1}))
    score = score_study([write_sheet(sheet(key_of(), "ann", lambda *_: "a"))], tmp_path / "key.json")
    assert any("7 of run B" in note for note in score.notes)
