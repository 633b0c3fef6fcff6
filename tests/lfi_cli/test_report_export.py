"""lfi export"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm

Fails = Callable[..., str]


def test_export(lfi: Callable[..., Any], trained: Path, tmp_path: Path) -> None:
    shown = lfi("export", trained, "--out", tmp_path / "first")
    assert shown.code == 0
    for text in ("vit_tiny_patch16_224", "features differ by", "logits differ by", f"local-dir:{tmp_path}/first"):
        assert text in shown.out
    assert "ONNX" not in shown.out
    result = lfi("export", trained, "--out", tmp_path / "second", "--weights", "last", "--json").json
    assert result["out"] == str(tmp_path / "second")
    assert set(result["files"]) == {"README.md", "config.json", "model.safetensors"}
    timm.create_model(f"local-dir:{tmp_path}/second", pretrained=True)


def test_what_is_refused(fails: Fails, trained: Path, tmp_path: Path) -> None:
    assert "must be a run directory" in fails("RunError", "export", tmp_path / "nowhere", "--out", tmp_path / "out")
    assert "absent or an empty directory" in fails("OutputExistsError", "export", trained, "--out", trained)
    assert "first" in fails("UnknownNameError", "export", trained, "--out", tmp_path / "out", "--weights", "first")
    assert not (tmp_path / "out").exists()
