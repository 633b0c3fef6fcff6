"""A study without students: a key, and raters who answer as told."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lfi_pipeline.study.answers import KeyItem, StudyKey, write_key

Rates = Callable[..., Path]


def key_of(items: int = 8, *, repeated: int = 2, catch: int = 0) -> StudyKey:
    """Items i0, i1, ...; x is run A's in every even one; domains ink and photo in turn; catch trials last."""
    pairs = [
        KeyItem(
            id=f"i{n}",
            sample=f"s{n}",
            word="cat",
            domain=("ink", "photo")[n // 2 % 2],
            x="ab"[n % 2],
            y="ba"[n % 2],
            repeated=n < repeated,
        )
        for n in range(items)
    ]
    tests = [
        KeyItem(id=f"c{n}", sample=f"s{n}", word="cat", domain="ink", x="shuffled", y="teacher", repeated=False)
        for n in range(catch)
    ]
    names = {"a": "runs/none", "b": "runs/lfi", "maps": "gradcam", "dataset": "scenes", "split": "val"}
    return StudyKey(study="0123456789ab", **names, weights="last", seed=0, passed_over={}, items=(*pairs, *tests))


def sheet(key: StudyKey, rater: str, wanted: Callable[[KeyItem, int], str]) -> dict[str, Any]:
    """A rater's file, with x on the left in first showings; `wanted` says whose map (or `none`) is preferred."""
    answers = []
    for item in key.items:
        for showing in (1, 2) if item.repeated else (1,):
            x_side = ("left", "right")[showing - 1]
            other = {"left": "right", "right": "left"}[x_side]
            want = wanted(item, showing)
            side = "none" if want == "none" else x_side if want == item.x else other
            answers.append({"item": item.id, "showing": showing, "x_side": x_side, "answer": side, "ms": 1500})
    return {
        "format": "lfi-study-answers",
        "version": 1,
        "study": key.study,
        "rater": rater,
        "seed": 1,
        "answers": answers,
    }


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "study-key.json"
    write_key(path, key_of())
    return path


@pytest.fixture
def write_sheet(tmp_path: Path) -> Rates:
    """`write_sheet(content)` writes a rater's file (or any text) and returns its path."""
    written: list[Path] = []

    def write(content: object) -> Path:
        path = tmp_path / f"rater-{len(written)}.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        written.append(path)
        return path

    return write
