"""A list of words stands for captions: each image gets those that the teacher scores above chance."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lfi_pipeline.core.errors import ConfigError, SpecMismatchError
from lfi_pipeline.data import Sample
from lfi_pipeline.targets import TargetSpec, TargetStore
from lfi_pipeline.targets.verify import verify
from lfi_pipeline.teachers import CocaTeacher, extract
from lfi_pipeline.teachers import extract as job
from lfi_pipeline.teachers.captioner import lister
from lfi_pipeline.teachers.config import ExtractConfig
from lfi_pipeline.teachers.text import TextSource, listed, words_listed

WORDS = ("sail boat", "dog", "traffic light", "cat")


@pytest.fixture
def photos(scenes_root: Path, tmp_path: Path) -> Path:
    shutil.copytree(scenes_root / "train", tmp_path / "photos" / "2023")
    return tmp_path / "photos"


def extracted(photos: Path, out: Path, **changes: Any) -> TargetStore:
    options: dict[str, Any] = {
        "dataset": str(photos),
        "teacher": "scenes-coca",
        "device": "cpu",
        "views": ("full",),
        "vocabulary": WORDS,
    }
    extract.extract(ExtractConfig(**(options | changes)), out)
    return TargetStore.open(out)


def test_each_image_gets_the_words_that_score_above_chance(
    photos: Path, tiny_teacher: CocaTeacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "load_teacher", lambda *_, **__: tiny_teacher)
    store = extracted(photos, tmp_path / "out")
    assert store.vocabulary.words == tuple(sorted(WORDS))  # those of no image too: a student may be asked for them
    known = torch.from_numpy(store.vocabulary.embeddings).float()
    read = store.read_many(store.usable)
    logits = tiny_teacher.logit_scale * torch.from_numpy(read.image_embedding).float() @ known.T
    for row, ids in enumerate(read.words.tolist()):
        found = {word for word in ids if word >= 0}
        likely = logits[row].softmax(0)
        sure = {i for i in range(4) if likely[i] > 0.25 + 1e-3}
        assert sure <= found <= {i for i in range(4) if likely[i] > 0.25 - 1e-3} | {int(likely.argmax())}
        assert found
    assert store.spec.text.vocabulary == WORDS
    assert verify(tmp_path / "out", data_root=photos) == []


def test_another_list_is_another_cache(
    photos: Path, tiny_teacher: CocaTeacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "load_teacher", lambda *_, **__: tiny_teacher)
    store = extracted(photos, tmp_path / "out")
    assert extracted(photos, tmp_path / "out").spec == store.spec
    with pytest.raises(SpecMismatchError, match="vocabulary"):
        extracted(photos, tmp_path / "out", vocabulary=("dog", "cat"))


def test_a_spec_without_a_list_keeps_its_fingerprint(tiny_targets: Path) -> None:
    spec = TargetStore.open(tiny_targets).spec
    assert "vocabulary" not in spec.to_plain()["text"]
    assert TargetSpec.from_plain(spec.to_plain()) == spec


def test_the_best_word_is_listed_first_and_alone_where_nothing_is_likely(tiny_teacher: CocaTeacher) -> None:
    class Even:
        """Scores every word of every image alike."""

        def __getattr__(self, name: str) -> Any:
            return getattr(tiny_teacher, name)

        @property
        def logit_scale(self) -> float:
            return 0.0

    images = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert lister(Even(), WORDS)(images) == [listed(WORDS)] * 3  # type: ignore[arg-type]
    captions = lister(tiny_teacher, WORDS)(images)
    known = tiny_teacher.embed_words(WORDS)

    def embedding(image: Tensor) -> Tensor:
        found: Tensor = tiny_teacher.model.encode_image(image[None], normalize=True)[0]
        return found

    for image, caption in zip(images, captions, strict=True):
        with torch.no_grad():
            scores = embedding(image) @ known.T
        assert words_listed(caption)[0] == WORDS[int(scores.argmax())]


def test_words_of_several_words_are_one() -> None:
    sample = Sample(key="a", path="a.png", captions=(), labels=(), domain="", height=1, width=1)
    source = TextSource("generate", "first", generated={"a": listed(("traffic light", "dog"))}, vocabulary=WORDS)
    read = source(sample)
    assert read.texts == ("a photo of traffic light, dog.",)
    assert set(read.phrases) == {"traffic light", "dog"}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"text": "captions"}, "vocabulary stands for captions: text must be auto or generate"),
        ({"vocabulary": ("dog", " dog")}, "must be different words"),
        ({"vocabulary": ("dog", " ")}, "must be different words"),
        ({"vocabulary": ("dog, cat",)}, "without commas"),
    ],
)
def test_a_list_that_cannot_be_is_refused(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        ExtractConfig(**({"dataset": "scenes", "vocabulary": WORDS} | changes))
