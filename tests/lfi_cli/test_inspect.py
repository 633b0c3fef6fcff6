"""lfi inspect"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lfi_pipeline.targets import TargetStore
from lfi_pipeline.teachers import CocaTeacher

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
    zero_shot = result["zero_shot"]
    assert (zero_shot["classes"], zero_shot["templates"]) == (64, ["a picture of a {}."])
    assert (zero_shot["score"]["metric"], zero_shot["score"]["images"]) == ("mAP", 16)
    assert 0 < zero_shot["score"]["value"] < 1
    shown = lfi("inspect", tiny_val_targets)
    assert shown.code == 0
    assert "tiny-coca:test" in shown.out
    assert f"{store.spec.kind}, {store.spec.row} rows" in shown.out
    assert "64 classes, 1 prompt(s)" in shown.out


def test_pointing_scores_each_layer(lfi: Callable[..., Any], tiny_val_targets: Path) -> None:
    layers = lfi("inspect", tiny_val_targets, "--pointing", "--json").json["pointing"]
    assert [layer["layer"] for layer in layers] == [f"visual.transformer.resblocks.{i}" for i in range(2)]
    for layer in layers:
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
        message = fails("NotTargetsError", command, path)
        assert str(path) in message
        assert "not a targets cache" in message


def test_a_version_that_is_not_known_is_refused(fails: Fails, tiny_val_targets: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_val_targets, tmp_path / "shards")
    manifest = tmp_path / "shards" / "manifest.json"
    text = manifest.read_text()
    assert text.count('"version": 2') == 1
    manifest.write_text(text.replace('"version": 2', '"version": 99'))
    message = fails("TargetsError", "inspect", tmp_path / "shards")
    assert "version 99" in message
    assert "knows versions 1 and 2" in message


def test_a_cache_that_is_not_finished_says_how_to_finish_it(
    fails: Fails, tiny_val_targets: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_val_targets, tmp_path / "shards")
    (tmp_path / "shards" / "commits" / "000001.json").unlink()
    message = fails("IncompleteTargetsError", "inspect", tmp_path / "shards")
    assert "1 of 2 shards" in message
    assert "again" in message


def test_bytes_words_and_quarantine(lfi: Callable[..., Any], tiny_val_targets: Path) -> None:
    result = lfi("inspect", tiny_val_targets, "--json").json
    summary = result["summary"]
    assert sum(result["bytes"].values()) == pytest.approx(summary["bytes_per_sample"] * summary["samples"])
    assert result["words"]["looked_at"] == 16
    assert result["quarantine"] == []
    assert "full/maps" in lfi("inspect", tiny_val_targets).out


def test_quarantined_images_are_grouped(
    lfi: Callable[..., Any], stand_in: None, scenes_root: Path, tmp_path: Path
) -> None:
    root = Path(shutil.copytree(scenes_root, tmp_path / "scenes"))
    images = sorted((root / "val").iterdir())
    for image in images[:7]:
        image.write_bytes(image.read_bytes()[:300])
    out = tmp_path / "shards"
    options = ("--split", "val", "--kind", "attention", "--layers", 1, "--views", "full", "--device", "cpu")
    assert lfi("extract-teacher", "--dataset", "scenes", "--data-root", root, "--out", out, *options).code == 0
    result = lfi("inspect", out, "--json").json
    assert len(result["quarantined"]) == sum(group["count"] for group in result["quarantine"]) == 7
    assert len(result["quarantine"]) <= 2  # pixels end at other bytes, the reason is one
    shown = lfi("inspect", out).out
    assert images[0].stem in shown
    assert str(root) not in shown.replace(str(out), "")


def test_pictures_of_samples(
    lfi: Callable[..., Any], fails: Fails, tiny_val_targets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    first, second = TargetStore.open(tiny_val_targets).index.keys[:2]
    words = ("inspect", tiny_val_targets, "--sample", first, "--sample", second)
    assert lfi(*words, "--json").json["pictures"] == [f"{first}.png", f"{second}.png"]
    with Image.open(f"{first}.png") as picture, Image.open(f"{second}.png") as other:
        assert picture.format == "PNG"
        heights = picture.height + other.height
    assert f"{first}.png is there already" in fails("OutputExistsError", *words)
    assert lfi(*words, "--out", tmp_path / "new" / "both.png").code == 0
    with Image.open(tmp_path / "new" / "both.png") as picture:
        assert picture.height == heights
    assert "Nearest keys" in fails("ConfigError", "inspect", tiny_val_targets, "--sample", "nothing")
    assert "--sample KEY" in fails("ConfigError", "inspect", tiny_val_targets, "--out", "x.png")


def test_live_kinds_stand_beside_the_cached_maps(
    lfi: Callable[..., Any],
    fails: Fails,
    tiny_teacher: CocaTeacher,
    tiny_val_targets: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("lfi_pipeline.teachers.recompute.load_teacher", lambda name, **_: tiny_teacher)
    words = ("inspect", tiny_val_targets, "--pointing", "--kinds", "relevance,gradcam", "--images", 3)
    rows = lfi(*words, "--json").json["pointing"]
    assert [(row["source"], row["kind"]) for row in rows] == [
        *[("cache", "contrastive")] * 2,
        ("live", "relevance"),
        *[("live", "gradcam")] * 2,
    ]
    assert len({row["count"] for row in rows}) == 1
    assert "live: relevance, emitting, visual.trunk" in lfi(*words).out
    assert "needs --pointing" in fails("ConfigError", "inspect", tiny_val_targets, "--kinds", "all")


def test_artefacts_are_counted_by_the_caches_own_teacher(
    lfi: Callable[..., Any], tiny_teacher: CocaTeacher, tiny_val_targets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lfi_pipeline.teachers.recompute.load_teacher", lambda name, **_: tiny_teacher)
    counts = lfi("inspect", tiny_val_targets, "--artefacts", 5, "--json").json["artefacts"]
    assert [each["layer"] for each in counts] == ["block 0", "block 1"]
    assert {each["images"] for each in counts} == {5}
    assert all(1 <= each["largest_norm"] < 100 and 0 <= each["share"] <= 1 for each in counts)
    shown = lfi("inspect", tiny_val_targets, "--artefacts", 5).out
    assert "artefacts on 5 images" in shown
    assert "in the maps their mass is that of their neighbours" in shown
