from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from lfi_pipeline.core.errors import DatasetError
from lfi_pipeline.data import read_dataset
from tests.lfi_pipeline.data.layouts import VLCS_CLASSES, VLCS_DOMAINS, make_vlcs


@pytest.mark.parametrize("folder", [".", "VLCS"])
def test_the_tree_of_domain_bed(tmp_path: Path, folder: str) -> None:
    make_vlcs(tmp_path, folder=folder)
    dataset = read_dataset("vlcs", tmp_path, "all")
    assert dataset.classes == VLCS_CLASSES
    assert len(dataset) == 20
    prefix = "" if folder == "." else "VLCS/"
    first = dataset.samples[0]
    assert (first.path, first.key) == (f"{prefix}Caltech101/bird/img_0.jpg", "Caltech101/bird/img_0")
    assert (first.domain, first.labels) == ("Caltech101", (0,))
    with pytest.raises(
        DatasetError, match=r"the official release, CALTECH/train/.*found there: Caltech101/.*split 'all'"
    ):
        read_dataset("vlcs", tmp_path, "train")


def test_the_official_release_has_splits_and_the_same_names(tmp_path: Path) -> None:
    make_vlcs(tmp_path, official=True)
    parts = {"train": "train", "val": "crossval", "test": "test", "all": "full"}
    for split, part in parts.items():
        dataset = read_dataset("vlcs", tmp_path, split)
        assert len(dataset) == (60 if split == "all" else 20)
        assert dataset.classes == VLCS_CLASSES
        assert list(dict.fromkeys(sample.domain for sample in dataset.samples)) == list(VLCS_DOMAINS)
        for sample in dataset.samples:
            assert (tmp_path / sample.path).is_file()
            assert sample.path.startswith(f"VLCS/{VLCS_DOMAINS[sample.domain]}/{part}/{sample.labels[0]}/")


def test_a_small_split_may_lack_a_class_but_knows_no_other(tmp_path: Path) -> None:
    make_vlcs(tmp_path, official=True)
    shutil.rmtree(tmp_path / "VLCS/SUN/test/3")
    assert len(read_dataset("vlcs", tmp_path, "test")) == 19
    (tmp_path / "VLCS/SUN/test/4").rename(tmp_path / "VLCS/SUN/test/5")
    with pytest.raises(DatasetError, match=r"SUN/test must hold one folder for each class: 0, 1, 2, 3, 4; found: .*5"):
        read_dataset("vlcs", tmp_path, "test")


def test_neither_tree(tmp_path: Path) -> None:
    (tmp_path / "CALTECH").mkdir()
    with pytest.raises(
        DatasetError, match=r"Caltech101/<class>/.*or the official CALTECH/full/0\.\.4/.*there: CALTECH/"
    ):
        read_dataset("vlcs", tmp_path, "all")
    make_vlcs(tmp_path)
    (tmp_path / "VLCS/SUN09/dog").rename(tmp_path / "VLCS/SUN09/dogs")
    with pytest.raises(DatasetError, match=r"SUN09 must hold one folder for each class: bird.*found: .*dogs"):
        read_dataset("vlcs", tmp_path, "all")
