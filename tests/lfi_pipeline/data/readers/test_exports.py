"""YOLO's text files and Parquet folders, read as a manifest of one's own describes them."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lfi_pipeline.core.errors import DatasetError, UnknownNameError
from lfi_pipeline.data import Manifest, read_dataset
from lfi_pipeline.data.images import read_image
from lfi_pipeline.data.readers.exports import read_parquet, read_yolo
from tests.lfi_pipeline.data.layouts import image_bytes, write


def yolo(**options: str) -> Manifest:
    return Manifest(
        name="own", layout="yolo", options=options, splits={"train": {"images": "img/train", "labels": "txt/train"}}
    )


def parquet(files: str = "data/train") -> Manifest:
    return Manifest(name="own", layout="parquet", splits={"train": {"files": files}})


def write_table(path: Path, columns: dict[str, Any], names: list[str] | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table(columns)
    if names is not None:
        features = {"label": {"names": names, "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path)


def test_labels_of_yolo_are_found_by_the_name_of_the_image_in_its_folder(tmp_path: Path) -> None:
    for name in ("b.jpg", "a.v2.png", "deep/b.jpg", "empty.jpg", "none.jpg"):
        write(tmp_path / "img/train" / name)
    write(tmp_path / "txt/train/a.v2.txt", "\n2 0.5 0.5 1 1\n0 0 0 1 1\n2 0 0 1 0 1 1\n")
    write(tmp_path / "txt/train/deep/b.txt", "1 0.5 0.5 1 1")
    write(tmp_path / "txt/train/b.txt", "-1 0.5 0.5 1 1\n1.0 0 0 1 1\n")
    write(tmp_path / "txt/train/empty.txt", "")
    found = read_yolo(yolo(), tmp_path, "train")
    assert {sample.path: sample.labels for sample in found.samples} == {
        "img/train/a.v2.png": (0, 2),
        "img/train/b.jpg": (),
        "img/train/deep/b.jpg": (1,),
        "img/train/empty.jpg": (),
        "img/train/none.jpg": (),
    }
    assert [sample.key for sample in found.samples] == ["a.v2", "b", "deep/b", "empty", "none"]
    assert found.classes == ("0", "1", "2")  # no list: as many as there are numbers
    assert found.notes == (
        "train: 2 lines left out, that begin with no class of the list "
        "(b.txt, line 1: '-1 0.5 0.5 1 1', b.txt, line 2: '1.0 0 0 1 1')",
    )


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("data.yaml", "names: [cup, 7, face]"),
        ("data.yml", "nc: 3\nnames:\n  2: face\n  0: cup\n  1: 7\n"),
        ("obj.names", "cup\n\n 7 \nface"),
    ],
)
def test_names_of_yolo_come_from_yaml_or_a_line_each(tmp_path: Path, file: str, content: str) -> None:
    write(tmp_path / "img/train/a.jpg")
    write(tmp_path / "txt/train/a.txt", "2 0 0 1 1\n3 0 0 1 1\n")
    write(tmp_path / file, content)
    found = read_yolo(yolo(classes_file=file), tmp_path, "train")
    assert found.classes == ("cup", "7", "face")
    assert found.samples[0].labels == (2,)
    assert "1 lines left out" in found.notes[0]


def test_what_yolo_lacks_is_told_with_what_is_there(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="absent must be a directory"):
        read_yolo(yolo(), tmp_path / "absent", "train")
    write(tmp_path / "img/train/notes.md", "x")
    with pytest.raises(DatasetError, match=r"must hold img/train/ and txt/train/ .*found there: img/\."):
        read_yolo(yolo(), tmp_path, "train")
    write(tmp_path / "txt/train/a.txt", "0 0 0 1 1")
    with pytest.raises(DatasetError, match=r"must hold images .*found there: notes\.md"):
        read_yolo(yolo(), tmp_path, "train")
    with pytest.raises(UnknownNameError, match="split of own 'val'"):
        read_yolo(yolo(), tmp_path, "val")


def test_rows_of_several_parquet_files_are_samples_in_order(tmp_path: Path) -> None:
    pictures = [image_bytes((i, 0, 0), "PNG") for i in range(3)]
    write_table(
        tmp_path / "data/train-00001.parquet", {"label": [2, None], "png": pictures[1:]}, ["cup", "face", "owl"]
    )
    write_table(tmp_path / "data/train-00000.parquet", {"label": [-1], "png": pictures[:1]}, ["cup", "face", "owl"])
    write_table(tmp_path / "data/training-0.parquet", {"label": [0], "png": pictures[:1]})  # of another split
    write_table(tmp_path / "data/.train-2.parquet", {"label": [0], "png": pictures[:1]})
    found = read_parquet(parquet(), tmp_path, "train")
    assert [sample.key for sample in found.samples] == [
        "data/train-00000/00000000",
        "data/train-00001/00000000",
        "data/train-00001/00000001",
    ]
    assert [sample.labels for sample in found.samples] == [(), (2,), ()]
    assert found.classes == ("cup", "face", "owl")
    assert [read_image(tmp_path, sample.path)[0].getpixel((0, 0)) for sample in found.samples] == [
        (i, 0, 0) for i in range(3)
    ]


def test_columns_of_parquet_are_chosen_by_name_and_form(tmp_path: Path) -> None:
    columns = {
        "thumbnail": [b"x"],
        "image": ["a name, no picture"],
        "photo": [{"bytes": image_bytes(), "path": "a.jpg"}],
        "notes": ["never a caption"],
        "text": ["second"],
        "caption": [[" first ", ""]],
        "score": [3],
    }
    write_table(tmp_path / "data/train.parquet", columns)
    found = read_parquet(parquet(), tmp_path, "train")
    assert found.samples[0].captions == ("first",)
    assert found.samples[0].labels == ()
    assert found.classes == ()
    assert "#photo" in found.samples[0].path
    del columns["photo"]
    write_table(tmp_path / "data/train.parquet", columns)
    assert "#thumbnail" in read_parquet(parquet(), tmp_path, "train").samples[0].path  # any of that form


def test_classes_of_parquet_without_names_are_numbers_or_sorted_texts(tmp_path: Path) -> None:
    picture = image_bytes()
    write_table(tmp_path / "data/train.parquet", {"image": [picture] * 3, "labels": [[4, 1, 4], None, []]})
    found = read_parquet(parquet(), tmp_path, "train")
    assert found.classes == ("0", "1", "2", "3", "4")
    assert [sample.labels for sample in found.samples] == [(1, 4), (), ()]
    write_table(tmp_path / "data/train.parquet", {"image": [picture] * 2, "class": [["owl", "cup"], ["eel", "owl"]]})
    found = read_parquet(parquet(), tmp_path, "train")
    assert found.classes == ("cup", "eel", "owl")
    assert [sample.labels for sample in found.samples] == [(0, 2), (1, 2)]


@pytest.mark.parametrize(
    ("columns", "told"),
    [
        ({"image": ["a.jpg"], "label": [0]}, r"must have a column of images .*its columns: image, label\."),
        ({"image": [b"x"], "label": [2]}, r"row 0: a label must be a name or the number of a class, got 2\."),
        ({"image": [b"x"], "label": [-2]}, r"row 0: .* got -2\."),
    ],
)
def test_parquet_of_another_form_is_refused(tmp_path: Path, columns: dict[str, Any], told: str) -> None:
    with pytest.raises(DatasetError, match=r"must hold data/train\*\.parquet"):
        read_parquet(parquet(), tmp_path, "train")
    write_table(tmp_path / "data/train.parquet", columns, ["cup", "face"])
    with pytest.raises(DatasetError, match=rf"data/train\.parquet.* {told}$"):
        read_parquet(parquet(), tmp_path, "train")


def photos(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"not decoded here")


def captions_of(root: Path) -> dict[str, tuple[str, ...]]:
    return {sample.path: sample.captions for sample in read_dataset(root, split="all").samples}


def test_captions_lie_beside_images_as_text(tmp_path: Path) -> None:
    photos(tmp_path, "a.jpg", "trip/b.final.png", "c.jpg", "d.jpg")
    (tmp_path / "a.txt").write_text("\ufeffa dog\n\n two cats \n", encoding="utf-8")
    (tmp_path / "trip/b.final.caption").write_text("an owl")
    (tmp_path / "c.txt").write_text("0 0.5 0.5 0.2 0.2\n1 .1 .1 .3 .3\n")  # labels of another tool
    (tmp_path / "readme.txt").write_text("of no image")
    assert captions_of(tmp_path) == {
        "a.jpg": ("a dog", "two cats"), "c.jpg": (), "d.jpg": (), "trip/b.final.png": ("an owl",),
    }  # fmt: skip
    notes = read_dataset(tmp_path, split="all").notes
    assert "1 text files left out, that hold numbers and no caption (c.txt)" in notes[0]
    assert "2 of 4 images" in notes[1]


@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_captions_lie_in_the_metadata_of_a_folder(tmp_path: Path, form: str) -> None:
    photos(tmp_path, "a.jpg", "trip/b.jpg")
    (tmp_path / "a.txt").write_text("not read where there is metadata")
    rows = [("a.jpg", 'a "small", dog'), ("./trip\\b.jpg", "two cats"), ("gone.jpg", "an owl")]
    if form == "csv":
        with (tmp_path / "metadata.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("file_name", "text"), *rows])
    else:
        lines = [json.dumps({"file_name": name, "caption": [text]}) for name, text in rows]
        (tmp_path / "metadata.jsonl").write_text("\n".join(lines) + "\n\n")
    assert captions_of(tmp_path) == {"a.jpg": ('a "small", dog',), "trip/b.jpg": ("two cats",)}
    (note,) = read_dataset(tmp_path, split="all").notes
    assert f"1 captions of metadata.{form} left out, of an image that is not there (gone.jpg)" in note


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("metadata.jsonl", '{"file_name": "a.jpg", "text": "a dog"}\n{"file_name": 3}', r"line 2: a record must have"),
        ("metadata.jsonl", '{"file_name": "a.jpg", "text": "a dog"', r"metadata\.jsonl, line 1 must be JSON"),
        ("metadata.jsonl", '{"file_name": "a.jpg", "text": {"a": 1}}', r"line 1: captions must be text, got"),
        ("metadata.csv", "name,text\na.jpg,a dog\n", r"line 2: a record must have file_name"),
        ("metadata.csv", 'file_name,text\na.jpg,"' + "x" * 200_000 + '"\n', r"must be CSV .* field larger than"),
        ("a.txt", "x" * (1 << 17), r"a\.txt"),
    ],
)
def test_captions_that_cannot_be_read_are_named(tmp_path: Path, name: str, content: str, message: str) -> None:
    photos(tmp_path, "a.jpg", "b.jpg")
    (tmp_path / name).write_text(content)
    with pytest.raises(DatasetError, match=message):
        read_dataset(tmp_path, split="all")
