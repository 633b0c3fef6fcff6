"""Splits read by the reader of their layout: what is looked at whatever the layout, counted and described."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lfi_pipeline.core.errors import DatasetError, UnknownNameError
from lfi_pipeline.data import Dataset, Instance, Manifest, Sample, SampleTable, describe, read_dataset
from lfi_pipeline.data.dataset import counterpart
from lfi_pipeline.data.manifest import LAYOUTS
from lfi_pipeline.data.readers import registry
from lfi_pipeline.data.readers.registry import expected_tree, summarize
from tests.lfi_pipeline.data.layouts import make_imagefolder, make_webdataset, write


def of(*samples: Sample, **more: Any) -> Dataset:
    return Dataset(name="own", root=Path(), split="train", samples=SampleTable(samples), **{"classes": (), **more})


def sample(key: str, *captions: str, labels: tuple[int, ...] = (), domain: str = "") -> Sample:
    return Sample(key=key, path=f"{key}.jpg", captions=captions, labels=labels, domain=domain, height=0, width=0)


def test_every_layout_has_a_reader_and_a_tree() -> None:
    assert registry._READERS.keys() == registry._TREES.keys() == LAYOUTS.keys()


@pytest.mark.parametrize(
    ("layout", "options", "splits", "expected"),
    [
        (
            "coco",
            {},
            {"train": {"images": "t", "captions": "c.json", "instances": "i.json"}, "val": {"images": "t"}},
            ("t/*", "c.json", "i.json"),  # what two splits share stands once
        ),
        (
            "imagefolder",
            {},
            {"train": {"folder": "t"}, "all": {"folder": "."}},
            ("t/<class>/**/*.jpg", "<class>/**/*.jpg"),
        ),
        ("images", {}, {"train": {"folder": "."}, "val": {"folder": "v"}}, ("**/*.jpg", "v/**/*.jpg")),
        ("parquet", {}, {"train": {"files": "data/train"}}, ("data/train*.parquet",)),
        ("webdataset", {}, {"train": {"tars": "a"}}, ("a/**/*.tar", "or a-*.tar", "classes.txt (optional)")),
        (
            "yolo",
            {"classes_file": "data.yaml"},
            {"train": {"images": "i", "labels": "l"}},
            ("i/**/*.jpg", "l/**/*.txt", "data.yaml"),
        ),
        (
            "table",
            {"path": "file", "label": "y", "partition": "parts.csv", "images": ["a", "."]},
            {"train": {"table": "list", "value": "0"}, "val": {"table": "list", "value": "1"}},
            ("list.csv or list.tsv or list.txt", "parts.csv", "a/<file>", "<file>"),
        ),
        (
            "pacs",
            {"domains": ["photo", "sketch"]},
            {"train": {"list": "{domain}_train.txt"}, "all": {}},
            ("photo/<class>/*", "sketch/<class>/*", "<domain>_train.txt"),
        ),
    ],
)
def test_the_expected_tree_has_a_line_for_each_pattern(
    layout: str, options: dict[str, Any], splits: dict[str, dict[str, str]], expected: tuple[str, ...]
) -> None:
    assert expected_tree(Manifest(name="own", layout=layout, options=options, splits=splits)) == expected


def test_a_summary_counts_what_there_is() -> None:
    box = Instance(label=0, bbox_xywh=(0, 0, 1, 1), segmentation=None)
    dataset = of(
        sample("a", "one", "two", labels=(0, 1), domain="photo"),
        sample("b", labels=(1,), domain="art"),
        sample("c", "three", domain="photo"),
        sample("d"),
        classes=("cat", "dog", "owl"),
        instances={"a": (box, box), "b": (box,)},
    )
    assert summarize(dataset) == {
        "samples": 4,
        "labelled": 2,
        "classes": 3,
        "captions": 3,
        "objects": 3,
        "domains": {"art": 1, "photo": 2},
    }


def test_samples_of_one_name_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a.jpg")
    manifest = write(tmp_path / "own.toml", 'name = "own"\nlayout = "images"\n[splits.train]\nfolder = "."\n')
    twice = replace(of(*map(sample, ["a", "b", "a", "c", "c"])), root=tmp_path)
    monkeypatch.setitem(registry._READERS, "images", lambda *_: twice)
    with pytest.raises(DatasetError, match=r"samples of own, train, must have names .*repeated: a, c\. Rename"):
        read_dataset(manifest, tmp_path)


def test_a_reader_that_the_system_fails_names_the_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> Dataset:
        raise PermissionError(13, "Permission denied", "a.jpg")

    make_imagefolder(tmp_path, {"train": {"cat": 1, "dog": 1}, "val": {"cat": 1, "dog": 1}})
    monkeypatch.setitem(registry._READERS, "imagefolder", fail)
    with pytest.raises(DatasetError, match=rf"Data root {tmp_path} cannot be read: .*Permission denied: 'a\.jpg'"):
        read_dataset(tmp_path)


def test_a_link_out_of_the_root_is_refused_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outside = write(tmp_path / "private.jpg")
    root = make_imagefolder(tmp_path / "root", {"train": {"cat": 2, "dog": 2}, "val": {"cat": 1, "dog": 1}})
    (root / "train/dog/linked.jpg").symlink_to(outside)
    with pytest.raises(DatasetError, match=r"^Images of folder, train: train/dog/linked\.jpg: must lie in .*follow"):
        read_dataset(root)
    assert len(read_dataset(root, split="val")) == 2
    monkeypatch.setenv("LFI_LINKS", "follow")
    assert len(read_dataset(root)) == 5


def test_images_without_a_text_are_noted_and_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make_webdataset(tmp_path, {"0.tar": {"a": {"jpg": None, "txt": "a"}, "b": {"jpg": None}, "c": {"jpg": None}}})
    with caplog.at_level(logging.WARNING):
        dataset = read_dataset(tmp_path, split="all")
    assert dataset.notes[-1] == "2 of 3 images have no caption"
    assert "folder, all: 2 of 3 images have no caption" in caplog.text
    write(tmp_path / "images/a.jpg")
    assert read_dataset(tmp_path / "images", split="all").notes == ("none of 1 images has a caption or a label",)
    labelled = of(sample("a", labels=(0,)), sample("b", labels=(0,)), classes=("cat",))
    assert registry._without_captions(labelled) == []
    assert registry._without_captions(replace(labelled, samples=SampleTable())) == []


def test_a_described_split_that_cannot_be_read_stands_beside_one_that_can(tmp_path: Path) -> None:
    make_imagefolder(tmp_path, {"train": {f"c{i:02d}": 1 for i in range(21)}, "val": {"c00": 1, "c01": 1}})
    outside = write(tmp_path.with_name(f"{tmp_path.name}-outside.jpg"))
    (tmp_path / "val/c00/linked.jpg").symlink_to(outside)
    text, found = describe(tmp_path)
    assert found["layout"] == "imagefolder"
    assert found["val_share"] is None
    assert "linked.jpg" in found["splits"]["val"]["error"]
    assert found["splits"]["train"]["names"] == [f"c{i:02d}" for i in range(20)]
    lines = text.splitlines()
    assert lines[1] == (
        "  train: 21 samples, 21 classes; the teacher reads prompts with the names of each image's classes"
    )
    assert lines[2].endswith("c18, c19, ...")
    assert lines[3].startswith("  val: Images of folder, val: val/c00/linked.jpg")
    assert len(lines) == 4


def test_a_split_that_a_folder_with_its_own_val_lacks_is_unknown(tmp_path: Path) -> None:
    make_imagefolder(tmp_path, {"train": {"cat": 1, "dog": 1}, "valid": {"cat": 1, "dog": 1}})
    with pytest.raises(UnknownNameError, match=r"split of folder 'all'\. .*Choices: train, val"):
        read_dataset(tmp_path, split="all")


def test_any_data_set_has_parts_to_validate_on(scenes_root: Path) -> None:
    train, part, rest = (read_dataset("scenes", scenes_root, split) for split in ("train", "val-0.25", "train-0.25"))
    assert {each.key for each in part.samples} | {each.key for each in rest.samples} == {e.key for e in train.samples}
    assert not {each.key for each in part.samples} & {each.key for each in rest.samples}
    assert 0 < len(part) < len(rest)
    assert (part.split, part.classes) == ("val-0.25", train.classes)
    assert [counterpart("val", split) for split in ("train-0.25", "train", "all")] == ["val-0.25", "val", "val"]
    assert counterpart("test", "train-0.25") == "test"
