"""Which pairs of image and word are shown: evenly over domains and classes, the same for both students."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lfi_pipeline.data import Dataset
from lfi_pipeline.errors import DatasetError
from lfi_pipeline.targets import TargetStore


@dataclass(frozen=True, kw_only=True, slots=True)
class NamedWord:
    """A word of a cached sample that names one of the sample's classes.

    Attributes:
        position: of the sample in the cache.
        row: of the word in the sample's maps.
        place: of the sample in the data set.
        key: of the sample.
        word: as the teacher read it.
        label: class that it names, an index into the data set's classes.
        domain: visual domain, "" where the data set has none.
    """

    position: int
    row: int
    place: int
    key: str
    word: str
    label: int
    domain: str


def named_words(store: TargetStore, dataset: Dataset) -> list[NamedWord]:
    """Return every word of the cache that names a class which its image is labelled with, in the cache's order.

    Raises:
        DatasetError: the cache and the data set do not belong together, or no word names a class.
    """
    recorded = (store.spec.dataset.name, store.spec.dataset.split)
    if recorded != (dataset.name, dataset.split):
        raise DatasetError(
            f"{store.path} must hold targets of {dataset.name}, split {dataset.split}; it holds {recorded[0]}, split "
            f"{recorded[1]}. Give the targets of this split."
        )
    places = {sample.key: place for place, sample in enumerate(dataset.samples)}
    label_of = {name: label for label, name in enumerate(dataset.classes)}
    names, keys = store.vocabulary.words, store.index.keys
    found = []
    for position, ids in zip(store.usable.tolist(), store.read_many(store.usable).words, strict=True):
        place = places.get(keys[position])
        if place is None:
            raise DatasetError(
                f"{store.path} holds sample {keys[position]}, which split {dataset.split} of {dataset.root} lacks. "
                "Give the targets of this split."
            )
        sample = dataset.samples[place]
        for row, word in enumerate(ids.tolist()):
            label = label_of.get(names[word]) if word >= 0 else None
            if label is not None and label in sample.labels:
                found.append(
                    NamedWord(
                        position=position,
                        row=row,
                        place=place,
                        key=sample.key,
                        word=names[word],
                        label=label,
                        domain=sample.domain,
                    )
                )
    if not found:
        raise DatasetError(
            f"No word of {store.path} names a class of {dataset.name} that its image is labelled with; a study needs "
            "words that name something."
        )
    return found


def evenly(words: Sequence[NamedWord], seed: int) -> Iterator[NamedWord]:
    """Yield all `words` so that every beginning is even: over domains first, then classes, then images.

    The next word is of the domain with the fewest words so far, among those of the class with the fewest, among those
    of the image with the fewest; ties fall at random, by `seed`.
    """
    left = list(words)
    random.Random(seed).shuffle(left)
    domains: Counter[str] = Counter()
    classes: Counter[int] = Counter()
    images: Counter[int] = Counter()
    while left:
        best = min(
            range(len(left)),
            key=lambda i: (domains[left[i].domain], classes[left[i].label], images[left[i].position]),
        )
        chosen = left.pop(best)
        domains[chosen.domain] += 1
        classes[chosen.label] += 1
        images[chosen.position] += 1
        yield chosen
