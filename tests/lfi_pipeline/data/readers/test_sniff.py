"""Folders as six tools export them, read without a manifest."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lfi_pipeline.core.errors import DatasetError, ImageReadError, UnknownNameError
from lfi_pipeline.data import Dataset, describe, load_manifest, read_dataset, sniff_layout
from lfi_pipeline.data.dataset import part_of
from lfi_pipeline.data.images import file_of, read_image
from tests.lfi_pipeline.data.layouts import image_bytes, make_imagefolder, make_webdataset, tar_bytes, write

CATEGORIES = [{"id": 0, "name": "things", "supercategory": "none"}, {"id": 1, "name": "cup"}, {"id": 2, "name": "face"}]
OUTLINE = [[1, 1, 5, 1, 5, 5, 1, 5]]


def coco(names: list[str]) -> str:
    """An instances file of these images, the last of them without objects."""
    return json.dumps(
        {
            "images": [{"id": i, "file_name": name, "height": 8, "width": 8} for i, name in enumerate(names)],
            "annotations": [
                {"id": i, "image_id": i, "category_id": 1 + i % 2, "bbox": [1, 1, 4, 4], "segmentation": OUTLINE}
                for i in range(len(names) - 1)
            ],
            "categories": CATEGORIES,
        }
    )


def roboflow(root: Path) -> None:
    for split, count in (("train", 4), ("valid", 3), ("test", 2)):
        names = [f"img{i}_jpg.rf.{i:08x}.jpg" for i in range(count)]
        write(root / split / "_annotations.coco.json", coco(names))
        for name in names:
            write(root / split / name)
    write(root / "README.roboflow.txt", "exported")


def nested(root: Path) -> None:
    for split, count in (("train2017", 4), ("val2017", 3)):
        names = [f"site{i % 2}/cam0/00000.jpg" if i < 2 else f"site0/cam1/{i}.jpg" for i in range(count)]
        write(root / f"annotations/instances_{split}.json", coco(names))
        for name in names:
            write(root / split / name)


def cvat(root: Path) -> None:
    names = [f"frame_{i:06d}.png" for i in range(20)]
    write(root / "annotations/instances_default.json", coco(names))
    for name in names:
        write(root / "images/default" / name)


def label_studio(root: Path) -> None:
    names = [f"images\\{i:02d}-photo.jpg" for i in range(20)]
    write(root / "result.json", coco(names))
    for name in names:
        write(root / name.replace("\\", "/"))


def fiftyone(root: Path) -> None:
    names = [f"{i:06d}.jpg" for i in range(20)]
    write(root / "labels.json", coco(names))
    for name in names:
        write(root / "data" / name)


def yolo(root: Path) -> None:
    for split, count in (("train", 4), ("val", 3)):
        for i in range(count):
            write(root / f"images/{split}/{i}.jpg")
            if i < count - 1:
                write(root / f"labels/{split}/{i}.txt", f"{i % 2} 0.5 0.5 0.2 0.2\n1 0.1 0.1 0.3 0.1 0.3 0.4\n")
    write(root / "data.yaml", "path: .\ntrain: images/train\nval: images/val\nnames:\n  0: cup\n  1: face\n")


def parquet(root: Path) -> None:
    names = {"image": {"_type": "Image"}, "label": {"names": ["cup", "face"], "_type": "ClassLabel"}}
    for split, count in (("train", 4), ("validation", 3)):
        rows = [{"bytes": image_bytes((i, 0, 0), "PNG"), "path": f"{i}.png"} for i in range(count)]
        table = pa.table({"image": rows, "label": pa.array([0, 1, -1, 1][:count], pa.int64())})
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": names}})})
        path = root / f"data/{split}-00000-of-00001.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, path, row_group_size=2)


def sizes(root: Path) -> dict[str, int]:
    return {split: len(read_dataset(root, split=split)) for split in load_manifest(root).splits}


@pytest.mark.parametrize(
    ("make", "tool", "expected"),
    [
        (roboflow, "COCO by Roboflow", {"train": 4, "val": 3, "test": 2}),
        (nested, "COCO", {"train": 4, "val": 3}),
        (cvat, "COCO by CVAT", {"train": 18, "val": 2}),
        (label_studio, "COCO by Label Studio", {"train": 18, "val": 2}),
        (fiftyone, "COCO by FiftyOne", {"train": 18, "val": 2}),
        (yolo, "YOLO text files", {"train": 4, "val": 3}),
        (parquet, "Parquet files of Hugging Face datasets", {"train": 4, "val": 3}),
    ],
)
def test_an_export_is_known_and_read_without_a_manifest(
    tmp_path: Path, make: Callable[[Path], None], tool: str, expected: dict[str, int]
) -> None:
    make(tmp_path)
    assert sniff_layout(tmp_path).tool == tool
    for split, count in expected.items():
        dataset = read_dataset(tmp_path, split=split)
        if "val" in load_manifest(tmp_path).splits:
            assert len(dataset) == count
        for sample in dataset.samples:
            assert read_image(dataset.root, sample.path)[0].size == (8, 8)
        again = read_dataset("folder", tmp_path, dataset.split)  # as later stages ask for it
        assert again.samples == dataset.samples
        assert (again.name, again.split) == ("folder", split)
    train = read_dataset(tmp_path)
    assert {train.classes[label] for sample in train.samples for label in sample.labels} == {"cup", "face"}
    assert train.prompts == ("a photo of a {}.",)
    assert any(not sample.labels for split in expected for sample in read_dataset(tmp_path, split=split).samples)


def test_images_of_one_name_in_nested_folders_are_told_apart(tmp_path: Path) -> None:
    nested(tmp_path)
    keys = [sample.key for sample in read_dataset(tmp_path).samples]
    assert keys == ["site0/cam0/00000", "site1/cam0/00000", "2", "3"]


def test_yolo_beside_the_images_without_a_list_of_splits(tmp_path: Path) -> None:
    for i in range(6):
        write(tmp_path / f"{i}.jpg")
        write(tmp_path / f"{i}.txt", f"{i % 2} 0.5 0.5 0.2 0.2\n")
    write(tmp_path / "5.txt", "9 0.5 0.5 0.2 0.2\nnonsense\n")
    write(tmp_path / "classes.txt", "cup\nface\n")
    dataset = read_dataset(tmp_path, split="all")
    assert [sample.labels for sample in dataset.samples] == [(0,), (1,), (0,), (1,), (0,), ()]
    assert "2 lines left out" in dataset.notes[0]
    with pytest.raises(DatasetError, match="2 lines left out"):
        read_dataset(tmp_path, split="all", strict=True)


@pytest.mark.parametrize(
    ("content", "why"),
    [("names: 3", "'names'"), ("a: [", "YAML"), ("names: {0: a, 2: b}", "gap"), ("[" * 5000, "YAML")],
)
def test_a_yaml_that_lists_no_classes_is_named(tmp_path: Path, content: str, why: str) -> None:
    yolo(tmp_path)
    write(tmp_path / "data.yaml", content)
    with pytest.raises(DatasetError, match=rf"data\.yaml must .*{why}"):
        read_dataset(tmp_path)


def test_folders_of_dates_are_no_classes_and_folders_of_classes_are(tmp_path: Path) -> None:
    for name in ("2023/a.jpg", "2023/er/f.jpg", "2024/05/b.png", "2024-06-01/c.jpg", "100CANON/d.jpg"):
        write(tmp_path / "dates" / name)
        write(tmp_path / "split/train" / name)
    for root in (tmp_path / "dates", tmp_path / "split"):
        dataset = read_dataset(root, split="all")
        assert sniff_layout(root).layout == "images"
        assert (len(dataset), dataset.classes) == (5, ())
    make_imagefolder(tmp_path / "classes", {"": {"cat": 3, "n01440764": 2}})
    assert read_dataset(tmp_path / "classes").classes == ("cat", "n01440764")
    make_imagefolder(tmp_path / "splits", {"train": {"cat": 3, "dog": 2}, "valid": {"cat": 1, "dog": 1}})
    assert sizes(tmp_path / "splits") == {"train": 5, "val": 2}
    write(tmp_path / "one/photos/a.jpg")
    assert sniff_layout(tmp_path / "one").layout == "images"
    write(tmp_path / "flat/a.jpg")
    assert sniff_layout(tmp_path / "flat").layout == "images"


@pytest.mark.parametrize("tars", [["train-0.tar", "val-0.tar"], ["train/0.tar", "validation/0.tar"]])
def test_tars_of_webdataset(tmp_path: Path, tars: list[str]) -> None:
    make_webdataset(tmp_path, {name: {"a": {"jpg": None, "txt": "a"}, "b": {"jpg": None, "txt": "b"}} for name in tars})
    assert sizes(tmp_path) == {"train": 2, "val": 2}


@pytest.mark.parametrize("stray", ["backup.tar", "old/photos-2023.tar.gz", "labels.parquet"])
def test_a_backup_or_a_table_beside_images_hides_none_of_them(tmp_path: Path, stray: str) -> None:
    for name in ("a.jpg", "trip/b.jpg", "trip/c.jpg"):
        write(tmp_path / name)
    write(tmp_path / stray, b"not looked into")
    assert sniff_layout(tmp_path).layout == "images"
    assert sniff_layout(tmp_path).tool.endswith(f"{stray.rpartition('/')[2]} beside them is left alone")
    assert len(read_dataset(tmp_path, split="all")) == 3


@pytest.mark.parametrize("name", ["train.tar", "photos-000000.tar"])
def test_pictures_in_a_readme_hide_no_tar(tmp_path: Path, name: str) -> None:
    make_webdataset(tmp_path, {name: {"a": {"jpg": None, "txt": "a"}, "b": {"jpg": None, "txt": "b"}}})
    for i in range(3):
        write(tmp_path / f"assets/{i}.png")
    assert sniff_layout(tmp_path).layout == "webdataset"
    assert len(read_dataset(tmp_path, split="all")) == 2


def test_dotted_members_of_one_tar(tmp_path: Path) -> None:
    members = [(f"{i}.{part}", b"x") for i in range(6) for part in ("caption.txt", "image.jpg")]
    write(tmp_path / "shards-0.tar", tar_bytes(members))
    dataset = read_dataset(tmp_path, split="all")
    assert [sample.captions for sample in dataset.samples] == [("x",)] * 6


def keys(dataset: Dataset) -> set[str]:
    return {sample.key for sample in dataset.samples}


def test_the_share_to_validate_on_is_chosen_by_the_keys_alone(tmp_path: Path) -> None:
    for i in range(200):
        write(tmp_path / f"{i}.jpg", b"x")
    train, val, whole = (read_dataset(tmp_path, split=split) for split in ("train", "val", "all"))
    assert keys(train) | keys(val) == keys(whole)
    assert not keys(train) & keys(val)
    assert 8 <= len(val) <= 36
    more = read_dataset(tmp_path, split="val", val_share=0.3)
    assert keys(val) < keys(more)
    assert more.split == "val-0.3"
    assert read_dataset("folder", tmp_path, "val-0.3").samples == more.samples
    assert not keys(read_dataset(tmp_path, val_share=0.3)) & keys(more)
    assert read_dataset(tmp_path, val_share=0).split == "all"
    for i in range(200, 260):
        write(tmp_path / f"{i}.jpg", b"x")
    assert keys(val) <= keys(read_dataset(tmp_path, split="val"))
    with pytest.raises(DatasetError, match="val_share must be"):
        read_dataset(tmp_path, val_share=1.5)
    with pytest.raises(UnknownNameError, match="test"):
        read_dataset(tmp_path, split="test")


def test_a_part_of_few_images_has_one_and_of_one_there_is_none(tmp_path: Path) -> None:
    write(tmp_path / "a.jpg")
    with pytest.raises(DatasetError, match="2 images or more"):
        read_dataset(tmp_path)
    assert len(read_dataset(tmp_path, split="all")) == 1
    write(tmp_path / "b.jpg")
    whole = read_dataset(tmp_path, split="all")
    assert len(part_of(whole, "val", 1e-9)) == len(part_of(whole, "train", 1e-9)) == 1


def test_what_is_nothing_of_all_that_says_what_is_known(tmp_path: Path) -> None:
    write(tmp_path / "notes.json", "[1]")
    with pytest.raises(DatasetError, match=r"must be one of: COCO .*Parquet.*Found there: 'notes\.json'"):
        sniff_layout(tmp_path)
    with pytest.raises(DatasetError, match="is not there"):
        sniff_layout(tmp_path / "absent")
    with pytest.raises(DatasetError, match="needs its data root; got 'coco' alone"):
        read_dataset("coco")


def test_a_folder_is_described_for_people_and_machines(tmp_path: Path) -> None:
    cvat(tmp_path)
    text, found = describe(tmp_path)
    assert text.startswith(f"{tmp_path}: COCO by CVAT\n")
    assert "It has no validation split: val is 10% of the images" in text
    assert found["val_share"] == 0.1
    assert set(found["splits"]) == {"train", "val"}
    assert found["splits"]["train"]["text"] == "prompts"
    assert json.loads(json.dumps(found)) == found


def test_parquet_rows_are_images_that_links_do_not_lead_out_of(tmp_path: Path) -> None:
    parquet(tmp_path / "d")
    dataset = read_dataset(tmp_path / "d")
    assert [sample.labels for sample in dataset.samples] == [(0,), (1,), (), (1,)]
    assert [read_image(dataset.root, sample.path)[0].getpixel((0, 0))[0] for sample in dataset.samples] == [0, 1, 2, 3]  # type: ignore[index]
    path = dataset.samples[0].path
    assert file_of(path) == "data/train-00000-of-00001.parquet"
    for odd in (path.replace(":0", ":99"), path.replace("#image", "#other"), path.replace("#image", "#label")):
        with pytest.raises(ImageReadError):
            read_image(dataset.root, odd)
    write(tmp_path / "d/data/train-00000-of-00001.parquet", b"PAR1 nonsense")
    with pytest.raises(ImageReadError):
        read_image(dataset.root, path)
    with pytest.raises(DatasetError, match="Parquet files cannot be read"):
        read_dataset(tmp_path / "d")


@pytest.mark.parametrize(
    ("column", "values", "expected"),
    [
        ("text", ["a", "b"], [("a",), ("b",)]),
        ("captions", [["a", " "], None], [("a",), ()]),
        ("label", ["dog", "cat"], [(1,), (0,)]),
        ("labels", [[1, 0], []], [(0, 1), ()]),
    ],
)
def test_captions_and_labels_of_parquet(tmp_path: Path, column: str, values: list[Any], expected: list[Any]) -> None:
    buffer = io.BytesIO()
    pq.write_table(pa.table({"picture": [image_bytes(), image_bytes()], column: values}), buffer)
    write(tmp_path / "all.parquet", buffer.getvalue())
    found = read_dataset(tmp_path, split="all").samples
    assert [sample.captions if column in ("text", "captions") else sample.labels for sample in found] == expected
