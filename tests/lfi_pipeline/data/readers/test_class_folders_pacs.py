from __future__ import annotations

from pathlib import Path

import pytest

from lfi_pipeline.core.errors import DatasetError
from lfi_pipeline.data import read_dataset
from tests.lfi_pipeline.data.layouts import PACS_CLASSES, PACS_DOMAINS, make_pacs, write

PLACES = [("kfold", "kfold"), ("kfold", "pacs_label"), ("images", "splits"), (".", "."), ("PACS", "pacs_label")]


@pytest.mark.parametrize(("images", "lists"), PLACES)
def test_official_splits_wherever_images_and_lists_lie(tmp_path: Path, images: str, lists: str) -> None:
    make_pacs(tmp_path, images=images, lists=lists)
    train, val, test, whole = (read_dataset("pacs", tmp_path, split) for split in ("train", "val", "test", "all"))
    assert (len(train), len(val), len(test), len(whole)) == (56, 28, 84, 84)
    keys = {split.split: {sample.key for sample in split.samples} for split in (train, val, test, whole)}
    assert not keys["train"] & keys["val"]
    assert keys["train"] | keys["val"] == keys["test"] == keys["all"]
    prefix = "" if images == "." else f"{images}/"
    assert train.samples[0].path == f"{prefix}art_painting/dog/pic_001.jpg"
    assert train.samples[0].key == "art_painting/dog/pic_001"
    for dataset in (train, val, test, whole):
        assert dataset.classes == PACS_CLASSES
        assert dataset.prompts == ("an image of a {}.",)
        assert list(dict.fromkeys(sample.domain for sample in dataset.samples)) == list(PACS_DOMAINS)
        for sample in dataset.samples:
            assert (tmp_path / sample.path).is_file()
            domain, name, _ = sample.key.split("/")
            assert (sample.domain, dataset.classes[sample.labels[0]]) == (domain, name)


def test_without_lists_the_tree_is_read_as_a_whole(tmp_path: Path) -> None:
    make_pacs(tmp_path, lists=None)
    assert len(read_dataset("pacs", tmp_path, "all")) == 84
    with pytest.raises(DatasetError, match=r"art_painting_train_kfold\.txt.*found there: kfold/.*as split 'all'"):
        read_dataset("pacs", tmp_path, "train")


def test_lists_saved_on_another_system(tmp_path: Path) -> None:
    make_pacs(tmp_path)
    plain = list(read_dataset("pacs", tmp_path, "train").samples)
    for path in (tmp_path / "kfold").glob("*.txt"):
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b" \r\n") + b"\r\n\r\n")
    assert list(read_dataset("pacs", tmp_path, "train").samples) == plain


def test_an_image_that_the_official_lists_name_in_vain(tmp_path: Path) -> None:
    make_pacs(tmp_path)
    path = tmp_path / "kfold/sketch_train_kfold.txt"
    before = len(read_dataset("pacs", tmp_path, "train"))
    path.write_text(path.read_text() + "sketch/dog/n02103406_4068-1.png 1\n")
    assert len(read_dataset("pacs", tmp_path, "train")) == before
    write(tmp_path / "kfold/sketch/dog/n02103406_4068-1.png")
    assert len(read_dataset("pacs", tmp_path, "train")) == before + 1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("photo/dog/absent.jpg 1", r"photo_train_kfold\.txt, line 15: there is no image photo/dog/absent\.jpg"),
        ("photo/dog/pic_001.jpg 8", r"line 15: must be a path and a label from 1 to 7"),
        ("photo/dog/pic_001.jpg 0", r"line 15: must be a path and a label from 1 to 7"),
        ("photo/dog/pic_001.jpg one", "line 15: must be a path and a label"),
        ("photo/dog/pic_001.jpg", "line 15: must be a path and a label"),
        ("7", "line 15: must be a path and a label"),
        ("photo/dog/pic_001.jpg 2", r"line 15: label 2 is elephant, so the image must lie in photo/elephant/"),
        ("cartoon/dog/pic_001.jpg 1", "line 15: label 1 is dog, so the image must lie in photo/dog/"),
        ("/photo/dog/pic_001.jpg 1", "line 15: label 1 is dog"),
        ("photo/dog/../../../x.jpg 1", "line 15: label 1 is dog"),
        ("photo/dog/pic_001.jpg 1", "must have names of their own; repeated: photo/dog/pic_001"),
    ],
)
def test_a_line_that_does_not_fit_is_named(tmp_path: Path, line: str, message: str) -> None:
    make_pacs(tmp_path)
    path = tmp_path / "kfold/photo_train_kfold.txt"
    path.write_text(f"{path.read_text()}{line}\n")
    with pytest.raises(DatasetError, match=message):
        read_dataset("pacs", tmp_path, "train")


def test_what_is_missing_is_shown_beside_what_is_there(tmp_path: Path) -> None:
    with pytest.raises(
        DatasetError, match=r"art_painting/<class>/.*\(in one of \., kfold.*found there: nothing.*To obtain"
    ):
        read_dataset("pacs", tmp_path, "train")
    make_pacs(tmp_path)
    (tmp_path / "kfold/photo_train_kfold.txt").unlink()
    with pytest.raises(DatasetError, match=r"missing: photo_train_kfold\.txt"):
        read_dataset("pacs", tmp_path, "train")
    (tmp_path / "kfold/sketch/person").rename(tmp_path / "kfold/sketch/people")
    with pytest.raises(DatasetError, match=r"kfold/sketch must hold one folder for each class: dog.*found: .*people"):
        read_dataset("pacs", tmp_path, "all")
