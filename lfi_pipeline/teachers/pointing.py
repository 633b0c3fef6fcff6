"""Score kinds of map, computed live by a cache's own teacher, beside the maps that the cache holds."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from lfi_pipeline.core.errors import ConfigError, TeacherError, UnknownNameError
from lfi_pipeline.core.runtime import progress_bar
from lfi_pipeline.data import Dataset
from lfi_pipeline.data.augment import WHOLE, view_image
from lfi_pipeline.evaluation.grounding import (
    GroundedWord,
    Grounding,
    WordMasks,
    grounded_words,
    score,
    teacher_grounding,
)
from lfi_pipeline.targets import LayerSpec, MapSpec, TargetSpec, TargetStore
from lfi_pipeline.targets.store import sample_image
from lfi_pipeline.targets.verify import evenly_spaced
from lfi_pipeline.targets.vocabulary import readable_names
from lfi_pipeline.teachers.config import ROWS, PointingConfig
from lfi_pipeline.teachers.contrastive import ArtefactCount, artefacts_by_block, merged_counts
from lfi_pipeline.teachers.recompute import samples_of_cache, teacher_of_cache, texts_of_cache
from lfi_pipeline.teachers.settings import centre_of
from lfi_pipeline.teachers.shards import maps_of_texts
from lfi_pipeline.teachers.teacher import Teacher, normalised_images
from lfi_pipeline.teachers.text import view_words

MOST_LAYERS = 4
"""Decoder layers that a kind with several is scored at, evenly spaced, where the model has as many."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PointingRow:
    """One line of the table.

    Attributes:
        source: `cache`, or `live`.
        kind: of map.
        row: `emitting` or `reading`.
        layer: where it is taken.
        grounding: its scores.
    """

    source: str
    kind: str
    row: str
    layer: str
    grounding: Grounding


def pointing_by_kind(store: TargetStore, dataset: Dataset, config: PointingConfig) -> list[PointingRow]:
    """Score the cached maps and each kind on the same words of the same images, view `full`.

    Args:
        store: the cache.
        dataset: the data set and split that it was made from, with masks.
        config: what to score.

    Raises:
        TeacherError: the weights are not those that made the cache, or cannot be found.
        DatasetError: the cache and the data set do not belong together, or there is nothing to point at.
        UnknownNameError: unknown teacher or kind.
        CorruptTargetsError: an image is not the one that the cache was made from.
    """
    words = _some_images(grounded_words(store, dataset), config.images)
    spec = store.spec
    teacher = teacher_of_cache(spec, config.teacher, config.device)
    kinds = teacher.kinds if config.kinds == ("all",) else config.kinds
    for kind in kinds:
        if kind not in teacher.kinds:
            raise UnknownNameError("map kind", kind, teacher.kinds)
    rows = [
        PointingRow(source="cache", kind=spec.kind, row=spec.row, layer=layer.name, grounding=grounding)
        for layer, grounding in zip(spec.layers, teacher_grounding(store, words), strict=True)
    ]
    wanted = [(kind, row) for kind in kinds for row in (ROWS[::-1] if kind == "attention" else ROWS[:1])]
    layers = {kind: _layers(teacher, kind, spec) for kind in kinds}
    live_maps = _live(store, teacher, words, wanted, layers, config)
    masks = WordMasks(words)
    for kind, row in wanted:
        for number, layer in enumerate(layers[kind]):
            maps = [each[number] for each in live_maps[kind, row]]
            rows.append(PointingRow(source="live", kind=kind, row=row, layer=layer.name, grounding=score(maps, masks)))
    return rows


def _some_images(words: list[GroundedWord], images: int) -> list[GroundedWord]:
    """Words of at most `images` images, evenly spaced."""
    chosen = set(evenly_spaced(np.unique([word.position for word in words]), images).tolist())
    return [word for word in words if word.position in chosen]


def _layers(teacher: Teacher, kind: str, spec: TargetSpec) -> tuple[LayerSpec, ...]:
    """The cache's own layers for its own kind; else as many as there are, at most `MOST_LAYERS`."""
    if kind == spec.kind:
        return spec.layers
    for count in range(MOST_LAYERS, 1, -1):
        try:
            return teacher.layers(kind, count)
        except ConfigError:  # more than the model has
            continue
    return teacher.layers(kind, 1)


def _settings(teacher: Teacher, kind: str, spec: TargetSpec) -> MapSpec:
    """The cache's own for its own kind; else the kind's own, centred over the cache's centre or its classes."""
    if kind == spec.kind:
        return spec.maps
    centre = spec.maps.centre or centre_of(readable_names(spec.dataset.classes))
    return teacher.map_settings(kind, centre=centre)


def _live(
    store: TargetStore,
    teacher: Teacher,
    words: Sequence[GroundedWord],
    wanted: Sequence[tuple[str, str]],
    layers: dict[str, tuple[LayerSpec, ...]],
    config: PointingConfig,
) -> dict[tuple[str, str], list[Tensor]]:
    """Maps [L, gh, gw] of each word, in order, for each kind and row wanted."""
    places: dict[int, list[int]] = defaultdict(list)  # position -> places in `words`
    for place, word in enumerate(words):
        places[word.position].append(place)
    positions = np.array(sorted(places))
    names, source = store.vocabulary.words, texts_of_cache(store.spec)
    samples = samples_of_cache(store, positions).samples
    settings = {kind: _settings(teacher, kind, store.spec) for kind in layers}
    maps_by_kind: dict[tuple[str, str], dict[int, Tensor]] = {each: {} for each in wanted}
    with progress_bar(total=len(positions), desc=f"maps of {teacher.identity.name}", unit="image", leave=False) as bar:
        for first in range(0, len(positions), config.batch_size):
            batch = positions[first : first + config.batch_size].tolist()
            images = _normalised_images(store, teacher, batch)
            ids = store.read_words(batch).tolist()
            texts = [
                # "" is no word: its row stays empty, and the cache's other rows keep their places
                view_words(
                    teacher.encode_text, source(sample), [names[word] if word >= 0 else "" for word in row], "full"
                )
                for sample, row in zip(samples[first : first + config.batch_size], ids, strict=True)
            ]
            for kind, row in wanted:
                made = maps_of_texts(
                    teacher, images, texts, kind=kind, layers=layers[kind], row=row, settings=settings[kind]
                )
                maps = made.maps.cpu()
                for b, position in enumerate(batch):
                    maps_by_kind[kind, row] |= {place: maps[b, :, words[place].row] for place in places[position]}
            bar.update(len(batch))
    return {each: [maps[place] for place in range(len(words))] for each, maps in maps_by_kind.items()}


def _normalised_images(store: TargetStore, teacher: Teacher, positions: Sequence[int]) -> Tensor:
    """Images [B, 3, H, W] of a cache's samples, as the teacher takes them."""
    views = [view_image(sample_image(store, i), WHOLE, teacher.image_size, teacher.interpolation) for i in positions]
    return normalised_images(teacher, views)


def artefacts_of_cache(store: TargetStore, images: int, config: PointingConfig) -> tuple[ArtefactCount, ...]:
    """Run the teacher of a cache on some of its images, evenly spaced, and count the artefacts after each block.

    Args:
        store: the cache.
        images: how many, at most.
        config: the teacher's weights, device and batch size.

    Raises:
        TeacherError: the weights are not those that made the cache, or cannot be found; or it has no blocks that are
            known, as a module of one's own.
        CorruptTargetsError: an image is not the one that the cache was made from.
    """
    teacher = teacher_of_cache(store.spec, config.teacher, config.device)
    if not teacher.blocks:
        raise TeacherError(f"Nothing is known of the blocks of {teacher.identity.name}, so no artefact can be counted.")
    positions = evenly_spaced(store.usable, images).tolist()
    parts = []
    with progress_bar(total=len(positions), desc=f"artefacts of {teacher.identity.name}", unit="image") as bar:
        for first in range(0, len(positions), config.batch_size):
            batch = positions[first : first + config.batch_size]
            parts.append(artefacts_by_block(teacher, _normalised_images(store, teacher, batch)))
            bar.update(len(batch))
    return tuple(merged_counts(block) for block in zip(*parts, strict=True))
