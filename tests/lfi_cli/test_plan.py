"""lfi plan"""

from __future__ import annotations

import re
import shutil
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

FEW = ("--words", 6, "--samples-per-shard", 8, "--batch-size", 4, "--batches", 2, "--device", "cpu")


@pytest.mark.usefixtures("stand_in")
def test_what_a_run_will_take(lfi: Callable[..., Any], scenes_root: Path, tmp_path: Path) -> None:
    words = ("plan", "--dataset", "scenes", "--data-root", scenes_root, "--out", tmp_path / "shards", *FEW)
    ended = lfi(*words, "--processes", 2, "--epochs", 50, "--json")
    assert ended.code == 0
    found = ended.json
    assert (found["images"], found["shards"], found["trial"]["images"]) == (24, 3, 8)
    assert found["disk"] == str(tmp_path)
    assert found["fits"] is True
    assert found["hours_shared"] == pytest.approx(found["hours"] / 2)
    assert found["break_even_students"] == pytest.approx(found["break_even_epochs"] / 50)
    shown = lfi(*words)
    assert shown.code == 0
    assert "from 8 images tried on this machine" in shown.out
    assert "24 in 3 shard(s)" in shown.out
    assert re.search(r"after epoch \d+ of student 1 \(0\.0\d+ students\)", shown.out)
    assert "warning" not in shown.err
    assert not (tmp_path / "shards").exists()


@pytest.mark.usefixtures("stand_in")
def test_a_full_disk_is_a_warning(
    lfi: Callable[..., Any], scenes_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage(10**6, 10**6, 10))
    words = ("plan", "--dataset", "scenes", "--data-root", scenes_root, "--out", tmp_path / "shards", *FEW)
    ended = lfi(*words)
    assert ended.code == 0
    assert "does not fit" in ended.out
    assert f"will not fit at {tmp_path}" in ended.err
    assert lfi(*words, "--json").json["fits"] is False


@pytest.mark.parametrize(
    ("epochs", "break_even", "told"),
    [
        (100, 2.4, "after epoch 3 of student 1"),
        (2, 2.4, "after epoch 1 of student 2"),
        (2, 2.0, "epoch 2 of student 1"),
    ],
)
def test_the_break_even_is_told_in_epochs_of_students(epochs: int, break_even: float, told: str) -> None:
    from types import SimpleNamespace

    from lfi_cli.plan import _break_even

    found: Any = SimpleNamespace(epochs=epochs, break_even_epochs=break_even, break_even_students=break_even / epochs)
    assert told in _break_even(found)


def test_unknown_names_are_told(fails: Callable[..., str], scenes_root: Path) -> None:
    words = ("plan", "--dataset", "scenes", "--data-root", scenes_root)
    assert "Unknown text mode" in fails("UnknownNameError", *words, "--text", "poems")
    assert "batches must be 1 or more" in fails("ConfigError", *words, "--batches", 0)


@pytest.mark.usefixtures("stand_in")
def test_a_student_is_timed_where_one_is_named(lfi: Callable[..., Any], scenes_root: Path, tmp_path: Path) -> None:
    words = ("plan", "--dataset", "scenes", "--data-root", scenes_root, "--out", tmp_path / "shards", *FEW)
    named = ("--student", "resnet10t", "--image-size", 32, "--student-batch", 2, "--epochs", 50, "--students", 3)
    found = lfi(*words, *named, "--json").json
    training, images = found["training"], found["images"]
    assert training["hours"] == pytest.approx(training["trial"]["seconds"] * images * 50 / 3600)
    assert training["hours_all"] == pytest.approx(3 * training["hours"])
    assert found["trial"]["operations"] > 0
    shown = lfi(*words, *named)
    assert "resnet10t at 32x32" in shown.out
    assert "training" not in lfi(*words, "--json").json
