"""Which pairs of image and word are shown, the same for both students, and the maps of one kind that are compared."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from lfi_pipeline.core.errors import ConfigError, DatasetError
from lfi_pipeline.data import Dataset
from lfi_pipeline.evaluation.grounding import class_words
from lfi_pipeline.evaluation.maps import class_maps, student_maps
from lfi_pipeline.study.answers import AUTO, GRADCAM, INTERACTION
from lfi_pipeline.targets import TargetStore, decode_maps
from lfi_pipeline.training.data import PlainImages
from lfi_pipeline.training.learner import LoadedRun


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
    words = []
    for position, row, place, label in class_words(store, dataset):
        sample = dataset.samples[place]
        if label in sample.labels:
            words.append(
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
    if not words:
        raise DatasetError(
            f"No word of {store.path} names a class of {dataset.name} that its image is labelled with; a study needs "
            "words that name something."
        )
    return words


def evenly(words: Sequence[NamedWord], seed: int) -> Iterator[NamedWord]:
    """Yield all `words` in an order of which any first part is balanced: over domains, then classes, then images.

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


_BATCH = 64

Map = npt.NDArray[np.float32]


def choose_kind(kind: str, runs: Sequence[LoadedRun]) -> str:
    """Return the kind of map that all `runs` have: interaction maps if asked for `auto` and all have queries.

    Raises:
        ConfigError: a run that has no maps of the kind.
    """
    without = [str(run.path) for run in runs if run.student.queries is None]
    if kind == AUTO:
        kind = GRADCAM if without else INTERACTION
    if kind == INTERACTION and without:
        raise ConfigError(
            f"Interaction maps need runs with interaction queries; {', '.join(without)} has none. Compare both runs by "
            "`maps='gradcam'`."
        )
    headless = [str(run.path) for run in runs if not run.student.classifies]
    if kind == GRADCAM and headless:
        raise ConfigError(
            f"Grad-CAM needs runs that predict classes; {', '.join(headless)} was trained without labels. Compare two "
            "runs with interaction queries by `maps='interaction'`."
        )
    return kind


def word_maps(
    run: LoadedRun, store: TargetStore, dataset: Dataset, words: Sequence[NamedWord], kind: str
) -> list[Map | None]:
    """Return the run's map of each word at its last tap, fp32 [rows, columns] summing to 1; None where it has none.

    `interaction`: where the word's query looks. `gradcam`: Grad-CAM of the run's own logit of the class that the word
    names.
    """
    if kind == INTERACTION:
        positions = sorted({word.position for word in words})
        per_tap = dict(student_maps(run.student, store, dataset, positions))
        return [_normed(per_tap[word.position][-1][word.row].numpy()) for word in words]
    images, device = PlainImages(dataset, [run.student.size]), next(run.student.parameters()).device
    of_words: list[Map | None] = []
    for first in range(0, len(words), _BATCH):
        chunk = words[first : first + _BATCH]
        places = sorted({word.place for word in chunk})
        pixels = torch.stack([images[place][0][run.student.size] for place in places]).to(device)
        image_of = torch.tensor([places.index(word.place) for word in chunk], device=device)
        labels = torch.tensor([word.label for word in chunk], device=device)
        maps = class_maps(run.student, pixels, image_of, labels)
        of_words += [_normed(each) for each in maps.float().cpu().numpy()]
    return of_words


def teacher_map(store: TargetStore, word: NamedWord) -> Map | None:
    """Return the teacher's cached map of `word` at its last layer."""
    targets = store.read(word.position)
    return _normed(decode_maps(targets.maps[-1, word.row], targets.scale[-1, word.row], store.spec.codec.name))


def _normed(grid: Map) -> Map | None:
    safe = np.nan_to_num(grid, nan=0.0, posinf=0.0, neginf=0.0).clip(0.0)
    total = safe.sum()
    return (safe / total).astype(np.float32) if total > 0 else None
