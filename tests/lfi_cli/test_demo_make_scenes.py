"""lfi make-scenes"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lfi_pipeline.data import read_dataset

Fails = Callable[..., str]
FEW = ("--train", 3, "--val", 4, "--size", 32)


def test_scenes_are_made_and_a_rerun_confirms_them(lfi: Callable[..., Any], tmp_path: Path) -> None:
    out = tmp_path / "scenes"
    made = lfi("make-scenes", "--out", out, *FEW, "--json")
    assert made.code == 0
    assert made.json["out"] == str(out)
    assert (made.json["train"], made.json["val"], made.json["held_out"]) == (3, 4, ["photo"])
    assert len(read_dataset("scenes", out, "train")) == 3
    assert [sample.domain for sample in read_dataset("scenes", out, "val").samples] == [
        "colour",
        "outline",
        "grey",
        "photo",
    ]
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert lfi("make-scenes", "--out", out, *FEW).code == 0
    assert before == {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}


def test_other_scenes_are_not_overwritten(lfi: Callable[..., Any], fails: Fails, tmp_path: Path) -> None:
    out = tmp_path / "scenes"
    lfi("make-scenes", "--out", out, *FEW)
    message = fails("OutputExistsError", "make-scenes", "--out", out, *FEW, "--seed", 1)
    assert str(out) in message
    assert "other settings" in message


def test_a_directory_with_other_files_is_left_alone(fails: Fails, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    assert "other files" in fails("OutputExistsError", "make-scenes", "--out", tmp_path, *FEW)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize(
    ("kind", "options", "words"),
    [
        ("UnknownNameError", ("--domains", "sketch"), "colour, emblem, font, grey, icon, outline, photo, varied"),
        ("UnknownNameError", ("--held-out", "photos"), "Did you mean 'photo'"),
        ("ConfigError", ("--held-out", "grey"), "in both lists: grey"),
        ("ConfigError", ("--domains", ""), "at least one"),
        ("ConfigError", ("--train", 0), "train must be 1 or more, got 0"),
        ("ConfigError", ("--size", 8), "size must be from 32 to 1024, got 8"),
        ("ConfigError", ("--object-scale", 3), "0.3 to 1.35"),
        ("ConfigError", ("--seed", -1), "seed must be 0 or more"),
    ],
)
def test_options_that_cannot_work(
    fails: Fails, tmp_path: Path, kind: str, options: tuple[object, ...], words: str
) -> None:
    assert words in fails(kind, "make-scenes", "--out", tmp_path / "scenes", *options)
    assert not (tmp_path / "scenes").exists()


def test_long_paths_with_brackets_are_shown_whole(lfi: Callable[..., Any], tmp_path: Path) -> None:
    made = lfi("make-scenes", "--out", tmp_path / "a[/b]c[red]", *FEW)
    assert made.code == 0
    assert str(tmp_path / "a[/b]c[red]") in made.out
