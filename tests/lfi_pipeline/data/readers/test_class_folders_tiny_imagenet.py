from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from lfi_pipeline.core.errors import DatasetError
from lfi_pipeline.data import read_dataset
from tests.lfi_pipeline.data.layouts import TINY_WORDS, make_tiny_imagenet

WNIDS = sorted(TINY_WORDS)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_tiny_imagenet(tmp_path)


def test_classes_follow_sorted_ids_and_are_called_by_their_first_synonym(root: Path) -> None:
    for split in ("train", "val"):
        assert read_dataset("tiny-imagenet", root, split).classes == ("goldfish", "Egyptian cat", "reel")


def test_training_images(root: Path) -> None:
    dataset = read_dataset("tiny-imagenet", root, "train")
    assert [(sample.path, sample.labels) for sample in dataset.samples] == [
        (f"train/{wnid}/images/{wnid}_{i}.JPEG", (label,)) for label, wnid in enumerate(WNIDS) for i in range(2)
    ]


def test_validation_images_by_their_list(root: Path) -> None:
    dataset = read_dataset("tiny-imagenet", root, "val")
    label_of = {f"val_{number}": WNIDS.index(wnid) for number, wnid in enumerate(TINY_WORDS)}
    assert {sample.key: sample.labels[0] for sample in dataset.samples} == label_of
    assert [sample.path for sample in dataset.samples] == [f"val/images/val_{i}.JPEG" for i in (2, 1, 0)]


def test_the_folder_above(tmp_path: Path) -> None:
    make_tiny_imagenet(tmp_path / "tiny-imagenet-200")
    assert read_dataset("tiny-imagenet", tmp_path, "val").samples[0].path == "tiny-imagenet-200/val/images/val_2.JPEG"


def test_a_validation_folder_that_was_sorted_into_classes(root: Path) -> None:
    for number, wnid in enumerate(TINY_WORDS):
        (root / f"val/{wnid}").mkdir()
        (root / f"val/images/val_{number}.JPEG").rename(root / f"val/{wnid}/val_{number}.JPEG")
    dataset = read_dataset("tiny-imagenet", root, "val")
    assert [(sample.key, sample.labels) for sample in dataset.samples] == [
        (f"{wnid}/val_{list(TINY_WORDS).index(wnid)}", (label,)) for label, wnid in enumerate(WNIDS)
    ]


def test_lists_saved_on_another_system(root: Path) -> None:
    plain = read_dataset("tiny-imagenet", root, "val")
    for name in ("wnids.txt", "words.txt", "val/val_annotations.txt"):
        path = root / name
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n") + b"\r\n")
    found = read_dataset("tiny-imagenet", root, "val")
    assert (found.samples, found.classes) == (plain.samples, plain.classes)


@pytest.mark.parametrize(
    ("name", "line", "message"),
    [
        ("wnids.txt", "goldfish", r"wnids\.txt, line 4: must be a WordNet id"),
        ("wnids.txt", "n01443537", r"wnids\.txt must hold each WordNet id once"),
        ("words.txt", "n00000001 no tab", r"words\.txt, line 6: must be a WordNet id, a tab"),
        ("words.txt", "n04067472\t", r"words\.txt must name every class; it has no words for n04067472"),
        ("val/val_annotations.txt", "val_0.JPEG\tn99999999\t0\t0\t1\t1", r"line 4: .*a WordNet id of wnids\.txt"),
        ("val/val_annotations.txt", "val_9.JPEG\tn01443537\t0\t0\t1\t1", r"line 4: there is no image val_9\.JPEG"),
        ("val/val_annotations.txt", "../../x.JPEG\tn01443537", r"line 4: there is no image \.\./"),
        ("val/val_annotations.txt", "val_0.JPEG", r"line 4: must be a file name, a tab"),
        ("val/val_annotations.txt", "val_0.JPEG\tn01443537", "repeated: val_0"),
    ],
)
def test_a_line_that_does_not_fit_is_named(root: Path, name: str, line: str, message: str) -> None:
    (root / name).write_text(f"{(root / name).read_text()}{line}\n")
    with pytest.raises(DatasetError, match=message):
        read_dataset("tiny-imagenet", root, "val")


def test_what_is_missing_is_shown_beside_what_is_there(root: Path, tmp_path: Path) -> None:
    (root / "val/val_annotations.txt").unlink()
    with pytest.raises(DatasetError, match=r"val must hold images/ and val_annotations\.txt.*found there: images/"):
        read_dataset("tiny-imagenet", root, "val")
    shutil.rmtree(root / "train/n04067472")
    with pytest.raises(DatasetError, match=r"one folder for each class: n01443537.*found: n01443537, n02124075\."):
        read_dataset("tiny-imagenet", root, "train")
    (root / "words.txt").unlink()
    with pytest.raises(
        DatasetError, match=r"must hold wnids\.txt, words\.txt, train .*found there: test/, train/, val/"
    ):
        read_dataset("tiny-imagenet", root, "train")
