"""Which pairs of image and word are shown: evenly over domains and classes, the same for both students."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lfi_pipeline.data import Dataset
from lfi_pipeline.errors import DatasetError
from lfi_pipeline.evaluation.grounding import class_words
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
    found = []
    for position, row, place, label in class_words(store, dataset):
        sample = dataset.samples[place]
        if label in sample.labels:
            found.append(
                NamedWord(
                    position=position,
                    row=row,
                    place=place,
                    key=sample.key,
                    word=dataset.classes[label],
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
