from __future__ import annotations

from pathlib import Path

import pytest

from lfi_pipeline.core.errors import DatasetError, UnknownNameError
from lfi_pipeline.data import SampleTable, read_dataset
from lfi_pipeline.data.images import read_image
from tests.lfi_pipeline.data.layouts import make_imagefolder, write


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_imagefolder(tmp_path, {"train": {"dog": 2, "cat": 1, "a-b": 1, "a": 1}, "val": {"dog": 1, "zebra": 1}})


def test_classes_are_folders_and_samples_come_in_order_of_their_paths(root: Path) -> None:
    dataset = read_dataset("imagefolder", root, "train")
    assert dataset.classes == ("a", "a-b", "cat", "dog", "zebra")
    assert [(sample.path, sample.key, sample.labels) for sample in dataset.samples] == [
        ("train/a-b/00000.jpg", "a-b/00000", (1,)),
        ("train/a/00000.jpg", "a/00000", (0,)),
        ("train/cat/00000.jpg", "cat/00000", (2,)),
        ("train/dog/00000.jpg", "dog/00000", (3,)),
        ("train/dog/00001.jpg", "dog/00001", (3,)),
    ]
    paths = [sample.path for sample in dataset.samples]
    assert paths == sorted(paths, key=str.encode)
    sample = dataset.samples[0]
    assert (sample.captions, sample.domain, sample.height, sample.width) == ((), "", 0, 0)
    assert dataset.prompts == ("a photo of a {}.",)
    assert isinstance(dataset.samples, SampleTable)
    assert read_image(root, sample.path)[0].size == (8, 8)


def test_labels_agree_between_splits(root: Path) -> None:
    train, val = (read_dataset("imagefolder", root, split) for split in ("train", "val"))
    assert train.classes == val.classes
    assert [sample.labels for sample in val.samples] == [(3,), (4,)]


def test_nested_folders_odd_names_and_litter(tmp_path: Path) -> None:
    names = ["x/deep/er/1.JPG", "x/Grüße 写真.jpeg", "x/b.png", "x/a b.webp"]
    litter = [
        "x/.DS_Store",
        "x/._1.jpg",
        "x/Thumbs.db",
        "x/notes.txt",
        "x/.hidden/1.jpg",
        "__MACOSX/x/1.jpg",
        ".git/1.jpg",
    ]
    for name in (*names, *litter):
        write(tmp_path / "train" / name, b"x")
    dataset = read_dataset("imagefolder", tmp_path, "train")
    assert dataset.classes == ("x",)
    assert {sample.path for sample in dataset.samples} == {f"train/{name}" for name in names}


def test_names_that_differ_by_extension_alone_keep_it(tmp_path: Path) -> None:
    for name in ("1.jpg", "1.png", "2.jpg", "3.jpg", "3.jpg.jpg"):
        write(tmp_path / "train/x" / name, b"x")
    keys = [sample.key for sample in read_dataset("imagefolder", tmp_path, "train").samples]
    assert keys == ["x/1.jpg", "x/1.png", "x/2", "x/3", "x/3.jpg.jpg"]


def test_without_folders_of_splits(tmp_path: Path) -> None:
    make_imagefolder(tmp_path, {"": {"cat": 1, "dog": 1}})
    dataset = read_dataset("imagefolder", tmp_path, "all")
    assert [(sample.key, sample.path) for sample in dataset.samples] == [
        ("cat/00000", "cat/00000.jpg"),
        ("dog/00000", "dog/00000.jpg"),
    ]
    with pytest.raises(DatasetError, match=r"must hold train/<class>/.*found there: cat/, dog/.*read as split 'all'"):
        read_dataset("imagefolder", tmp_path, "train")


def test_the_root_is_no_split_where_splits_have_folders(root: Path) -> None:
    with pytest.raises(DatasetError, match=r"folders of splits; ask for one: train, val"):
        read_dataset("imagefolder", root, "all")


def test_unlabelled_images(tmp_path: Path) -> None:
    for name in ("train/2.jpg", "train/1.jpg"):
        write(tmp_path / name)
    dataset = read_dataset("imagefolder", tmp_path, "train")
    assert dataset.classes == ()
    assert [(sample.key, sample.labels) for sample in dataset.samples] == [("1", ()), ("2", ())]


def test_links_inside_the_root_are_followed_and_circles_are_not(tmp_path: Path) -> None:
    make_imagefolder(tmp_path / "data/elsewhere", {"": {"cat": 2}})
    (tmp_path / "data/train").mkdir(parents=True)
    (tmp_path / "data/train/cat").symlink_to(tmp_path / "data/elsewhere/cat")
    assert len(read_dataset("imagefolder", tmp_path / "data", "train")) == 2
    (tmp_path / "data/elsewhere/cat/loop").symlink_to(tmp_path / "data/elsewhere")
    with pytest.raises(DatasetError, match="link to a folder above it"):
        read_dataset("imagefolder", tmp_path / "data", "train")


def test_what_does_not_fit_shows_both_sides(root: Path, tmp_path: Path) -> None:
    write(root / "train/stray.jpg")
    with pytest.raises(DatasetError, match=r"class folders or images, not both.*found there: a-b/, a/|a/, a-b/"):
        read_dataset("imagefolder", root, "train")
    (root / "test/empty").mkdir(parents=True)
    with pytest.raises(DatasetError, match=r"must hold class folders with images.*found there: empty/"):
        read_dataset("imagefolder", root, "test")
    (root / "test/empty").rmdir()
    with pytest.raises(DatasetError, match=r"must hold class folders with images.*found there: nothing"):
        read_dataset("imagefolder", root, "test")
    with pytest.raises(DatasetError, match=r"absent must be a directory.*SPLIT/CLASS"):
        read_dataset("imagefolder", tmp_path / "absent", "train")
    with pytest.raises(UnknownNameError, match="Choices: all, test, train, val"):
        read_dataset("imagefolder", root, "valid")


def test_names_that_are_not_utf8_are_refused(root: Path) -> None:
    (root / "train/dog/Gr\udcfc\udcdfe.jpg").write_bytes(b"x")
    with pytest.raises(DatasetError, match="file names must be UTF-8"):
        read_dataset("imagefolder", root, "train")


def test_splits_of_ones_own_manifest(tmp_path: Path) -> None:
    make_imagefolder(tmp_path, {"data/training": {"cat": 1}, "data/held out": {"dog": 1}})
    write(
        tmp_path / "birds.toml",
        'name = "birds"\ntitle = "B"\nlicense = "L"\nhomepage = "H"\nobtain = "O"\nteacher = "scenes-coca"\n'
        'layout = "imagefolder"\n[splits.train]\nfolder = "data/training"\n[splits.val]\nfolder = "data/held out"\n',
    )
    for name in ("birds", tmp_path / "birds.toml"):
        dataset = read_dataset(name, tmp_path, "val")
        assert (dataset.name, dataset.classes) == ("birds", ("cat", "dog"))
        assert [sample.path for sample in dataset.samples] == ["data/held out/dog/00000.jpg"]


def test_a_root_that_the_system_refuses(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"cannot be read: .*File name too long"):
        read_dataset("imagefolder", tmp_path / ("x" * 5000), "train")
