"""lfi pack"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any


def test_there_and_back(lfi: Callable[..., Any], tiny_val_targets: Path, tmp_path: Path) -> None:
    tars, arrays = tmp_path / "tars", tmp_path / "arrays"
    there = lfi("pack", tiny_val_targets, tars, "--json")
    assert there.code == 0, there.err
    assert there.json["layout"] == "webdataset"
    assert there.json["images_missing"] == 0
    back = lfi("pack", tars, arrays, "--layout", "zarr")
    assert back.code == 0
    assert there.json["fingerprint"] in back.out
    for path in tiny_val_targets.rglob("*"):
        if path.is_file():
            assert (arrays / path.relative_to(tiny_val_targets)).read_bytes() == path.read_bytes()
    assert lfi("verify", tars, "--json").json == {"ok": True, "faults": []}


def test_images_that_stay_behind_are_told(lfi: Callable[..., Any], tiny_val_targets: Path, tmp_path: Path) -> None:
    tars = tmp_path / "tars"
    lfi("pack", tiny_val_targets, tars)
    (tmp_path / "empty").mkdir()
    ended = lfi("pack", tars, tmp_path / "arrays", "--layout", "zarr", "--data-root", tmp_path / "empty")
    assert ended.code == 0
    assert "image(s) are not below" in ended.out
    assert str(tars) in ended.out


def test_an_unknown_layout_lists_the_choices(lfi: Callable[..., Any], tiny_val_targets: Path, tmp_path: Path) -> None:
    ended = lfi("pack", tiny_val_targets, tmp_path / "out", "--layout", "webdatset")
    assert ended.code == 1
    assert "Did you mean 'webdataset'? Choices: webdataset, zarr." in ended.err
    assert not (tmp_path / "out").exists()
