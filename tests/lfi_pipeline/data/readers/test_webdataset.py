from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lfi_pipeline.core.errors import DatasetError
from lfi_pipeline.data import read_dataset
from lfi_pipeline.data.images import read_image
from tests.lfi_pipeline.data.layouts import image_bytes, make_webdataset, tar_bytes, write


def _one(root: Path, parts: dict[str, Any], *, split: str = "train") -> Any:
    make_webdataset(root, {f"{split}/0.tar": {"a": {"jpg": None, **parts}}})
    return read_dataset("webdataset", root, split)


def test_images_stay_in_the_tars_and_are_read_by_their_place(tmp_path: Path) -> None:
    red, blue = image_bytes((255, 0, 0), "PNG"), image_bytes((0, 0, 255), "PNG")
    make_webdataset(
        tmp_path,
        {
            "train/00001.tar": {"000010000": {"png": blue, "txt": "blue"}},
            "train/00000.tar": {
                "000000000": {"png": red, "txt": "a red\nthe red \n\n", "json": {"caption": "not this", "width": 512}},
                "dir/000000001": {
                    "JPG": None,
                    "json": {"caption": "from the record", "url": "http://x", "status": None},
                },
                "000000002": {"webp": b"not an image", "npy": b"1"},
            },
        },
    )
    dataset = read_dataset("webdataset", tmp_path, "train")
    assert [sample.key for sample in dataset.samples] == [
        "00000/000000000",
        "00000/dir/000000001",
        "00000/000000002",
        "00001/000010000",
    ]
    assert [sample.captions for sample in dataset.samples] == [
        ("a red", "the red"),
        ("from the record",),
        (),
        ("blue",),
    ]
    assert dataset.classes == ()
    first, last = dataset.samples[0], dataset.samples[-1]
    assert first.path.startswith("train/00000.tar#")
    assert first.path.endswith(f"+{len(red)}")
    assert read_image(dataset.root, first.path)[0].getpixel((0, 0)) == (255, 0, 0)
    assert read_image(dataset.root, last.path)[0].getpixel((0, 0)) == (0, 0, 255)


@pytest.mark.parametrize(
    ("tars", "split", "expected"),
    [
        (["train/a.tar", "val/a.tar"], "train", ["train/a.tar"]),
        (["train/x/a.tar", "train/b.tar"], "train", ["train/b.tar", "train/x/a.tar"]),
        (["train-0.tar", "train_1.tar", "train.tar", "training-0.tar", "val-0.tar"], "train", ["-0", ".", "_1"]),
        (["b.tar", "x/a.tar"], "all", ["b.tar", "x/a.tar"]),
        (["train-10.tar", "train-9.tar"], "train", ["train-10.tar", "train-9.tar"]),
    ],
)
def test_a_split_is_a_folder_or_a_beginning(tmp_path: Path, tars: list[str], split: str, expected: list[str]) -> None:
    make_webdataset(tmp_path, {tar: {"a": {"jpg": None}} for tar in tars})
    write(tmp_path / ".hidden.tar", b"")
    write(tmp_path / "notes.txt", b"")
    found = [sample.path.partition("#")[0] for sample in read_dataset("webdataset", tmp_path, split).samples]
    assert len(found) == len(expected)
    assert all(part in path for part, path in zip(expected, found, strict=True))


def test_numbers_as_labels(tmp_path: Path) -> None:
    samples = {"a": {"jpg": None, "cls": "2\n"}, "b": {"jpg": None, "json": {"label": [0, 2]}}, "c": {"jpg": None}}
    make_webdataset(tmp_path, {"train/0.tar": samples})
    dataset = read_dataset("webdataset", tmp_path, "train")
    assert dataset.classes == ("0", "1", "2")
    assert [sample.labels for sample in dataset.samples] == [(2,), (0, 2), ()]
    write(tmp_path / "classes.txt", "cat\r\ndog\r\nowl\r\n")
    assert read_dataset("webdataset", tmp_path, "train").classes == ("cat", "dog", "owl")
    write(tmp_path / "train/classnames.txt", "cat\ndog\n")  # nearer
    with pytest.raises(DatasetError, match=r"member 'a\.jpg': a label must be from 0 to 1, got 2"):
        read_dataset("webdataset", tmp_path, "train")


def test_names_as_labels_and_domains(tmp_path: Path) -> None:
    records = {"a": {"class": "dog", "domain": "art"}, "b": {"labels": ["cat", "dog"]}, "c": {"cls": "ant"}}
    make_webdataset(tmp_path, {"train/0.tar": {k: {"jpg": None, "json": record} for k, record in records.items()}})
    dataset = read_dataset("webdataset", tmp_path, "train")
    assert dataset.classes == ("ant", "cat", "dog")
    assert [sample.labels for sample in dataset.samples] == [(2,), (1, 2), (0,)]
    assert [sample.domain for sample in dataset.samples] == ["art", "", ""]
    write(tmp_path / "classes.txt", "dog\ncat\nant\nowl\n")
    dataset = read_dataset("webdataset", tmp_path, "train")
    assert dataset.classes == ("dog", "cat", "ant", "owl")
    assert [sample.labels for sample in dataset.samples] == [(0,), (0, 1), (2,)]
    write(tmp_path / "classes.txt", "dog\n")
    with pytest.raises(DatasetError, match=r"member 'b\.json': class 'cat' is not one of the 1 classes"):
        read_dataset("webdataset", tmp_path, "train")


def test_the_image_is_the_plain_extension(tmp_path: Path) -> None:
    make_webdataset(
        tmp_path, {"train/0.tar": {"a": {"seg.png": b"mask", "jpg": b"picture"}, "b": {"img.png": b"only"}}}
    )
    paths = [sample.path for sample in read_dataset("webdataset", tmp_path, "train").samples]
    assert [path.rpartition("+")[2] for path in paths] == ["7", "4"]
    for twice in ({"png": None}, {"jpeg": None}):
        with pytest.raises(DatasetError, match=r"sample 'a' must have one image, got a\.jpg, a\."):
            _one(tmp_path, twice)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"pkl": b"\x80\x04."}, r"member 'a\.pkl' is a pickle, which runs code"),
        ({"pickle": b""}, r"member 'a\.pickle' is a pickle"),
        ({"boxes.pyd": b""}, r"member 'a\.boxes\.pyd' is a pickle"),
        ({"json": "{"}, r"member 'a\.json' must be JSON"),
        ({"json": "[1]"}, r"member 'a\.json' must be a JSON object"),
        ({"json": "[" * 100_000}, r"member 'a\.json' must be JSON"),
        ({"json": '{"label": ' + "9" * 5000 + "}"}, r"member 'a\.json' must be JSON"),
        ({"json": {"caption": 3}}, r"member 'a\.json': a caption must be text or a list of texts, got 3"),
        ({"json": {"caption": ["x", None]}}, "a caption must be text"),
        ({"json": {"label": 1.5}}, "a label must be a number or a class name, got 1.5"),
        ({"json": {"label": True}}, "a label must be a number or a class name, got True"),
        ({"json": {"label": -1}}, "a label must be from 0 to"),
        ({"json": {"label": 10**9}}, "a label must be from 0 to"),
        ({"json": {"label": [1, "dog"]}}, "labels must all be numbers or all be names"),
        ({"json": {"domain": 3}}, "domain must be text, got 3"),
        ({"json": '{"caption": "\\ud800"}'}, "names and captions must be UTF-8"),
        ({"cls": "dog"}, r"member 'a\.cls' must be the number of a class, got 'dog'"),
        ({"cls": "-1"}, "must be the number of a class"),
        ({"txt": b"\xff\xfe"}, r"member 'a\.txt' must be text in UTF-8"),
        ({"txt": b"x" * (1 << 20) + b"x"}, r"member 'a\.txt' has 1048577 bytes"),
    ],
)
def test_members_that_do_not_fit_are_named(tmp_path: Path, parts: dict[str, Any], message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        _one(tmp_path, parts)


def test_captions_apart_from_their_images_are_not_lost_in_silence(tmp_path: Path) -> None:
    content = tar_bytes([("a.jpg", b"x"), ("b.jpg", b"y"), ("a.txt", b"caption of a")])
    write(tmp_path / "train/0.tar", content)
    with pytest.raises(DatasetError, match=r"0\.tar: member 'a\.txt' has no image next to it"):
        read_dataset("webdataset", tmp_path, "train")


def test_a_member_that_is_there_twice(tmp_path: Path) -> None:
    write(tmp_path / "train/0.tar", tar_bytes([("a.jpg", b"x"), ("a.jpg", b"y")]))
    with pytest.raises(DatasetError, match=r"member 'a\.jpg' is there twice"):
        read_dataset("webdataset", tmp_path, "train")
    write(tmp_path / "train/0.tar", tar_bytes([("a.jpg", b"x"), ("b.jpg", b"y"), ("a.jpg", b"z")]))
    with pytest.raises(DatasetError, match="names of their own; repeated: 0/a"):
        read_dataset("webdataset", tmp_path, "train")


def test_hidden_members_and_metadata_are_passed_over(tmp_path: Path) -> None:
    members = [("._a.jpg", b"x"), ("__MACOSX/a.jpg", b"x"), ("info.npy", b"x"), ("a.jpg", b"x"), ("a.__key__", b"a")]
    write(tmp_path / "train/0.tar", tar_bytes(members))
    assert [sample.key for sample in read_dataset("webdataset", tmp_path, "train").samples] == ["0/a"]


def test_what_is_not_there_is_shown(tmp_path: Path) -> None:
    write(tmp_path / "pictures/a.jpg")
    with pytest.raises(DatasetError, match=r"must hold tars in train/ or named train\*\.tar.*found there: pictures/"):
        read_dataset("webdataset", tmp_path, "train")
    write(tmp_path / "train/0.tar", tar_bytes([("a.npy", b"x")]))
    with pytest.raises(DatasetError, match="its 1 tars must hold images; found none"):
        read_dataset("webdataset", tmp_path, "train")
    write(tmp_path / "train/1.tar.gz", gzip.compress(tar_bytes([("a.jpg", b"x")])))
    with pytest.raises(DatasetError, match=r"1\.tar\.gz is compressed.*gunzip"):
        read_dataset("webdataset", tmp_path, "train")


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ({"0001.final.jpg": "", "0001.final.txt": "a"}, {"0001": ("a",)}),
        ({"0.caption.txt": "a", "0.image.jpg": ""}, {"0": ("a",)}),
        ({"a.jpg": "", "a.caption.txt": "a"}, {"a": ("a",)}),
        ({"a.jpg": "", "a.ocr.txt": "no", "a.txt": "a"}, {"a": ("a",)}),
        ({"a.jpg": "", "a.ocr.txt": "no", "a.caption.txt": "a"}, {"a": ("a",)}),
        (
            {"1.5mm.jpg": "", "1.5mm.txt": "a", "1.7mm.jpg": "", "1.7mm.txt": "b"},
            {"1.5mm": ("a",), "1.7mm": ("b",)},
        ),
        ({"a.v1.final.jpg": "", "a.v1.final.json": '{"caption": "a"}'}, {"a": ("a",)}),
        ({"a.jpg": "", "a.boxes.json": "[1]", "a.seg.png": ""}, {"a": ()}),
    ],
)
def test_captions_meet_their_images_by_either_rule(
    tmp_path: Path, members: dict[str, str], expected: dict[str, tuple[str, ...]]
) -> None:
    write(tmp_path / "train/0.tar", tar_bytes([(name, text.encode()) for name, text in members.items()]))
    dataset = read_dataset("webdataset", tmp_path, "train")
    assert {sample.key: sample.captions for sample in dataset.samples} == {f"0/{k}": v for k, v in expected.items()}


def test_images_without_a_caption_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make_webdataset(tmp_path, {"train/0.tar": {"a": {"jpg": None, "txt": "a"}, "b": {"jpg": None}}})
    assert read_dataset("webdataset", tmp_path, "train").notes == ("1 of 2 images have no caption",)
    assert "webdataset, train: 1 of 2 images have no caption" in caplog.text
    make_webdataset(tmp_path, {"train/0.tar": {"a": {"jpg": None}, "b": {"jpg": None}}})
    assert read_dataset("webdataset", tmp_path, "train").notes == ("none of 2 images has a caption or a label",)
    make_webdataset(tmp_path, {"train/0.tar": {"a": {"jpg": None, "cls": "0"}}})
    assert read_dataset("webdataset", tmp_path, "train").notes == ()


def test_tars_outside_of_the_root_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "secret.tar", tar_bytes([("a.jpg", b"x")]))
    (tmp_path / "data/train").mkdir(parents=True)
    (tmp_path / "data/train/0.tar").symlink_to(tmp_path / "secret.tar")
    with pytest.raises(DatasetError, match=r"train/0\.tar: must lie in .*data, and is a link to .*secret\.tar"):
        read_dataset("webdataset", tmp_path / "data", "train")


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)
FIELDS = st.sampled_from(
    ["caption", "captions", "text", "label", "labels", "cls", "class", "classes", "domain", "other"]
)


@settings(max_examples=120, deadline=None)
@given(record=st.dictionaries(FIELDS, VALUES, max_size=4))
def test_any_record_is_a_sample_or_a_dataset_error(
    tmp_path_factory: pytest.TempPathFactory, record: dict[str, Any]
) -> None:
    root = tmp_path_factory.mktemp("tars")
    write(root / "train/0.tar", tar_bytes([("a.jpg", b"x"), ("a.json", json.dumps(record).encode())]))
    try:
        dataset = read_dataset("webdataset", root, "train")
    except DatasetError:
        return
    (sample,) = dataset.samples
    assert all(isinstance(caption, str) and caption == caption.strip() != "" for caption in sample.captions)
    assert all(0 <= label < len(dataset.classes) for label in sample.labels)
