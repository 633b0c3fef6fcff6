"""Do interaction maps point at the object that the word names?

Pointing game: Zhang, Lin, Brandt, Shen, Sclaroff, "Top-down Neural Attention by Excitation Backprop", ECCV 2016,
section 4.1, without their 15-pixel tolerance: the peak of the bilinearly upsampled map must lie inside the mask. That
peak is the middle of the map's largest cell; looked for among the pixels, it would slip to the image's edge where a
cell lies at the border, since the upsampled map is flat from that cell's middle outwards.
Mass in mask: the share of the map's mass on the mask, a grid cell counting by the share of its area that is covered.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lfi_pipeline.data import Dataset
from lfi_pipeline.data.replay import WHOLE, view_maps
from lfi_pipeline.errors import DatasetError
from lfi_pipeline.targets import TargetStore, decode_maps
from lfi_pipeline.targets.inspection import CHUNK


@dataclass(frozen=True, slots=True)
class Grounding:
    """Means over (image, word) pairs; a pair counts once however many instances its category has.

    Attributes:
        pointing: share of maps whose peak lies in the mask.
        mass_in_mask: mean share of mass in the mask.
        area: mean share of the image that the masks cover: what a random peak and a uniform map's mass score.
        count: pairs.
    """

    pointing: float
    mass_in_mask: float
    area: float
    count: int


def peaks_in_mask(maps: Tensor, masks: Tensor) -> Tensor:
    """Return for each map whether its peak lies in its mask.

    Args:
        maps: [P, gh, gw], non-negative.
        masks: bool [P, H, W].

    Returns:
        bool [P]; an all-zero map is a miss.
    """
    (rows, columns), (height, width) = maps.shape[-2:], masks.shape[-2:]
    cell = maps.flatten(1).argmax(1)
    down = (2 * (cell // columns) + 1) * height // (2 * rows)
    across = (2 * (cell % columns) + 1) * width // (2 * columns)
    return masks[torch.arange(len(masks), device=masks.device), down, across] & (maps.flatten(1).sum(1) > 0)


def mass_in_mask(maps: Tensor, masks: Tensor) -> Tensor:
    """Return the share of each map's mass that lies in its mask, fp32 [P]; shapes as `peaks_in_mask`."""
    rows, columns = maps.shape[-2:]
    whole = torch.tensor([WHOLE.window], device=masks.device).expand(len(masks), 4)
    pixels = view_maps(masks[:, None].float(), whole, (rows, columns))[:, 0]  # of the mask in each cell
    covered = pixels * (rows * columns / (masks.shape[-2] * masks.shape[-1]))
    inside, total = (maps.float() * covered).flatten(1).sum(1), maps.float().flatten(1).sum(1)
    return (inside / total.clamp_min(1e-12)).clamp_max(1.0)  # rows of the cache sum to 1 within fp16


def score(maps: Sequence[Tensor], masks: Sequence[Tensor]) -> Grounding:
    """Score pairs of map [gh, gw] and mask [H, W]; sizes may differ from pair to pair."""
    if not maps:
        return Grounding(float("nan"), float("nan"), float("nan"), 0)
    hits = [peaks_in_mask(m[None], s[None]) for m, s in zip(maps, masks, strict=True)]
    mass = [mass_in_mask(m[None], s[None]) for m, s in zip(maps, masks, strict=True)]
    area = [s.float().mean() for s in masks]
    return Grounding(
        pointing=torch.cat(hits).float().mean().item(),
        mass_in_mask=torch.cat(mass).mean().item(),
        area=torch.stack(area).mean().item(),
        count=len(hits),
    )


@dataclass(frozen=True, slots=True)
class GroundedWord:
    """A word of a cached sample that names a class, and where objects of that class are.

    Attributes:
        position: of the sample in the cache.
        row: of the word in the sample's maps.
        mask: bool [H, W], union of the masks of the class's instances.
        label: the class.
    """

    position: int
    row: int
    mask: Tensor
    label: int


def word_classes(store: TargetStore, dataset: Dataset) -> list[int | None]:
    """Return the class that each word of the cache's vocabulary names; None for other words."""
    label_of = {name: label for label, name in enumerate(dataset.classes)}
    return [label_of.get(word) for word in store.vocabulary.words]


def class_words(store: TargetStore, dataset: Dataset) -> Iterator[tuple[int, int, int, int]]:
    """Yield position, row, place of the sample in `dataset`, and class of every word that names one, in cache order.

    Raises:
        DatasetError: the cache and the data set do not belong together.
    """
    recorded = (store.spec.dataset.name, store.spec.dataset.split)
    if recorded != (dataset.name, dataset.split):
        raise DatasetError(
            f"{store.path} must hold targets of {dataset.name}, split {dataset.split}; it holds {recorded[0]}, split "
            f"{recorded[1]}. Give the targets of this split."
        )
    places = {sample.key: place for place, sample in enumerate(dataset.samples)}
    class_of = word_classes(store, dataset)
    keys = store.index.keys
    for position, ids in zip(store.usable.tolist(), store.read_many(store.usable).words, strict=True):
        place = places.get(keys[position])
        if place is None:
            raise DatasetError(
                f"{store.path} holds sample {keys[position]}, which split {dataset.split} of {dataset.root} lacks. "
                "Give the targets of this split."
            )
        for row, word in enumerate(ids.tolist()):
            label = class_of[word] if word >= 0 else None
            if label is not None:
                yield position, row, place, label


def grounded_words(store: TargetStore, dataset: Dataset, *, least_labels: int = 2) -> list[GroundedWord]:
    """Return every word of the cache that names a class with masks, of images with `least_labels` classes or more.

    Raises:
        DatasetError: the cache and the data set do not belong together, or no word names a class with a mask.
    """
    found = []
    for position, row, place, label in class_words(store, dataset):
        sample = dataset.samples[place]
        if len(sample.labels) < least_labels:
            continue
        masks = [
            instance.mask(sample.height, sample.width)
            for instance in dataset.instances[sample.key]
            if instance.label == label
        ]
        if masks:
            found.append(GroundedWord(position, row, torch.from_numpy(np.logical_or.reduce(masks)), label))
    if not found:
        raise DatasetError(
            f"No word of {store.path} names a class of {dataset.name} with a mask in an image of {least_labels} or "
            "more classes; there is nothing to point at."
        )
    return found


def teacher_maps(store: TargetStore, words: Sequence[GroundedWord], view: str = "full") -> list[Tensor]:
    """Return per teacher layer the cached map of each word, fp32 [P, gh, gw]."""
    if not words:
        return []
    positions = sorted({word.position for word in words})
    found: dict[int, Tensor] = {}  # by the place of the word
    for first in range(0, len(positions), CHUNK):
        place = {position: i for i, position in enumerate(positions[first : first + CHUNK])}
        stored = store.read_many(list(place), view)
        maps = decode_maps(torch.from_numpy(stored.maps), torch.from_numpy(stored.scale), store.spec.codec.name)
        for i, word in enumerate(words):
            if word.position in place:
                found[i] = maps[place[word.position], :, word.row].clone()  # a view would keep all words of the chunk
    return list(torch.stack([found[i] for i in range(len(words))], dim=1))


def teacher_grounding(store: TargetStore, words: Sequence[GroundedWord], view: str = "full") -> list[Grounding]:
    """Score the cached maps of each teacher layer on `words`."""
    masks = [word.mask for word in words]
    return [score(list(maps), masks) for maps in teacher_maps(store, words, view)]
