"""Which words are asked about."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest

from lfi_pipeline.core.errors import DatasetError
from lfi_pipeline.data import read_dataset
from lfi_pipeline.study.items import NamedWord, evenly, named_words
from lfi_pipeline.targets import TargetStore


def _word(number: int, domain: str, label: int, position: int | None = None) -> NamedWord:
    return NamedWord(
        position=number if position is None else position,
        row=number % 5,
        place=number,
        key=f"s{number}",
        word="cat",
        label=label,
        domain=domain,
    )


def test_every_beginning_is_even_over_domains_and_classes() -> None:
    words = [_word(n, "ink" if n < 90 else "photo", n % 3 if n % 10 else 3) for n in range(100)]
    ordered = list(evenly(words, 0))
    assert sorted(ordered, key=words.index) == words
    for count in (2, 8, 16, 20):
        domains = Counter(word.domain for word in ordered[:count])
        assert set(domains.values()) == {count // 2}
    classes = Counter(word.label for word in ordered[:16])
    assert max(classes.values()) - min(classes.values()) <= 2


def test_images_are_used_once_before_one_is_used_twice() -> None:
    words = [_word(n, "", 0, position=n // 4) for n in range(40)]
    assert len({word.position for word in islice(evenly(words, 0), 10)}) == 10


def test_the_order_is_the_seeds() -> None:
    words = [_word(n, "", 0) for n in range(30)]
    assert list(evenly(words, 3)) == list(evenly(words, 3))
    assert list(evenly(words, 3)) != list(evenly(words, 4))


def test_named_words_name_a_label_of_their_image(tiny_val_targets: Path, scenes_root: Path) -> None:
    store, dataset = TargetStore.open(tiny_val_targets), read_dataset("scenes", scenes_root, "val")
    found = named_words(store, dataset)
    assert found
    for word in found:
        sample = dataset.samples[word.place]
        assert (word.key, word.domain) == (sample.key, sample.domain)
        assert store.index.keys[word.position] == sample.key
        assert store.vocabulary.words[store.read(word.position).words[word.row]] == word.word
        assert dataset.classes[word.label] == word.word
        assert word.label in sample.labels
    expected = sum(
        sum(store.vocabulary.words[i] in {dataset.classes[c] for c in dataset.samples[p].labels} for i in ids if i >= 0)
        for p, ids in enumerate(store.read_many(range(len(dataset))).words.tolist())
    )
    assert len(found) == expected


def test_what_has_no_named_words(tiny_val_targets: Path, scenes_root: Path) -> None:
    store, dataset = TargetStore.open(tiny_val_targets), read_dataset("scenes", scenes_root, "val")
    with pytest.raises(DatasetError, match="words that name something"):
        named_words(store, replace(dataset, classes=tuple(f"no {name}" for name in dataset.classes)))
    with pytest.raises(DatasetError, match="split train"):
        named_words(store, read_dataset("scenes", scenes_root, "train"))
    with pytest.raises(DatasetError, match="lacks"):
        named_words(store, replace(dataset, samples=dataset.samples[1:]))
