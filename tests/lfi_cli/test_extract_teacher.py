"""lfi extract-teacher"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lfi_pipeline.targets import TargetStore

Fails = Callable[..., str]
FEW = ("--split", "val", "--words", 6, "--views", "full", "--samples-per-shard", 8, "--device", "cpu")


def scenes(root: Path) -> tuple[object, ...]:
    return ("--dataset", "scenes", "--data-root", root)


@pytest.mark.usefixtures("stand_in")
def test_a_cache_is_made_and_a_rerun_confirms_it(lfi: Callable[..., Any], scenes_root: Path, tmp_path: Path) -> None:
    words = ("extract-teacher", *scenes(scenes_root), *FEW, "--out", tmp_path / "shards")
    made = lfi(*words, "--json")
    assert made.code == 0
    result = made.json
    assert result["samples"] == 16
    assert result["quarantined"] == 0
    assert 0 < result["bytes_per_sample"] < 16_000
    assert result["raw_bytes_per_sample"] > 0
    assert 0 <= result["codec_kl"] < 0.005
    assert result["seconds"] > 0
    assert result["out"] == str(tmp_path / "shards")
    store = TargetStore.open(tmp_path / "shards")
    assert store.spec.views == ("full",)
    assert store.spec.teacher.name == "scenes-coca"

    before = {path: path.read_bytes() for path in (tmp_path / "shards").rglob("*") if path.is_file()}
    again = lfi(*words, "--json")
    assert {k: v for k, v in again.json.items() if k != "seconds"} == {
        k: v for k, v in result.items() if k != "seconds"
    }
    assert before == {path: path.read_bytes() for path in (tmp_path / "shards").rglob("*") if path.is_file()}
    assert "16" in lfi(*words).out


@pytest.mark.usefixtures("stand_in")
def test_words_to_look_for_and_a_cache_that_is_replaced(
    lfi: Callable[..., Any], fails: Fails, scenes_root: Path, tmp_path: Path
) -> None:
    words = ("extract-teacher", "--dataset", scenes_root / "val", "--teacher", "scenes-coca", "--views", "full")
    words = (*words, "--device", "cpu", "--out", tmp_path / "shards")
    made = lfi(*words, "--vocabulary", "dog,traffic light")
    assert made.code == 0
    assert "The teacher reads those of 2 words that it scores above chance, such as" in made.err
    assert TargetStore.open(tmp_path / "shards").vocabulary.words == ("dog", "traffic light")
    assert "vocabulary" in fails("SpecMismatchError", *words, "--vocabulary", "dog,cat")
    assert lfi(*words, "--vocabulary", "dog,cat", "--overwrite").code == 0
    assert TargetStore.open(tmp_path / "shards").vocabulary.words == ("cat", "dog")
    assert "--overwrite" in fails("ConfigError", *words, "--overwrite", "--extend")


@pytest.mark.usefixtures("stand_in")
def test_an_unreadable_image_is_quarantined_and_counted(
    lfi: Callable[..., Any], scenes_root: Path, tmp_path: Path
) -> None:
    root = tmp_path / "scenes"
    shutil.copytree(scenes_root, root)
    (root / "val" / "000000000002.png").write_bytes(b"no image")
    made = lfi("extract-teacher", *scenes(root), *FEW, "--out", tmp_path / "shards", "--json")
    assert made.code == 0
    assert made.json["quarantined"] == 1
    assert "The teacher reads captions, such as\n  val/000000000001.png: " in made.err
    own = made.json["teacher_zero_shot"]  # of random weights
    assert (own["metric"], own["images"]) == ("mAP", 15)
    assert 0 < own["chance"] < 1
    assert ("near chance" in made.err) == (own["value"] < 2 * own["chance"])
    assert "1 of 16 images (6%) could not be read" in made.err  # more than one of twenty
    shown = lfi("inspect", tmp_path / "shards", "--json")
    assert list(shown.json["quarantined"]) == ["000000000002"]
    shutil.copy(scenes_root / "val" / "000000000002.png", root / "val")
    again = lfi("extract-teacher", *scenes(root), *FEW, "--out", tmp_path / "shards", "--retry-quarantined", "--json")
    assert again.json["quarantined"] == 0
    assert "could not be read" not in again.err


@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize(
    ("kind", "options", "words"),
    [
        ("UnknownNameError", ("--dataset", "scenery"), "coco, imagefolder, pacs, scenes"),
        ("UnknownNameError", ("--split", "dev"), "train, val"),
        ("UnknownNameError", ("--teacher", "blip"), "more (`lfi teachers` lists them)"),
        ("UnknownNameError", ("--teacher", "coca_ViT-B-32:nope"), "laion2b_s13b_b90k"),
        ("UnknownNameError", ("--kind", "saliency"), "attention, contrastive, gradcam, gradcam_pooler"),
        ("ConfigError", ("--device", "tpu9"), "device must be auto"),
        ("UnknownNameError", ("--captions", "last"), "first, longest"),
        ("UnknownNameError", ("--views", "full,vflip"), "full, hflip"),
        ("ConfigError", ("--views", "hflip"), "must include 'full'"),
        ("ConfigError", ("--words", 0), "words must be 1 or more"),
        ("ConfigError", ("--kind", "attention", "--layers", "9"), "layers must be 1 to 2"),
    ],
)
def test_options_that_cannot_work(
    fails: Fails, scenes_root: Path, tmp_path: Path, kind: str, options: tuple[object, ...], words: str
) -> None:
    out = tmp_path / "shards"
    assert words in fails(kind, "extract-teacher", *scenes(scenes_root), *FEW, *options, "--out", out)
    assert not out.exists()


def test_a_data_root_that_is_missing_or_empty(fails: Fails, tmp_path: Path) -> None:
    common = ("extract-teacher", "--out", tmp_path / "shards", *FEW)
    missing = fails("DatasetError", *common, *scenes(tmp_path / "nowhere"))
    assert str(tmp_path / "nowhere") in missing
    assert "lfi make-scenes" in missing
    (tmp_path / "empty").mkdir()
    empty = fails("DatasetError", *common, *scenes(tmp_path / "empty"))
    assert "annotations/captions_val.json" in empty
    assert "found there: nothing" in empty


def test_a_data_root_without_images(fails: Fails, scenes_root: Path, tmp_path: Path) -> None:
    shutil.copytree(scenes_root / "annotations", tmp_path / "scenes" / "annotations")
    (tmp_path / "scenes" / "val").mkdir()
    message = fails("DatasetError", "extract-teacher", *scenes(tmp_path / "scenes"), *FEW, "--out", tmp_path / "shards")
    assert "is empty" in message


def test_captions_that_are_not_of_these_images(fails: Fails, scenes_root: Path, tmp_path: Path) -> None:
    root = tmp_path / "scenes"
    shutil.copytree(scenes_root, root)
    annotations = root / "annotations"
    shutil.copy(annotations / "captions_train.json", annotations / "captions_val.json")
    message = fails("DatasetError", "extract-teacher", *scenes(root), *FEW, "--out", tmp_path / "shards")
    assert "captions_val.json" in message
    assert "must list the same images" in message
    (annotations / "captions_val.json").write_text("{")
    assert "in JSON" in fails("DatasetError", "extract-teacher", *scenes(root), *FEW, "--out", tmp_path / "shards")


@pytest.mark.usefixtures("stand_in")
def test_an_image_without_a_caption(fails: Fails, scenes_root: Path, tmp_path: Path) -> None:
    root = tmp_path / "scenes"
    shutil.copytree(scenes_root, root)
    path = root / "annotations" / "captions_val.json"
    content = json.loads(path.read_text())
    content["annotations"] = [each for each in content["annotations"] if each["image_id"] != 5]
    path.write_text(json.dumps(content))
    message = fails("DatasetError", "extract-teacher", *scenes(root), *FEW, "--out", tmp_path / "shards")
    assert "000000000005 has no caption" in message


@pytest.mark.usefixtures("stand_in")
def test_an_output_that_holds_something_else(
    fails: Fails, lfi: Callable[..., Any], scenes_root: Path, tmp_path: Path
) -> None:
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("mine")
    common = ("extract-teacher", *scenes(scenes_root), *FEW)
    assert str(foreign) in fails("OutputExistsError", *common, "--out", foreign)
    assert [path.name for path in foreign.iterdir()] == ["thesis.txt"]

    assert lfi(*common, "--out", tmp_path / "shards").code == 0
    message = fails("SpecMismatchError", *common, "--kind", "gradcam_pooler", "--out", tmp_path / "shards")
    assert "kind" in message
    assert "gradcam_pooler" in message
