"""Which words name which classes, and what seeds the query of a class."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lfi_pipeline.students.query_head import class_embeddings
from lfi_pipeline.targets import TargetStore
from lfi_pipeline.targets.vocabulary import classes_of_words


@pytest.mark.parametrize(
    ("word", "place"),
    [("dog", 0), ("traffic light", 1), ("Traffic  Light", 1), ("light", -1), ("dogs", -1), ("zebra_crossing", 2)],
)
def test_a_word_names_a_class_by_its_readable_name(word: str, place: int) -> None:
    classes = ("dog", "traffic_light", "Zebra crossing", "dog")
    assert classes_of_words([word], classes).tolist() == [place]


def test_a_class_is_seeded_by_its_word_or_else_by_its_prompts(tiny_targets: Path) -> None:
    store = TargetStore.open(tiny_targets)
    found, words = class_embeddings(store), list(store.vocabulary.words)
    own = torch.from_numpy(store.vocabulary.embeddings).float()
    assert store.zero_shot is not None
    prompts = torch.from_numpy(store.zero_shot.embeddings).float()
    named = 0
    for k, name in enumerate(store.spec.dataset.classes):
        named += name in words
        assert torch.equal(found[k], own[words.index(name)] if name in words else prompts[k])
    assert 0 < named < len(found)
