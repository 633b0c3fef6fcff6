"""How well interaction maps point at and cover the object that the word names, and how they differ between taps.

Jensen-Shannon divergence: Lin, "Divergence Measures Based on the Shannon Entropy", IEEE Transactions on Information
Theory 37(1), 1991, with equal weights.

The rule of weakly supervised localisation: Choe, Oh, Lee, Chun, Akata, Shim, "Evaluating Weakly Supervised Object
Localization Methods Right", CVPR 2020, section 4: maps are upsampled bilinearly and normalised, and the threshold, the
same for all images, is the one that serves best. Three things differ. Their MaxBoxAcc counts boxes that overlap by a
half and their PxAP is an average precision of pixels; this is the mean over words of the IoU with the mask. A map is
divided by its maximum, not stretched from its minimum to its maximum: a uniform map stays the whole image. And the
threshold is chosen on the very maps that are scored, so the score is that of the best choice, for teacher and student
alike.

Pointing game: Zhang, Lin, Brandt, Shen, Sclaroff, "Top-down Neural Attention by Excitation Backprop", ECCV 2016,
section 4.1, without their 15-pixel tolerance: the peak of the bilinearly upsampled map must lie inside the mask. That
peak is the middle of the map's largest cell; looked for among the pixels, it would slip to the image's edge where a
cell lies at the border, since the upsampled map is flat from that cell's middle outwards.
Mass in mask: the share of the map's mass on the mask, a grid cell counting by the share of its area that is covered.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from lfi_pipeline.core.errors import DatasetError
from lfi_pipeline.core.runtime import progress_bar
from lfi_pipeline.data import Dataset
from lfi_pipeline.data.augment import WHOLE, view_maps
from lfi_pipeline.data.dataset import class_mask
from lfi_pipeline.data.objects import count_masks
from lfi_pipeline.targets import TargetStore, decode_maps
from lfi_pipeline.targets.verify import CHUNK
from lfi_pipeline.targets.vocabulary import classes_of_words


def jensen_shannon(left: Tensor, right: Tensor) -> Tensor:
    """Return the divergence of each pair of maps, in nats, from 0 (equal) to ln 2 (nothing in common).

        JS(P, Q) = KL(P || M) / 2 + KL(Q || M) / 2,   M = (P + Q) / 2

    Both maps are densities over the same image: the coarser one is laid on the finer grid with its mass where it was.

    Args:
        left: [P, rows, columns], non-negative; each map is divided by its sum.
        right: [P, rows, columns], on the same grid or another.

    Returns:
        fp64 [P]; NaN where either map is all zero.
    """
    grid = max(left.shape[-2], right.shape[-2]), max(left.shape[-1], right.shape[-1])
    p, q = _shares(left, grid), _shares(right, grid)
    middle = (p + q) / 2
    gain = torch.xlogy(p, p) + torch.xlogy(q, q) - 2 * torch.xlogy(middle, middle)
    return (gain.sum(1) / 2).clamp(0, math.log(2))


def tap_divergences(maps: Sequence[Tensor]) -> list[float | None]:
    """Return the mean divergence of each tap's maps from those of the tap before, in nats.

    Args:
        maps: per tap, the map of each word [P, rows, columns].

    Returns:
        One value for each tap but the first; None where no word has a map at both taps.
    """
    result: list[float | None] = []
    for before, after in itertools.pairwise(maps):
        divergence = jensen_shannon(before, after)
        divergence = divergence[~divergence.isnan()]
        result.append(float(divergence.mean()) if len(divergence) else None)
    return result


def _shares(maps: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return the share [P, rows * columns] of each map's mass in each cell of `grid`."""
    whole = torch.tensor([WHOLE.window], device=maps.device).expand(len(maps), 4)
    laid = view_maps(maps.double(), whole, grid).flatten(1)
    return laid / laid.sum(1, keepdim=True)


THRESHOLDS = tuple(step / 100 for step in range(1, 100))
"""Shares of a map's maximum. 0 is left out: at 0 any map is the whole image."""


@dataclass(frozen=True, slots=True)
class Overlap:
    """Mean IoU of many maps with their masks, at the best threshold.

    Attributes:
        iou: mean over the maps, at the threshold where it is largest.
        threshold: the smallest such one of `THRESHOLDS`.
        count: number of maps.
    """

    iou: float
    threshold: float
    count: int


def threshold_ious(maps: Tensor, masks: Tensor) -> Tensor:
    """Return the IoU of {pixels at t times the map's maximum or above} and the mask, for each t of `THRESHOLDS`.

    Args:
        maps: [P, gh, gw], non-negative.
        masks: bool [P, H, W].

    Returns:
        fp32 [P, thresholds]; 0 throughout for an all-zero map.
    """
    bins = len(THRESHOLDS) + 1
    large = F.interpolate(maps[:, None].float(), masks.shape[-2:], mode="bilinear", align_corners=False).flatten(1)
    peak = large.amax(1, keepdim=True)
    steps = torch.tensor(THRESHOLDS, device=maps.device)
    passed = torch.bucketize(large / peak.clamp_min(torch.finfo().tiny), steps, right=True)  # thresholds, by each pixel
    place = torch.arange(len(maps), device=maps.device)[:, None] * 2 + masks.flatten(1)
    pixels = torch.bincount((place * bins + passed).flatten(), minlength=len(maps) * 2 * bins).view(-1, 2, bins)
    outside, inside = pixels.flip(-1).cumsum(-1).flip(-1)[..., 1:].unbind(1)  # that pass each threshold
    union = outside + masks.flatten(1).sum(1, keepdim=True)
    return (inside / union.clamp_min(1)) * (peak > 0)


_PIXELS_AT_ONCE = 2**20  # of masks, and of maps enlarged to them


def _alike(maps: Sequence[Tensor], masks: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield consecutive pairs of equal sizes stacked, [P, gh, gw] and [P, H, W], with a bound on the pixels."""
    pairs = zip(maps, masks, strict=True)
    for (_, size), group in itertools.groupby(pairs, key=lambda pair: (pair[0].shape, pair[1].shape)):
        at_once = max(1, _PIXELS_AT_ONCE // max(1, size.numel()))
        while some := list(itertools.islice(group, at_once)):
            yield torch.stack([each for each, _ in some]), torch.stack([mask for _, mask in some])


def best_overlap(maps: Sequence[Tensor], masks: Sequence[Tensor]) -> Overlap | None:
    """Score pairs of map [gh, gw] and mask [H, W]; sizes may differ. Few maps are enlarged at a time.

    Returns:
        None where there are no pairs.
    """
    if not maps:
        return None
    total = torch.zeros(len(THRESHOLDS), dtype=torch.float64)
    with progress_bar(desc="overlap with masks", unit="map", total=len(maps), leave=False) as bar:
        for some, their_masks in _alike(maps, masks):
            total += threshold_ious(some, their_masks).double().sum(0).cpu()
            bar.update(len(some))
    best = int(total.argmax())
    return Overlap(iou=float(total[best]) / len(maps), threshold=THRESHOLDS[best], count=len(maps))


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
    hits, mass, area = [], [], []
    for some, their_masks in _alike(maps, masks):
        hits.append(peaks_in_mask(some, their_masks))
        mass.append(mass_in_mask(some, their_masks))
        area.append(their_masks.float().mean((-2, -1)))
    return Grounding(
        pointing=torch.cat(hits).float().mean().item(),
        mass_in_mask=torch.cat(mass).mean().item(),
        area=torch.cat(area).mean().item(),
        count=len(maps),
    )


LEAST_LABELS = 2
"""Classes of an image that is pointed at: where there is one alone, a map need not tell it from another."""


@dataclass(frozen=True, slots=True)
class GroundedWord:
    """A word of a cached sample that names a class, and where objects of that class are.

    Attributes:
        position: of the sample in the cache.
        row: of the word in the sample's maps.
        bits: the mask, eight pixels a byte.
        size: (height, width) of the mask.
        label: the class.
    """

    position: int
    row: int
    bits: npt.NDArray[np.uint8]
    size: tuple[int, int]
    label: int

    @classmethod
    def of(cls, position: int, row: int, mask: npt.NDArray[np.bool_], label: int) -> GroundedWord:
        """Return a word whose mask, bool [H, W], is stored as one bit a pixel."""
        return cls(position, row, np.packbits(mask), (mask.shape[0], mask.shape[1]), label)

    @property
    def mask(self) -> Tensor:
        """bool [H, W], union of the masks of the class's instances; made anew each time."""
        height, width = self.size
        pixels = np.unpackbits(self.bits, count=height * width).astype(bool)
        return torch.from_numpy(pixels.reshape(height, width))


class WordMasks(Sequence[Tensor]):
    """Masks of words, each unpacked when it is asked for, so that only one is in memory whole."""

    def __init__(self, words: Sequence[GroundedWord]) -> None:
        self._words = words

    def __len__(self) -> int:
        return len(self._words)

    @overload
    def __getitem__(self, number: int) -> Tensor: ...
    @overload
    def __getitem__(self, number: slice) -> WordMasks: ...
    def __getitem__(self, number: int | slice) -> Tensor | WordMasks:
        """Return the mask of a word, or those of a range of words."""
        return WordMasks(self._words[number]) if isinstance(number, slice) else self._words[number].mask


def word_classes(store: TargetStore, dataset: Dataset) -> list[int | None]:
    """Return the class that each word of the cache's vocabulary names, as in training; None for other words."""
    labels: list[int] = classes_of_words(store.vocabulary.words, dataset.classes).tolist()
    return [label if label >= 0 else None for label in labels]


def class_words(store: TargetStore, dataset: Dataset) -> Iterator[tuple[int, int, int, int]]:
    """Yield position, row, place of the sample in `dataset`, and class of every word that names one, in cache order.

    Raises:
        DatasetError: the cache and the data set do not belong together.
    """
    recorded = (store.spec.dataset.name, store.spec.dataset.split)
    if recorded != (dataset.name, dataset.split):
        raise DatasetError(
            f"{store.path} must hold targets of {dataset.name}, split {dataset.split}; it holds {recorded[0]}, split "
            f"{recorded[1]}. Give the targets of this split, or name the `split` to score."
        )
    places = {sample.key: place for place, sample in enumerate(dataset.samples)}
    class_of = word_classes(store, dataset)
    keys = store.index.keys
    for position, ids in zip(store.usable.tolist(), store.read_words(store.usable), strict=True):
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


def grounded_words(store: TargetStore, dataset: Dataset, *, least_labels: int = LEAST_LABELS) -> list[GroundedWord]:
    """Return every word of the cache that names a class with masks, of images with `least_labels` classes or more.

    Raises:
        DatasetError: the cache and the data set do not belong together, or no word names a class with a mask.
    """
    words = list(_each_grounded_word(store, dataset, least_labels))
    if not words:
        raise DatasetError(_nothing(store, dataset, least_labels))
    return words


def why_not_grounded(store: TargetStore, dataset: Dataset) -> str | None:
    """Return why `grounded_words` would return none, or None where it returns some; masks are decoded up to the first.

    Raises:
        DatasetError: the cache and the data set do not belong together.
    """
    if not count_masks(dataset.instances):
        return f"{dataset.name}, split {dataset.split}, has no masks."
    some = any(True for _ in _each_grounded_word(store, dataset, LEAST_LABELS))
    return None if some else _nothing(store, dataset, LEAST_LABELS)


def _each_grounded_word(store: TargetStore, dataset: Dataset, least_labels: int) -> Iterator[GroundedWord]:
    for position, row, place, label in class_words(store, dataset):
        sample = dataset.samples[place]
        if len(sample.labels) < least_labels:
            continue
        mask = class_mask(dataset.instances.get(sample.key, ()), label, sample.height, sample.width)
        if mask is not None:
            yield GroundedWord.of(position, row, mask, label)


def _nothing(store: TargetStore, dataset: Dataset, least_labels: int) -> str:
    left_out = f" Left out in reading: {'; '.join(dataset.notes)}." if dataset.notes else ""
    return (
        f"No word of {store.path} names a class of {dataset.name} with a mask in an image of {least_labels} or "
        f"more classes; there is nothing to point at.{left_out}"
    )


def teacher_maps(store: TargetStore, words: Sequence[GroundedWord], view: str = "full") -> list[Tensor]:
    """Return per teacher layer the cached map of each word, fp32 [P, gh, gw]."""
    if not words:
        return []
    positions = sorted({word.position for word in words})
    word_maps: dict[int, Tensor] = {}  # by the place of the word
    for first in range(0, len(positions), CHUNK):
        place = {position: i for i, position in enumerate(positions[first : first + CHUNK])}
        stored = store.read_many(list(place), view)
        maps = decode_maps(torch.from_numpy(stored.maps), torch.from_numpy(stored.scale), store.spec.codec.name)
        for i, word in enumerate(words):
            if word.position in place:
                # A view would keep all words of the chunk in memory.
                word_maps[i] = maps[place[word.position], :, word.row].clone()
    return list(torch.stack([word_maps[i] for i in range(len(words))], dim=1))


def teacher_grounding(store: TargetStore, words: Sequence[GroundedWord], view: str = "full") -> list[Grounding]:
    """Score the cached maps of each teacher layer on `words`."""
    masks = WordMasks(words)
    return [score(list(maps), masks) for maps in teacher_maps(store, words, view)]
