"""No batch waits for its device before its maps are fetched: looked for among all operations of a batch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lfi_pipeline.teachers import CocaTeacher, InteractionMaps, Teacher, contrastive, shards
from lfi_pipeline.teachers import extract as job
from lfi_pipeline.teachers.config import ExtractConfig
from lfi_pipeline.teachers.dual import DUAL_KINDS
from lfi_pipeline.teachers.extract import extract
from lfi_pipeline.teachers.kinds import KINDS
from lfi_pipeline.teachers.text import EncodedText, ViewWords
from tests.lfi_pipeline.teachers.test_dual import small
from tests.waiting import watched

TEXTS = ("a strawberry left of a dog", "an owl and a cat")


@pytest.fixture(autouse=True)
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is done on a CPU alone, where nothing is waited for, is left out."""
    monkeypatch.setattr(contrastive, "_known_empty", lambda _: False)
    monkeypatch.setattr(InteractionMaps, "leave", lambda self: (self, lambda: None))


def waits_of(teacher: Teacher, kind: str, texts: list[list[EncodedText]]) -> Any:
    """What waits when the maps of the same words are made for the second time: new words are embedded, and waited for."""
    rows = [[(None, *text.words, None, None)[:4] for text in each] for each in texts]
    read = [ViewWords(tuple(each), tuple(words)) for each, words in zip(texts, rows, strict=True)]
    pixels = torch.randn(len(texts), 3, *teacher.image_size, generator=torch.Generator().manual_seed(1))
    options = {"kind": kind, "layers": teacher.layers(kind, 2), "row": "emitting"}
    options["settings"] = teacher.map_settings(kind)
    shards.maps_of_texts(teacher, pixels, read, **options)
    with watched(copies=True) as counts:
        shards.maps_of_texts(teacher, pixels, read, **options)
    return dict(counts)


@pytest.mark.parametrize("form", ["pooler", "no pooler"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_coca_makes_maps_without_waiting(random_coca: Callable[[str], CocaTeacher], form: str, kind: str) -> None:
    teacher = random_coca(form)
    if kind in teacher.kinds:
        first, second = map(teacher.encode_text, TEXTS)
        assert waits_of(teacher, kind, [[first], [second]]) == {}
        assert waits_of(teacher, kind, [[first, second], [second]]) == {}


@pytest.mark.parametrize("vision", [{}, {"pool_type": "avg"}], ids=["token", "average"])
@pytest.mark.parametrize("kind", DUAL_KINDS)
def test_a_dual_encoder_makes_maps_without_waiting(vision: dict[str, Any], kind: str) -> None:
    teacher = small(**vision)
    if kind in teacher.kinds:
        first, second = map(teacher.encode_text, TEXTS)
        assert waits_of(teacher, kind, [[first], [second]]) == {}
        assert waits_of(teacher, kind, [[first, second], [second]]) == {}


def test_an_extraction_waits_only_for_maps_that_it_fetches(
    tiny_teacher: CocaTeacher, scenes_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """24 images of two views, 4 at a time: 12 fetches of three tensors, none of which is copied there and then."""
    runs: list[Counter[str]] = []
    fetches: list[Counter[str]] = []

    def watch(name: str, counts: list[Counter[str]], **options: bool) -> None:
        original = getattr(shards.ShardMaker, name)

        def call(self: shards.ShardMaker, *args: Any) -> Any:
            with watched(**options) as waits:
                result = original(self, *args)
            counts.append(waits)
            return result

        monkeypatch.setattr(shards.ShardMaker, name, call)

    monkeypatch.setattr(job, "load_teacher", lambda name, **_: tiny_teacher)
    config = ExtractConfig(
        dataset="scenes", data_root=scenes_root, words=6, samples_per_shard=24, batch_size=4, device="cpu"
    )
    extract(config, tmp_path / "words are embedded")
    watch("_run", runs, copies=True)
    watch("_fetch", fetches)
    extract(config, tmp_path / "out")
    assert (len(runs), len(fetches)) == (6, 12)
    assert sum(runs, Counter()) == {}
    assert [dict(each) for each in fetches] == [{"numpy in lfi_pipeline.teachers.shards._fetch": 3}] * 12
