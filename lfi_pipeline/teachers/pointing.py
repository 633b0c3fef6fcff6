"""Score kinds of map, computed live by a cache's own teacher, beside the maps that the cache holds."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lfi_pipeline.core.device import resolve_device
from lfi_pipeline.core.errors import ConfigError, TeacherError, UnknownNameError
from lfi_pipeline.core.progress import progress_bar
from lfi_pipeline.data import Dataset
from lfi_pipeline.data.augment import WHOLE, view_image
from lfi_pipeline.evaluation.grounding import (
    GroundedWord,
    Grounding,
    grounded_words,
    score,
    teacher_grounding,
)
from lfi_pipeline.targets import LayerSpec, TargetSpec, TargetStore
from lfi_pipeline.targets.store import sample_image
from lfi_pipeline.teachers.registry import load_teacher
from lfi_pipeline.teachers.teacher import ROWS, Teacher

MOST_LAYERS = 4
"""Decoder layers that a kind with several is scored at, evenly spaced, where the model has as many."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PointingConfig:
    """What to score.

    Attributes:
        kinds: kinds of map; `("all",)` takes every kind of the teacher.
        images: with masks, evenly spaced over the cache.
        teacher: `NAME[:TAG]`; empty takes the one that the cache's spec names.
        batch_size: images per forward pass.
        device: where the teacher runs.
    """

    kinds: tuple[str, ...] = ("all",)
    images: int = 200
    teacher: str = ""
    batch_size: int = 16
    device: str = "auto"

    def __post_init__(self) -> None:
        if not self.kinds or min(self.images, self.batch_size) < 1:
            raise ConfigError(
                "kinds must name at least one kind, images and batch_size be 1 or more, got "
                f"{', '.join(self.kinds) or 'none'}, {self.images}, {self.batch_size}."
            )


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
    teacher = _own_teacher(spec, config)
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
    found = _live(store, teacher, words, wanted, layers, config)
    masks = [word.mask for word in words]
    for kind, row in wanted:
        for number, layer in enumerate(layers[kind]):
            maps = [each[number] for each in found[kind, row]]
            rows.append(PointingRow(source="live", kind=kind, row=row, layer=layer.name, grounding=score(maps, masks)))
    return rows


def _own_teacher(spec: TargetSpec, config: PointingConfig) -> Teacher:
    name = config.teacher or f"{spec.teacher.name}:{spec.teacher.tag}"
    try:
        teacher = load_teacher(name, device=resolve_device(config.device))
    except UnknownNameError as error:
        if config.teacher:
            raise
        raise TeacherError(
            f"The cache was made by {name}, which cannot be loaded by that name: {error} Name the same weights with "
            f"--teacher {spec.teacher.name}:PATH."
        ) from error
    if teacher.identity.weights_sha256 != spec.teacher.weights_sha256:
        raise TeacherError(
            f"The weights of {name} must be those that made the cache (weights_sha256 "
            f"{spec.teacher.weights_sha256[:12]}...), got {teacher.identity.weights_sha256[:12]}.... Name the same "
            f"weights with --teacher {spec.teacher.name}:PATH."
        )
    return teacher


def _some_images(words: list[GroundedWord], images: int) -> list[GroundedWord]:
    """Words of at most `images` images, evenly spaced."""
    positions = sorted({word.position for word in words})
    places = np.linspace(0, len(positions) - 1, min(images, len(positions))).round().astype(int)
    chosen = {positions[place] for place in places}
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
    positions = sorted(places)
    names, captions = store.vocabulary.words, store.index.captions
    mean, std = (torch.tensor(v, device=teacher.device).view(3, 1, 1) * 255 for v in (teacher.mean, teacher.std))
    found: dict[tuple[str, str], dict[int, Tensor]] = {each: {} for each in wanted}
    with progress_bar(total=len(positions), desc=f"maps of {teacher.identity.name}", unit="image", leave=False) as bar:
        for first in range(0, len(positions), config.batch_size):
            batch = positions[first : first + config.batch_size]
            pixels = torch.from_numpy(
                np.stack(
                    [
                        view_image(sample_image(store, position), WHOLE, teacher.image_size, teacher.interpolation)
                        for position in batch
                    ]
                )
            )
            images = (pixels.to(teacher.device).float() - mean) / std
            texts = [teacher.encode_text(captions[position]) for position in batch]
            by_text = [{word.text: word for word in text.words} for text in texts]
            ids = store.read_many(batch).words.tolist()
            rows = [
                [known.get(names[word]) if word >= 0 else None for word in row]
                for known, row in zip(by_text, ids, strict=True)
            ]
            for kind, row in wanted:
                maps = teacher.interaction_maps(images, texts, rows, kind=kind, layers=layers[kind], row=row).maps.cpu()
                for b, position in enumerate(batch):
                    found[kind, row] |= {place: maps[b, :, words[place].row] for place in places[position]}
            bar.update(len(batch))
    return {each: [maps[place] for place in range(len(words))] for each, maps in found.items()}
