from __future__ import annotations

from pathlib import Path

import pytest

from lfi_pipeline.data import load_manifest, manifest, manifest_names, read_dataset
from lfi_pipeline.errors import DatasetError, UnknownNameError

COMPLETE = """
name = "toy"
title = "Toys"
license = "CC0"
homepage = "https://example.org"
obtain = "from the attic"
teacher = "scenes-coca"
layout = "coco"

[coco]
domain_field = "style"

[splits.train]
images = "pictures"
captions = "c.json"
instances = "i.json"
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(manifest, "_folder", lambda: tmp_path)
    return tmp_path


def test_shipped_manifests_are_complete() -> None:
    assert {"coco", "scenes"} <= set(manifest_names())
    for name in manifest_names():
        found = load_manifest(name)
        assert found.name == name
        assert found.license
        assert found.obtain
        assert found.teacher
        assert {"train", "val"} <= set(found.splits)
        for split in found.splits:
            assert set(found.files(split)) == {"images", "captions", "instances"}


def test_the_layout_of_coco_2017_is_the_published_one() -> None:
    files = load_manifest("coco").files("val")
    assert files["images"] == "val2017"
    assert files["captions"] == "annotations/captions_val2017.json"
    assert files["instances"] == "annotations/instances_val2017.json"


def test_the_table_named_like_the_layout_becomes_the_options(folder: Path) -> None:
    (folder / "toy.toml").write_text(COMPLETE, encoding="utf-8")
    found = load_manifest("toy")
    assert found.options == {"domain_field": "style"}
    assert found.files("train")["images"] == "pictures"


def test_without_such_a_table_there_are_no_options(folder: Path) -> None:
    (folder / "toy.toml").write_text(COMPLETE.replace("[coco]\ndomain_field", "[splits.val]\nimages"), encoding="utf-8")
    assert load_manifest("toy").options == {}


def test_names_are_those_of_the_toml_files_sorted(folder: Path) -> None:
    for name in ("b.toml", "a.toml", "README.md"):
        (folder / name).write_text("", encoding="utf-8")
    assert manifest_names() == ("a", "b")


def test_unknown_data_set_lists_choices_and_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match=r"'cocoo'.*Did you mean 'coco'.*Choices: coco.*scenes"):
        read_dataset("cocoo", tmp_path, "train")


def test_unknown_split_lists_choices(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match=r"split of scenes 'test'.*Choices: train, val"):
        read_dataset("scenes", tmp_path, "test")


@pytest.mark.parametrize(
    ("old", "new", "named"), [('license = "CC0"\n', "", "license"), ('title = "', 'colour = "', "colour")]
)
def test_a_lacking_or_unknown_field_is_named(folder: Path, old: str, new: str, named: str) -> None:
    (folder / "toy.toml").write_text(COMPLETE.replace(old, new), encoding="utf-8")
    with pytest.raises(DatasetError, match=rf"toy\.toml.*{named}"):
        load_manifest("toy")
