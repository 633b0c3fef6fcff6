"""Captions that the teacher writes are written once, shared out, and belong to one data set and teacher."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lfi_pipeline.core.errors import (
    ConfigError,
    CorruptTargetsError,
    DatasetError,
    ImageReadError,
    IncompleteTargetsError,
    SpecMismatchError,
)
from lfi_pipeline.data import Dataset, read_dataset
from lfi_pipeline.data.images import read_bytes, read_image
from lfi_pipeline.targets import TargetStore
from lfi_pipeline.teachers import CocaTeacher, shards
from lfi_pipeline.teachers import captioner as captioning
from lfi_pipeline.teachers import extract as job
from lfi_pipeline.teachers.captioner import generated_captions
from lfi_pipeline.teachers.config import ExtractConfig, ShardAssignment
from lfi_pipeline.teachers.extract import extract


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


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch, dataset: Dataset) -> set[str]:
    """Paths of images that cannot be read, for as long as they are in the set."""
    paths: set[str] = set()

    def read(root: Path, path: str) -> Any:
        if path in paths:
            raise ImageReadError(f"{path}: planted")
        return read_image(root, path)

    def read_file(root: Path, path: str) -> bytes:
        return b"planted" if path in paths else read_bytes(root, path)

    for module in (captioning, job):
        monkeypatch.setattr(module, "read_image", read)
    monkeypatch.setattr(shards, "read_bytes", read_file)
    return paths


def test_an_unreadable_image_has_no_caption_and_leaves_no_word(
    teacher: Writing,
    dataset: Dataset,
    broken: set[str],
    scenes_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(job, "load_teacher", lambda *args, **options: teacher)
    config = ExtractConfig(
        dataset="scenes", data_root=scenes_root, text="generate", kind="relevance", views=("full",), device="cpu"
    )
    broken.add(dataset.samples[2].path)
    assert extract(config, tmp_path / "targets")[0].quarantined == 1
    store = TargetStore.open(tmp_path / "targets")
    assert set(store.vocabulary.words) <= {"bright", "dark", "scene"}
    assert store.index.captions[2] == ""
    assert extract(config, tmp_path / "targets", retry_quarantined=True)[0].quarantined == 1
    broken.clear()
    with pytest.raises(ConfigError, match=rf"none of {dataset.samples[2].path}.*Use `overwrite`"):
        extract(config, tmp_path / "targets", retry_quarantined=True)
    written = teacher.images
    assert extract(config, tmp_path / "targets", overwrite=True)[0].quarantined == 0
    assert teacher.images - written == 10  # of the one piece in which a caption was missing
    assert TargetStore.open(tmp_path / "targets").index.captions[2] in ("a bright scene", "a dark scene")


def test_where_no_image_can_be_read_the_next_run_tries_them_again(
    write: Callable[..., dict[str, str]], dataset: Dataset, broken: set[str]
) -> None:
    broken |= {sample.path for sample in dataset.samples}
    with pytest.raises(DatasetError, match=rf"none of 24 is, such as {dataset.samples[0].path}"):
        write()
    broken.clear()
    assert len(write()) == 24


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


def _extended(
    teacher: Writing, dataset: Dataset, out: Path, *, extend: bool = True, poll_seconds: float = 0
) -> dict[str, str]:
    return generated_captions(
        teacher,  # type: ignore[arg-type]
        dataset,
        out,
        batch_size=4,
        share=ShardAssignment(),
        extend=extend,
        poll_seconds=poll_seconds,
    )


def test_captions_of_further_images_are_added_to_those_that_there_are(
    teacher: Writing, dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "targets"
    few = replace(dataset, samples=dataset.samples[:12])
    first = _extended(teacher, few, out, extend=False)
    assert f"Captions are kept in {tmp_path / 'targets.captions'}." in capsys.readouterr().err
    assert teacher.images == 12
    with pytest.raises(SpecMismatchError, match="listing_sha256"):
        _extended(teacher, dataset, out, extend=False)
    found = _extended(teacher, dataset, out)
    assert teacher.images == len(dataset)  # the first twelve were not read again
    assert {key: found[key] for key in first} == first
    assert list(found) == [sample.key for sample in dataset.samples]
    assert _extended(teacher, dataset, out, extend=False) == found  # the folder is theirs now
    assert [path.name for path in tmp_path.iterdir()] == ["targets.captions"]


def test_an_extension_of_captions_goes_on_where_it_was_killed(
    teacher: Writing, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "targets"
    first = _extended(teacher, replace(dataset, samples=dataset.samples[:12]), out, extend=False)
    with monkeypatch.context() as patch:
        patch.setattr(captioning, "_put_in_place", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            _extended(teacher, dataset, out)
    made = teacher.images
    assert _extended(teacher, replace(dataset, samples=dataset.samples[:12]), out, extend=False) == first
    monkeypatch.setattr(captioning, "exchange", lambda *_: False)  # a system that cannot
    assert len(_extended(teacher, dataset, out)) == len(dataset)
    assert teacher.images == made
    (tmp_path / "targets.captions").rename(tmp_path / ".targets.captions.lfi-extending")  # killed between two renames
    assert len(_extended(teacher, dataset, out)) == len(dataset)
    assert teacher.images == made


def test_captions_of_another_teacher_or_split_are_no_extension(
    teacher: Writing, dataset: Dataset, tmp_path: Path
) -> None:
    _extended(teacher, replace(dataset, samples=dataset.samples[:12]), tmp_path / "targets")
    with pytest.raises(SpecMismatchError, match="captions of other settings"):
        _extended(teacher, replace(dataset, split="val"), tmp_path / "targets")


def test_captions_of_others_go_where_the_cache_is_overwritten(
    teacher: Writing, dataset: Dataset, tmp_path: Path
) -> None:
    few = replace(dataset, samples=dataset.samples[:12])
    first = _extended(teacher, few, tmp_path / "targets", extend=False)
    options: dict[str, Any] = {"batch_size": 4, "share": ShardAssignment(), "poll_seconds": 0, "overwrite": True}
    found = generated_captions(teacher, dataset, tmp_path / "targets", **options)  # type: ignore[arg-type]
    assert len(found) == len(dataset)
    assert teacher.images == len(first) + len(dataset)
    assert generated_captions(teacher, dataset, tmp_path / "targets", **options) == found  # type: ignore[arg-type]
    assert teacher.images == len(first) + len(dataset)
