"""lfi demo: the whole pipeline in small, with the teacher that ships in the package."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lfi_pipeline.evaluation.protocols import latest_results

SMALL = ("--train", 24, "--val", 16, "--epochs", 1)
COMMANDS = ("make-scenes", "extract-teacher", "inspect", "train", "evaluate", "report", "export", "predict")


def commands_in(err: str) -> list[str]:
    return [line.split()[2] for line in err.splitlines() if line.startswith("$ lfi ")]


def test_the_whole_pipeline_in_small(lfi: Callable[..., Any], tmp_path: Path) -> None:
    out = tmp_path / "demo"
    ended = lfi("demo", "--out", out, *SMALL, "--json")
    assert ended.code == 0
    result = ended.json
    assert result["seconds"] > 0
    page = Path(result["report"])
    assert page == out / "report.html"
    assert "LFI demo" in page.read_text(encoding="utf-8")
    assert 0 <= result["teacher"]["pointing"] <= 1
    assert 0 <= result["teacher"]["mass_in_mask"] <= 1
    for head in ("linear", "queries"):
        found = result["scores"][head]
        scores = found["classification"]["scores"]
        assert 0 <= scores["map_seen"] <= 1
        assert 0 <= scores["map_heldout"] <= 1
        kept = latest_results(out / "runs" / f"{head}-0").get("classification")
        assert kept is not None
        assert kept.scores == scores
        assert result["teacher"]["pointing"] == found["grounding"]["scores"]["teacher_pointing"]
    assert result["scores"]["linear"]["grounding"]["details"]["taps"] == []
    assert result["scores"]["queries"]["grounding"]["details"]["taps"]
    answers = Path(result["answers"])
    assert len(list(answers.parent.glob("*.png"))) == 12
    assert "<img" in answers.read_text(encoding="utf-8")

    assert commands_in(ended.err) == [
        *("make-scenes", "extract-teacher", "extract-teacher", "inspect"),
        *("train", "evaluate", "train", "evaluate", "report", "export", "predict"),
    ]
    command = json.loads((out / "runs" / "queries-0" / "config.json").read_text())["command"]
    assert command.startswith("lfi train --targets")
    assert f"$ {command}" in ended.err  # a run records the very command that was shown

    again = lfi("demo", "--out", out, *SMALL)
    assert again.code == 0
    assert "Done" in again.out
    assert str(page.resolve()) in again.out
    assert "step/s" not in again.err  # nothing is trained twice
    assert not any(f"$ lfi {name}" in again.out for name in COMMANDS)


def test_a_command_that_fails_ends_the_demo_with_its_error(fails: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "demo" / "scenes").mkdir(parents=True)
    (tmp_path / "demo" / "scenes" / "thesis.txt").write_text("mine")
    message = fails("OutputExistsError", "demo", "--out", tmp_path / "demo", *SMALL)
    assert "other files" in message
    assert sorted(path.name for path in (tmp_path / "demo").iterdir()) == ["scenes"]


@pytest.mark.usefixtures("stand_in")
def test_a_rerun_with_other_options_is_refused_where_it_differs(
    lfi: Callable[..., Any], fails: Callable[..., str], tmp_path: Path
) -> None:
    assert lfi("demo", "--out", tmp_path / "demo", *SMALL).code == 0
    message = fails("OutputExistsError", "demo", "--out", tmp_path / "demo", *SMALL, "--epochs", 2)
    assert "epochs: 1 there, 2 asked" in message


@pytest.mark.usefixtures("stand_in")
def test_a_folder_becomes_a_student(lfi: Callable[..., Any], scenes_root: Path, tmp_path: Path) -> None:
    for place, image in enumerate(sorted((scenes_root / "train").iterdir())):
        folder = tmp_path / "pets" / ("cat", "dog")[place % 2]
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(image, folder)
    small = ("--student", "resnet10t", "--image-size", 32, "--epochs", 1, "--device", "cpu")
    words = ("distil", tmp_path / "pets", "--teacher", "scenes-coca", *small, "--out", tmp_path / "out")
    ended = lfi(*words, "--json")
    assert ended.code == 0
    assert "a folder for each class" in ended.err
    assert commands_in(ended.err) == [
        *("extract-teacher", "extract-teacher", "train", "evaluate", "report", "export", "predict")
    ]
    result = ended.json
    assert 0 <= result["scores"]["classification"]["scores"]["top1_seen"] <= 1
    assert (Path(result["exported"]) / "lfi.json").is_file()
    assert list(Path(result["answers"]).parent.glob("*.png"))
    again = lfi(*words)
    assert again.code == 0
    assert "exported" in again.out
    assert "epoch 1/1" not in again.err  # nothing is trained twice
