"""lfi verify"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


def test_a_sound_cache(lfi: Callable[..., Any], tiny_val_targets: Path) -> None:
    ended = lfi("verify", tiny_val_targets, "--json")
    assert ended.code == 0
    assert ended.json == {"ok": True, "faults": []}
    assert "every checksum holds" in lfi("verify", tiny_val_targets).out


def test_a_flipped_bit_is_found_and_told(lfi: Callable[..., Any], tiny_val_targets: Path, tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    shutil.copytree(tiny_val_targets, shards)
    chosen = max((path for path in (shards / "views").rglob("*") if path.is_file()), key=lambda p: p.stat().st_size)
    content = bytearray(chosen.read_bytes())
    content[len(content) // 3] ^= 1
    chosen.write_bytes(content)

    ended = lfi("verify", shards, "--json")
    assert ended.code == 1
    assert ended.json["ok"] is False
    assert ended.json["faults"]
    for fault in ended.json["faults"]:
        assert fault.keys() >= {"shard", "file", "sample", "message"}
        assert fault["file"] == chosen.relative_to(shards).as_posix()
    plain = lfi("verify", shards)
    assert plain.code == 1
    assert "fault(s)" in plain.out
    assert "Traceback" not in plain.err


def test_a_version_that_is_not_known_is_a_fault(
    lfi: Callable[..., Any], tiny_val_targets: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_val_targets, tmp_path / "shards")
    manifest = tmp_path / "shards" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"version": 2', '"version": 99'))
    ended = lfi("verify", tmp_path / "shards", "--json")
    assert ended.code == 1
    assert ended.json["ok"] is False
    assert "version 99" in ended.json["faults"][0]["message"]


def test_a_changed_image_is_found_unless_images_are_left_out(
    lfi: Callable[..., Any], tiny_val_targets: Path, tmp_path: Path
) -> None:
    from lfi_pipeline.targets import TargetStore

    store = TargetStore.open(tiny_val_targets)
    shutil.copytree(store.data_root, tmp_path / "images")
    image = tmp_path / "images" / store.index.paths[1]
    content = bytearray(image.read_bytes())
    content[len(content) // 2] ^= 1
    image.write_bytes(content)
    ended = lfi("verify", tiny_val_targets, "--data-root", tmp_path / "images", "--json")
    assert ended.code == 1
    assert [(fault["sample"], fault["file"]) for fault in ended.json["faults"]] == [(1, store.index.paths[1])]
    assert "sample 1" in lfi("verify", tiny_val_targets, "--data-root", tmp_path / "images").out
    assert lfi("verify", tiny_val_targets, "--data-root", tmp_path / "images", "--no-images").code == 0


@pytest.mark.usefixtures("stand_in")
def test_the_teacher_is_asked_again(lfi: Callable[..., Any], tiny_val_targets: Path) -> None:
    words = ("verify", tiny_val_targets, "--recompute", 0.5, "--teacher", "scenes-coca", "--device", "cpu")
    assert lfi(*words, "--seed", 1, "--json").json == {"ok": True, "faults": []}
    assert "the same maps again (50 % of the samples)" in lfi(*words).out


def test_another_teacher_is_refused(fails: Callable[..., str], tiny_val_targets: Path) -> None:
    words = ("verify", tiny_val_targets, "--recompute", 0.5, "--teacher", "scenes-coca", "--device", "cpu")
    assert "weights of sha256" in fails("TeacherError", *words)
    assert "--recompute must be above 0 to 1" in fails("ConfigError", "verify", tiny_val_targets, "--recompute", 2)
