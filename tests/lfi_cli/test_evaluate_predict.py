"""lfi predict"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory, tiny_targets: Path) -> Path:
    """The export of a run with a query head."""
    from lfi_pipeline.exporting import export_run
    from tests.lfi_pipeline.evaluation.conftest import _trained

    folder = tmp_path_factory.mktemp("predict")
    run = _trained(tiny_targets, folder / "run", "lfi", head="queries")
    export_run(run, folder / "exported")
    return folder / "exported"


def test_answers_are_told_and_drawn(lfi: Callable[..., Any], exported: Path, scenes_root: Path, tmp_path: Path) -> None:
    image = sorted((scenes_root / "val").iterdir())[0]
    shown = lfi("predict", image, "--model", exported, "--save", tmp_path / "answers", "--top", 2)
    assert shown.code == 0
    assert "%" in shown.out
    assert {path.name for path in (tmp_path / "answers").iterdir()} == {f"{image.stem}.png", "index.html"}
    bracketed = shutil.copy(image, tmp_path / f"photo [edited]{image.suffix}")
    assert Path(bracketed).name in lfi("predict", bracketed, "--model", exported).out
    result = lfi("predict", scenes_root / "val", "--model", exported, "--words", "dog, cat", "--json").json
    assert len(result["images"]) == 16
    assert [{answer["name"] for answer in each["answers"]} for each in result["images"]] == [{"dog", "cat"}] * 16


def test_what_is_refused(fails: Callable[..., str], exported: Path, scenes_root: Path, tmp_path: Path) -> None:
    assert "there is no" in fails("ConfigError", "predict", tmp_path / "x.png", "--model", exported)
    assert "must hold" in fails("ExportError", "predict", scenes_root / "val", "--model", tmp_path)
    words = ("--words", "zebra", "--model", exported)
    assert "its own classes alone" in fails("ConfigError", "predict", scenes_root / "val", *words)


def test_new_words_are_read_by_the_teacher(
    lfi: Callable[..., Any],
    fails: Callable[..., str],
    tiny_targets: Path,
    scenes_root: Path,
    tiny_teacher: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from lfi_pipeline import teachers
    from lfi_pipeline.exporting import export_run
    from tests.lfi_pipeline.evaluation.conftest import _trained

    run = _trained(tiny_targets, tmp_path / "run", "lfi", head="queries", readout="text")
    export_run(run, tmp_path / "exported")
    image = sorted((scenes_root / "val").iterdir())[0]
    asked = ("predict", image, "--words", "zyzzyva", "--model", tmp_path / "exported")
    assert "does not know 'zyzzyva'" in fails("ConfigError", *asked)
    monkeypatch.setattr(teachers, "load_teacher", lambda name: tiny_teacher, raising=False)
    (answer,) = lfi(*asked, "--teacher", "tiny-coca:test", "--json").json["images"][0]["answers"]
    assert answer["name"] == "zyzzyva"
    assert 0 <= answer["score"] <= 1
