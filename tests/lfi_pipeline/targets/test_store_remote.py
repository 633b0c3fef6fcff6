"""A cache that lies in an object store is copied once, and read from the copy."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from lfi_pipeline.core import hub
from lfi_pipeline.core.errors import CorruptTargetsError, DatasetError
from lfi_pipeline.core.hub import url_of
from lfi_pipeline.targets import TargetStore
from lfi_pipeline.targets.pack import pack
from lfi_pipeline.targets.verify import verify


@pytest.fixture(autouse=True)
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(hub, "cache_folder", lambda: tmp_path / "home")
    monkeypatch.setattr(hub, "FIRST_WAIT", 0.0)
    return tmp_path / "home"


@pytest.fixture
def remote(tiny_targets: Path, tmp_path: Path) -> Path:
    """A copy of a cache, free to be damaged, behind a file:// URL."""
    return Path(shutil.copytree(tiny_targets, tmp_path / "bucket" / "shards"))


def test_a_cache_behind_a_url_is_the_cache(remote: Path, tiny_targets: Path, cache_folder: Path) -> None:
    store, local = TargetStore.open(remote.as_uri()), TargetStore.open(tiny_targets)
    assert store.spec == local.spec
    assert store.path.is_relative_to(cache_folder)
    assert (store.read_many(local.usable).maps == local.read_many(local.usable).maps).all()
    assert verify(store.path, images=False) == []
    assert TargetStore.open(Path(remote.as_uri())).path == store.path  # an option that is a path loses a slash


def test_a_cache_in_tars_holds_its_images_too(tiny_targets: Path, scenes_root: Path, tmp_path: Path) -> None:
    pack(tiny_targets, tmp_path / "tars", layout="webdataset", data_root=scenes_root)
    store, local = TargetStore.open((tmp_path / "tars").as_uri()), TargetStore.open(tiny_targets)
    assert store.layout == "webdataset"
    assert (store.read_many(local.usable).maps == local.read_many(local.usable).maps).all()


def test_what_is_there_is_not_fetched_again(remote: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched: list[str] = []
    copy = hub._copy

    def counted(system: Any, source: str, scratch: Path, size: int | None) -> None:
        fetched.append(Path(source).name)
        copy(system, source, scratch, size)

    monkeypatch.setattr(hub, "_copy", counted)
    (remote / "notes.pkl").write_bytes(b"not ours")
    TargetStore.open(remote.as_uri())
    assert "manifest.json" in fetched
    assert "notes.pkl" not in fetched
    fetched.clear()
    TargetStore.open(remote.as_uri())
    assert fetched == []


def test_a_damaged_copy_is_told_as_any_other(remote: Path) -> None:
    commit = next((remote / "commits").iterdir())
    commit.write_bytes(commit.read_bytes()[:-20] + b"x" * 20)
    with pytest.raises(CorruptTargetsError):
        TargetStore.open(remote.as_uri())


def test_a_url_with_nothing_behind_it_says_so(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match="or be a cache of targets; found none there"):
        TargetStore.open((tmp_path / "empty").as_uri())


@pytest.mark.parametrize(
    ("place", "url"),
    [
        ("s3://bucket/shards", "s3://bucket/shards"),
        (Path("s3://bucket/shards"), "s3://bucket/shards"),
        (Path("https://host/a/b"), "https://host/a/b"),
        (Path("file:///data/a"), "file:///data/a"),
        ("shards", None),
        (Path("/data/shards"), None),
        ("c:/shards", None),  # a drive of one letter
    ],
)
def test_what_is_a_url(place: str | Path, url: str | None) -> None:
    assert url_of(place) == url
