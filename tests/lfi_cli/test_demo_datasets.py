"""lfi datasets"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from lfi_pipeline.data import manifest_names
from tests.lfi_pipeline.data.layouts import make_imagefolder, make_pacs

Fails = Callable[..., str]


def test_all_are_listed_with_what_they_need(lfi: Callable[..., Any]) -> None:
    listed = lfi("datasets", "--json").json["datasets"]
    assert tuple(each["name"] for each in listed) == manifest_names()
    for each in listed:
        assert all(each[field] for field in ("title", "license", "homepage", "obtain", "needs", "splits", "teacher"))
    shown = lfi("datasets")
    assert shown.code == 0
    for name in manifest_names():
        assert f"\n{name} – " in f"\n{shown.out}"


def test_one_sheet(lfi: Callable[..., Any]) -> None:
    sheet = lfi("datasets", "pacs", "--json").json
    assert sheet["splits"] == ["train", "val", "test", "all"]
    assert "art_painting/<class>/*" in sheet["needs"]
    assert "<domain>_train_kfold.txt" in sheet["needs"]
    assert "found" not in sheet
    shown = lfi("datasets", "coco").out
    assert "annotations/captions_train2017.json" in shown
    assert "annotations_trainval2014.zip" in shown


def test_a_data_root_is_counted(lfi: Callable[..., Any], tmp_path: Path) -> None:
    make_pacs(tmp_path)
    found = lfi("datasets", "pacs", "--data-root", tmp_path, "--json").json["found"]
    assert {split: counts["samples"] for split, counts in found.items()} == {
        "train": 56,
        "val": 28,
        "test": 84,
        "all": 84,
    }
    assert found["train"]["classes"] == 7
    assert found["train"]["captions"] == 0
    assert found["val"]["domains"] == {"art_painting": 7, "cartoon": 7, "photo": 7, "sketch": 7}
    shown = lfi("datasets", "pacs", "--data-root", tmp_path).out
    assert "56 samples" in shown
    assert "cartoon 14" in shown


def test_captions_and_objects_are_counted(lfi: Callable[..., Any], scenes_root: Path) -> None:
    found = lfi("datasets", "scenes", "--data-root", scenes_root, "--json").json["found"]
    assert found["train"]["samples"] == 24
    assert found["train"]["captions"] >= 24
    assert found["train"]["objects"] >= 24


def test_a_split_that_is_not_there_is_told_beside_one_that_is(lfi: Callable[..., Any], tmp_path: Path) -> None:
    make_imagefolder(tmp_path, {"train": {"cat": 2}})
    ended = lfi("datasets", "imagefolder", "--data-root", tmp_path, "--json")
    assert ended.code == 0
    assert ended.json["found"]["train"]["samples"] == 2
    assert "must hold val/<class>" in ended.json["found"]["val"]["error"]


def test_a_folder_is_said_to_be_what_it_is(lfi: Callable[..., Any], fails: Fails, tmp_path: Path) -> None:
    make_imagefolder(tmp_path / "pets", {"train": {"cat": 12, "dog": 12}})
    found = lfi("datasets", tmp_path / "pets", "--json").json
    assert (found["layout"], found["val_share"]) == ("imagefolder", 0.1)
    assert sum(split["samples"] for split in found["splits"].values()) == 24
    shown = lfi("datasets", tmp_path / "pets").out
    assert "classes: cat, dog" in shown
    assert f"lfi extract-teacher --dataset {tmp_path / 'pets'} " in shown
    assert "Leave one out" in fails("ConfigError", "datasets", tmp_path / "pets", "--data-root", tmp_path)


def test_errors_are_clear(fails: Fails, tmp_path: Path) -> None:
    assert "Choices: celeba, coco" in fails("UnknownNameError", "datasets", "cocoo")
    assert "must hold train2017" in fails("DatasetError", "datasets", "coco", "--data-root", tmp_path)
    assert "needs the name" in fails("ConfigError", "datasets", "--data-root", tmp_path)
    assert "No such file" in fails("DatasetError", "datasets", tmp_path / "mine.toml")
