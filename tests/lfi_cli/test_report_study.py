"""lfi study"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lfi_pipeline.study.answers import read_key
from tests.lfi_pipeline.study.conftest import sheet

Lfi = Callable[..., Any]
Fails = Callable[..., str]


def test_make_then_score(lfi: Lfi, trained: Path, tiny_val_targets: Path, tmp_path: Path) -> None:
    page, key = tmp_path / "study.html", tmp_path / "study-key.json"
    words = ("study", "make", trained, trained, "--targets", tiny_val_targets, "--out", page, "--items", 6)
    words = (*words, "--repeat", 0.5, "--catch", 2, "--device", "cpu")
    made = lfi(*words, "--json").json
    assert (made["page"], made["key"], made["items"], made["repeated"], made["catch"]) == (str(page), str(key), 6, 3, 2)
    shown = lfi(*words)
    assert shown.code == 0
    for told in ("give this to the raters", "keep this from them", made["id"], "lfi study score"):
        assert told in shown.out

    study = read_key(key)
    for name in ("ann", "bob"):
        wish = {"ann": "a", "bob": "b"}[name]
        content = sheet(study, name, lambda item, _, wish=wish: "teacher" if item.is_catch else wish)
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    score = ("study", "score", tmp_path / "ann.json", tmp_path / "bob.json", "--key", key)
    result = lfi(*score, "--json").json
    assert result["study"] == made["id"]
    assert result["preference"]["share"] == 0.5
    assert result["ratio"] == 1
    assert [rater["catch"] for rater in result["raters"]] == [1, 1]
    shown = lfi(*score)
    assert shown.code == 0
    for told in (
        "1.00x",
        "A 6, B 6, neither 0",
        "Krippendorff",
        "rater ann",
        "6 of 6",
        "domain photo",
        "catch 100.0 %",
    ):
        assert told in shown.out
    alone = lfi("study", "score", tmp_path / "ann.json", "--key", key)
    assert "nobody preferred B" in alone.out
    assert "One rater" in alone.out


def test_what_cannot_be_scored(fails: Fails, tmp_path: Path, trained: Path, tiny_val_targets: Path) -> None:
    (tmp_path / "x.json").write_text("{}")
    assert "lfi study make" in fails("StudyError", "study", "score", tmp_path / "x.json", "--key", tmp_path / "no.json")
    words = ("study", "make", trained, trained, "--targets", tiny_val_targets, "--out", tmp_path / "s.html")
    assert "fewer --items" in fails("ConfigError", *words, "--items", 5000, "--device", "cpu")
