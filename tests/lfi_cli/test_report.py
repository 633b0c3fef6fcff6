"""lfi report"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

Fails = Callable[..., str]


def test_a_page_of_a_real_run(lfi: Callable[..., Any], trained: Path, tiny_val_targets: Path, tmp_path: Path) -> None:
    lfi("evaluate", trained, "--targets", tiny_val_targets, "--device", "cpu")
    ended = lfi("report", trained, "--out", tmp_path / "deep" / "page.html", "--title", "A title", "--json")
    assert ended.code == 0
    assert ended.json == {"report": str(tmp_path / "deep" / "page.html"), "notes": []}
    page = (tmp_path / "deep" / "page.html").read_text()
    assert "A title" in page
    assert "vit_tiny_patch16_224" in page
    shown = lfi("report", trained, "--out", tmp_path / "page.html")
    assert str(tmp_path / "page.html") in shown.out


def test_what_is_no_run(fails: Fails, trained: Path, tmp_path: Path) -> None:
    message = fails("RunError", "report", trained, tmp_path / "nowhere", "--out", tmp_path / "page.html")
    assert str(tmp_path / "nowhere") in message
    assert not (tmp_path / "page.html").exists()


def test_a_directory_is_no_page(fails: Fails, trained: Path, tmp_path: Path) -> None:
    assert "must be a file" in fails("OutputExistsError", "report", trained, "--out", tmp_path)
