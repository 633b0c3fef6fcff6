from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from lfi_pipeline.core import hub as remote
from lfi_pipeline.core.errors import DatasetError
from lfi_pipeline.core.hub import mirrored
from lfi_pipeline.data import read_dataset
from lfi_pipeline.data.images import read_image
from tests.lfi_pipeline.data.layouts import image_bytes, tar_bytes


@pytest.fixture
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A file system in memory with two tars and a file that nobody wants, and a cache folder of the test's own."""
    monkeypatch.setenv("LFI_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(remote, "FIRST_WAIT", 0.0)
    system = fsspec.filesystem("memory")
    system.store.clear()
    for name, colour in (("train-00", 1), ("train-01", 2)):
        content = tar_bytes([("a.png", image_bytes((colour, 0, 0), "PNG")), ("a.txt", name.encode())])
        system.pipe(f"/bucket/set/{name}.tar", content)
    system.pipe("/bucket/set/large.bin", b"x")
    yield system
    system.store.clear()


def test_tars_behind_a_url_are_copied_once_and_read(memory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = read_dataset("memory://bucket/set", split="all")
    assert [sample.captions for sample in dataset.samples] == [("train-00",), ("train-01",)]
    assert read_image(dataset.root, dataset.samples[1].path)[0].getpixel((0, 0)) == (2, 0, 0)
    assert not list(dataset.root.rglob("*.bin"))
    assert not list(dataset.root.rglob("*.part"))
    opened: list[str] = []
    plain = type(memory).open
    monkeypatch.setattr(
        type(memory), "open", lambda self, path, *a, **k: opened.append(path) or plain(self, path, *a, **k)
    )
    assert read_dataset("webdataset", "memory://bucket/set", "train").samples[0].captions == ("train-00",)
    assert opened == []
    memory.pipe("/bucket/set/train-00.tar", tar_bytes([("b.png", image_bytes()), ("b.txt", b"another, and longer")]))
    memory.rm("/bucket/set/train-01.tar")
    again = read_dataset("memory://bucket/set", split="all")
    assert [sample.captions for sample in again.samples] == [("another, and longer",)]


def test_a_range_of_names(memory: Any) -> None:
    folder = mirrored("memory://bucket/set/train-{00..01}.tar")
    assert sorted(path.name for path in folder.glob("*.tar")) == ["train-00.tar", "train-01.tar"]
    with pytest.raises(DatasetError, match=r"train-02\.tar is not there"):
        mirrored("memory://bucket/set/train-{01..02}.tar")
    with pytest.raises(DatasetError, match="a range must be"):
        mirrored("memory://bucket/set/train-{09..01}.tar")


def test_what_fails_is_tried_again_and_then_told(memory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, fails = remote._copy, [2]

    def flaky(*arguments: Any) -> None:
        fails[0] -= 1
        if fails[0] >= 0:
            raise ConnectionError("reset by peer")
        plain(*arguments)

    monkeypatch.setattr(remote, "_copy", flaky)
    assert len(list(mirrored("memory://bucket/set").glob("*.tar"))) == 2
    fails[0] = 99
    with pytest.raises(DatasetError, match=r"train-00\.tar cannot be read: reset by peer"):
        mirrored("memory://bucket/set/train-{00..01}.tar")
    assert not list(remote.cache_folder().rglob("*.part"))


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("nonsense://x", "nonsense"),
        ("memory://bucket/absent", "is not there|found none"),
        ("memory://bucket/set/large.bin", "found none|not"),
    ],
)
def test_what_cannot_be_read_is_told(memory: Any, url: str, why: str) -> None:
    with pytest.raises(DatasetError, match=why):
        mirrored(url)
