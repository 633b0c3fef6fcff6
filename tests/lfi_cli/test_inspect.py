"""lfi inspect"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lfi_pipeline.targets import TargetStore

Fails = Callable[..., str]


def test_what_a_cache_holds(lfi: Callable[..., Any], tiny_val_targets: Path) -> None:
    result = lfi("inspect", tiny_val_targets, "--json").json
    store = TargetStore.open(tiny_val_targets)
    assert result["spec"] == store.spec.to_plain()
    assert result["fingerprint"] == store.spec.fingerprint
    assert result["summary"]["samples"] == 16
    assert result["vocabulary"] == len(store.vocabulary.words)
    assert result["quarantined"] == {}
    assert "pointing" not in result
    shown = lfi("inspect", tiny_val_targets)
    assert shown.code == 0
    assert "tiny-coca:test" in shown.out
    assert f"{store.spec.kind}, {store.spec.row} rows" in shown.out


def test_pointing_scores_each_layer(lfi: Callable[..., Any], tiny_val_targets: Path) -> None:
    (layer,) = lfi("inspect", tiny_val_targets, "--pointing", "--json").json["pointing"]
    assert layer["layer"] == "visual.trunk"
    assert 0 <= layer["pointing"] <= 1
    assert 0 <= layer["mass_in_mask"] <= 1
    assert 0 < layer["area"] < 0.5
    assert layer["count"] > 0
    assert "peak in mask" in lfi("inspect", tiny_val_targets, "--pointing").out


def test_images_that_moved(lfi: Callable[..., Any], fails: Fails, tiny_val_targets: Path, scenes_root: Path) -> None:
    nowhere = tiny_val_targets / "nowhere"
    assert str(nowhere) in fails("DatasetError", "inspect", tiny_val_targets, "--pointing", "--data-root", nowhere)
    assert lfi("inspect", tiny_val_targets, "--pointing", "--data-root", scenes_root).code == 0


@pytest.mark.parametrize("command", ["inspect", "verify"])
def test_what_is_no_cache_is_refused(fails: Fails, scenes_root: Path, tmp_path: Path, command: str) -> None:
    for path in (scenes_root, tmp_path, tmp_path / "nowhere"):
        message = fails("TargetsError", command, path)
        assert str(path) in message
        assert "not a targets cache" in message


def test_a_version_that_is_not_known_is_refused(fails: Fails, tiny_val_targets: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_val_targets, tmp_path / "shards")
    manifest = tmp_path / "shards" / "manifest.json"
    text = manifest.read_text()
    assert text.count('"version": 1') == 1
    manifest.write_text(text.replace('"version": 1', '"version": 99'))
    message = fails("TargetsError", "inspect", tmp_path / "shards")
    assert "version 99" in message
    assert "knows version 1" in message


def test_a_cache_that_is_not_finished_says_how_to_finish_it(
    fails: Fails, tiny_val_targets: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_val_targets, tmp_path / "shards")
    (tmp_path / "shards" / "commits" / "000001.json").unlink()
    message = fails("IncompleteTargetsError", "inspect", tmp_path / "shards")
    assert "1 of 2 shards" in message
    assert "again" in message
