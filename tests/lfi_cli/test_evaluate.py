"""lfi evaluate"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Fails = Callable[..., str]


def test_scores(lfi: Callable[..., Any], trained: Path, tiny_val_targets: Path) -> None:
    words = ("evaluate", trained, "--targets", tiny_val_targets, "--device", "cpu")
    result = lfi(*words, "--json").json
    assert result == json.loads((trained / "scores.json").read_text())
    assert result.keys() >= {"map_seen", "map_heldout", "map_per_domain", "taps", "teacher", "area"}
    assert len(result["taps"]) == 3
    shown = lfi(*words)
    assert shown.code == 0
    for name in ("mAP, seen domains", "mAP, photo", "tap 2", "teacher"):
        assert name in shown.out


def test_without_targets(lfi: Callable[..., Any], trained: Path) -> None:
    ended = lfi("evaluate", trained, "--device", "cpu", "--json")
    assert ended.code == 0
    assert ended.json["taps"] == []


def test_what_cannot_be_scored(
    fails: Fails, trained: Path, tiny_targets: Path, scenes_root: Path, tmp_path: Path
) -> None:
    assert "must be a run directory" in fails("RunError", "evaluate", tmp_path / "nowhere")
    assert "not a targets cache" in fails("TargetsError", "evaluate", trained, "--targets", scenes_root)
    assert "split val" in fails("DatasetError", "evaluate", trained, "--targets", tiny_targets)
    assert "device" in fails("ConfigError", "evaluate", trained, "--device", "tpu9")
    assert "gallery" in fails("ConfigError", "evaluate", trained, "--gallery", -1)


@pytest.mark.parametrize("content", [b"", b"\x00" * 100])
def test_a_broken_checkpoint(fails: Fails, trained: Path, content: bytes) -> None:
    (trained / "checkpoints" / "last.safetensors").write_bytes(content)
    assert "last.safetensors" in fails("RunError", "evaluate", trained)
