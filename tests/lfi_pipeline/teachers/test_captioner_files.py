"""Captions that the teacher writes are written once, shared out, and belong to one data set and teacher."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lfi_pipeline.core.errors import CorruptTargetsError, IncompleteTargetsError, SpecMismatchError
from lfi_pipeline.data import Dataset, read_dataset
from lfi_pipeline.targets import TargetStore
from lfi_pipeline.teachers import CocaTeacher
from lfi_pipeline.teachers import captioner as captioning
from lfi_pipeline.teachers import extract as job
from lfi_pipeline.teachers.captioner import UNREADABLE, generated_captions
from lfi_pipeline.teachers.config import ExtractConfig
from lfi_pipeline.teachers.extract import extract
from lfi_pipeline.teachers.shards import ShardAssignment


class Writing:
    """The tiny teacher, which says of every image whether it is bright."""

    def __init__(self, teacher: CocaTeacher) -> None:
        self.teacher, self.images = teacher, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.teacher, name)

    def generate(self, images: Tensor) -> list[str]:
        self.images += len(images)
        return [f"a {'bright' if image.mean() > 0.5 else 'dark'} scene" for image in images]


@pytest.fixture
def teacher(tiny_teacher: CocaTeacher, monkeypatch: pytest.MonkeyPatch) -> Writing:
    monkeypatch.setattr(captioning, "CHUNK", 10)
    return Writing(tiny_teacher)


@pytest.fixture
def dataset(scenes_root: Path) -> Dataset:
    return read_dataset("scenes", scenes_root, "train")


@pytest.fixture
def write(teacher: Writing, dataset: Dataset, tmp_path: Path) -> Callable[..., dict[str, str]]:
    def written(share: ShardAssignment | None = None, of: Dataset = dataset) -> dict[str, str]:
        return generated_captions(
            teacher,  # type: ignore[arg-type]
            of,
            tmp_path / "targets",
            batch_size=4,
            share=share or ShardAssignment(),
            poll_seconds=0,
        )

    return written


def test_every_image_gets_a_caption_once(
    write: Callable[..., dict[str, str]], teacher: Writing, dataset: Dataset
) -> None:
    captions = write()
    assert list(captions) == [sample.key for sample in dataset.samples]
    assert set(captions.values()) <= {"a bright scene", "a dark scene"}
    assert teacher.images == 24
    assert write() == captions
    assert teacher.images == 24


def test_ranges_write_their_pieces_and_say_what_is_missing(
    write: Callable[..., dict[str, str]], teacher: Writing
) -> None:
    with pytest.raises(IncompleteTargetsError, match=r"captions of 1 of 3 pieces.*other `shards` ranges"):
        write(ShardAssignment(first=1, end=2))
    assert teacher.images == 10
    assert len(write()) == 24
    assert teacher.images == 24


def test_captions_of_another_split_are_refused(
    write: Callable[..., dict[str, str]], scenes_root: Path, tmp_path: Path
) -> None:
    write()
    with pytest.raises(SpecMismatchError, match=r"'train' != 'val'"):
        write(of=read_dataset("scenes", scenes_root, "val"))


def test_a_damaged_piece_is_refused(write: Callable[..., dict[str, str]], tmp_path: Path) -> None:
    write()
    piece = tmp_path / "targets.captions/000001.json"
    piece.write_bytes(piece.read_bytes().replace(b"bright", b"blight").replace(b"dark", b"bark"))
    with pytest.raises(CorruptTargetsError, match="does not match its checksum"):
        write()


def test_an_unreadable_image_is_left_to_the_extraction(
    write: Callable[..., dict[str, str]], dataset: Dataset, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    broken = dataset.samples[2].path
    read = captioning.read_image
    monkeypatch.setattr(captioning, "read_image", lambda root, path: read(root if path != broken else tmp_path, path))
    captions = write()
    assert [key for key, caption in captions.items() if caption == UNREADABLE] == [dataset.samples[2].key]


def test_an_extraction_reads_what_the_teacher_wrote(
    teacher: Writing, scenes_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "load_teacher", lambda *args, **options: teacher)
    config = ExtractConfig(
        dataset="scenes", data_root=scenes_root, text="generate", kind="relevance", views=("full",), device="cpu"
    )
    extract(config, tmp_path / "targets")
    store = TargetStore.open(tmp_path / "targets")
    assert store.spec.text.mode == "generate"
    assert set(store.vocabulary.words) <= {"bright", "dark", "scene"}
    assert set(store.index.captions) <= {"a bright scene", "a dark scene"}
    assert torch.from_numpy(store.read_many(range(24)).scale > 0).any(2).all()
