from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lfi_pipeline.data import listing_cache, read_dataset
from lfi_pipeline.data.readers import coco_listing
from tests.lfi_pipeline.data.layouts import make_coco

Counted = Callable[[], int]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_coco(tmp_path / "coco")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of the test's own, in which small listings are kept as well."""
    monkeypatch.setenv("LFI_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(listing_cache, "SMALLEST", 0)
    return tmp_path / "cache/listings"


@pytest.fixture
def parses(monkeypatch: pytest.MonkeyPatch) -> Counted:
    """Count how often files are parsed."""
    calls: list[int] = []
    write = coco_listing._Parser.write

    def counted(self: Any, parts: Any) -> Any:
        calls.append(1)
        return write(self, parts)

    monkeypatch.setattr(coco_listing._Parser, "write", counted)
    return lambda: len(calls)


def aged(root: Path) -> None:
    """Give annotation files a time of change that is not of now."""
    for path in root.glob("annotations/*.json"):
        os.utime(path, (1e9, 1e9))


def test_a_listing_is_parsed_once_and_is_the_same(root: Path, cache: Path, parses: Counted) -> None:
    aged(root)
    first = read_dataset("coco", root, "train")
    again = read_dataset("coco", root, "train")
    assert parses() == 1
    assert again.samples == first.samples
    assert dict(again.instances) == dict(first.instances)
    assert again.classes == first.classes
    assert read_dataset("coco", root, "val").samples != first.samples


def test_a_changed_file_is_parsed_again_and_a_touched_or_moved_one_is_not(
    root: Path, cache: Path, parses: Counted, tmp_path: Path
) -> None:
    aged(root)
    read_dataset("coco", root, "train")
    (root / "annotations/captions_train2017.json").touch()
    shutil.copytree(root, tmp_path / "copy")
    read_dataset("coco", root, "train")
    read_dataset("coco", tmp_path / "copy", "train")
    assert parses() == 1
    path = root / "annotations/captions_train2017.json"
    content = json.loads(path.read_text())
    content["annotations"][0]["caption"] = content["annotations"][0]["caption"].swapcase()  # of the same length
    path.write_text(json.dumps(content))
    found = read_dataset("coco", root, "train")
    assert parses() == 2
    assert any(content["annotations"][0]["caption"] in sample.captions for sample in found.samples)


@pytest.mark.parametrize("damage", ["cut", "gone", "nonsense", "deleted"])
def test_a_damaged_cache_is_made_again(root: Path, cache: Path, parses: Counted, damage: str) -> None:
    first = list(read_dataset("coco", root, "train").samples)  # a copy: the table lies in the file that is damaged
    (entry,) = [path for path in cache.iterdir() if path.is_dir()]
    if damage == "cut":
        os.truncate(entry / "samples.arrow", 100)
    elif damage == "gone":
        (entry / "objects.arrow").unlink()
    elif damage == "nonsense":
        (entry / "listing.json").write_text("[" * 1000)
    else:
        shutil.rmtree(cache)
    again = read_dataset("coco", root, "train")
    assert parses() == 2
    assert list(again.samples) == first
    assert not [path for path in cache.iterdir() if path.name.endswith(".tmp")]


def test_a_cache_that_cannot_be_written_is_done_without(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parses: Counted
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LFI_CACHE_DIR", str(tmp_path / "file/below"))
    monkeypatch.setattr(listing_cache, "SMALLEST", 0)
    dataset = read_dataset("coco", root, "train")
    assert parses() == 1
    key = dataset.samples[0].key
    assert dataset.instances[key][0].mask(dataset.samples[0].height, dataset.samples[0].width).any()


def test_small_files_leave_nothing(root: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing_cache, "SMALLEST", 1 << 23)
    read_dataset("coco", root, "train")
    assert not cache.exists()


def test_entries_that_nobody_used_for_long_are_forgotten(root: Path, cache: Path) -> None:
    read_dataset("coco", root, "train")
    for path in cache.iterdir():
        os.utime(path, (1e9, 1e9))
    read_dataset("coco", root, "val")
    assert len([path for path in cache.iterdir() if path.is_dir()]) == 1


def test_the_folder_is_where_the_system_keeps_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LFI_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert listing_cache.cache_folder() == tmp_path / "lfi"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert listing_cache.cache_folder() == tmp_path / "home/.cache/lfi"
