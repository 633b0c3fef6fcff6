"""Target maps of a batch: whose they are (the teacher's, or a control's), and how they are cut to what a student sees."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lfi_kernels.interaction_attention import Companding
from lfi_pipeline.core.errors import ConfigError, DatasetError
from lfi_pipeline.data import Dataset, read_dataset
from lfi_pipeline.data.augment import WHOLE, view_maps
from lfi_pipeline.data.dataset import class_mask, relabelled
from lfi_pipeline.data.mixing import Mix, mix_maps
from lfi_pipeline.data.objects import count_masks
from lfi_pipeline.students import Supervision
from lfi_pipeline.targets import TargetStore, decode_maps, encode_maps
from lfi_pipeline.targets.vocabulary import classes_of_words, named_classes
from lfi_pipeline.training.config import DataConfig

Grid = tuple[int, int]  # (rows, columns)


@dataclass(frozen=True, slots=True)
class Cut:
    """Target maps of a batch on one grid, cut to the part of each image that is seen.

    Attributes:
        maps: fp32 [B, L, M, N]; a row sums to 1, or to 0 where nothing of it is seen.
        kept: fp32 [B, L, M], share of the word's mass that is seen: the w of the loss (objectives/interaction.py); 0 for padding.
        words: int64 [B, M], -1 for padding.
    """

    maps: Tensor
    kept: Tensor
    words: Tensor


class BatchOfMaps(Protocol):
    """What of a `training.data.Batch` the maps are made of; attributes as there."""

    @property
    def maps(self) -> Tensor | None: ...
    @property
    def scale(self) -> Tensor | None: ...
    @property
    def words(self) -> Tensor | None: ...
    @property
    def windows(self) -> Tensor: ...
    @property
    def mix(self) -> Mix | None: ...
    @property
    def whole(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class Codes:
    """Target maps of a batch as they are stored, on the grid they are stored on.

    Attributes:
        maps: uint8 [B, L, M, N].
        scale: fp32 [B, L, M], what the largest code stands for.
        kept: fp32 [B, L, M], 1 for a word with a map, 0 without.
        words: int64 [B, M], -1 for padding.
    """

    maps: Tensor
    scale: Tensor
    kept: Tensor
    words: Tensor


COMPANDINGS: dict[str, Companding] = {"uint8_sqrt": "sqrt", "uint8_linear": "linear"}
"""Codec -> its curve, of those that the kernel decodes itself."""


class MapResampler:
    """Maps of a batch on any student's grid; each grid is cut once, whichever students share it.

    Args:
        batch: with maps.
        codec: of the stored maps.
        uniform: replace every present map by the uniform one (a control).
    """

    def __init__(self, batch: BatchOfMaps, codec: str, *, uniform: bool = False) -> None:
        assert batch.maps is not None
        assert batch.scale is not None
        assert batch.words is not None
        self._batch, self._words = batch, batch.words
        self._codec, self._uniform = codec, uniform
        # on a CPU the decoded maps are as fast, and their rows sum to 1 exactly
        self.hands_codes = batch.maps.is_cuda and batch.whole and not uniform and codec in COMPANDINGS
        self._cuts: dict[Grid, Cut] = {}

    @cached_property
    def _stored(self) -> Tensor:
        """The maps decoded, fp32 [B, L, M, gh, gw]."""
        batch = self._batch
        assert batch.maps is not None
        assert batch.scale is not None
        stored = decode_maps(batch.maps, batch.scale, self._codec)
        if not self._uniform:
            return stored
        cells = stored.shape[-1] * stored.shape[-2]
        return (stored.sum((-2, -1), keepdim=True) > 0).float().expand_as(stored) / cells

    @property
    def companding(self) -> Companding:
        """The curve of the codes that `codes_on` returns."""
        return COMPANDINGS.get(self._codec, "sqrt")

    def codes_on(self, grid: Grid) -> Codes | None:
        """Return the stored codes where they are the maps on `grid`; None where maps must be cut, mixed or made flat.

        On a GPU the fused kernel reads a quarter of the bytes of the decoded maps then.
        """
        batch = self._batch
        assert batch.maps is not None
        assert batch.scale is not None
        if not self.hands_codes or batch.maps.shape[-2:] != grid:
            return None
        present = (batch.scale > 0) & (self._words >= 0)[:, None]
        return Codes(batch.maps.flatten(-2), batch.scale.float(), present.float(), self._words)

    def on(self, grid: Grid) -> Cut:
        """Return the maps on `grid`."""
        if grid not in self._cuts:
            self._cuts[grid] = self._cut(grid)
        return self._cuts[grid]

    def _cut(self, grid: Grid) -> Cut:
        mass, words = view_maps(self._stored, self._batch.windows, grid), self._words
        if self._batch.mix is not None:
            mass, words = mix_maps(mass, words, self._batch.mix)
        mass = mass.flatten(-2)  # [B, L, M, N]
        kept = mass.sum(-1)
        return Cut(mass / kept.clamp_min(1e-12)[..., None], kept * (words >= 0)[:, None], words)


def peakedness(maps: Tensor) -> Tensor:
    """Return 1 - H(map) / log N of maps [..., N], fp32 [...]: 1 for all mass in one cell, 0 for a flat or an absent map."""
    cells = maps.shape[-1]
    if cells == 1:
        return (maps.sum(-1) > 0).float()
    spread = torch.special.entr(maps.float()).sum(-1) / math.log(cells)
    share: Tensor = (1 - spread).clamp(0, 1) * (maps.sum(-1) > 0)
    return share


@dataclass(frozen=True, slots=True)
class StoredMaps:
    """Maps of R images as a cache stores them: codes, uint8 [R, L, M, gh, gw], and scale, fp16 [R, L, M]."""

    codes: Tensor
    scale: Tensor


_MOVED = 4  # a stream of random numbers beside those of `training.data`


class MapSource:
    """The maps that images are trained with, by the setting `maps`.

    `teacher` takes those of the cache. The others are controls: `shuffled` gives an image the maps of another, `moved` its
    own maps shifted around the edges by a quarter to three quarters of each side (as peaked, as many, in the wrong place),
    and `masks` the true masks of the objects that a word names: a ceiling for what maps can give. Words that name no
    object with a mask have no map there. `uniform` is made on the device, by `MapResampler`.

    Args:
        store: the cache.
        data: what is read of it.
        positions: of the images that are trained on; maps are shuffled among these.

    Raises:
        ConfigError: `masks` of a data set that has none.
        DatasetError: the data set is not there.
    """

    def __init__(self, store: TargetStore, data: DataConfig, positions: npt.NDArray[np.int64]) -> None:
        self.store, self.maps, self.seed = store, data.maps, data.seed
        self.donor = donors(positions, data.seed)
        self._masks = TrueMasks(store) if data.maps == "masks" else None

    def of(self, positions: npt.NDArray[np.int64], view: str, words: Tensor, own: StoredMaps) -> StoredMaps:
        """Return the maps of images seen in `view`.

        Args:
            positions: [R].
            view: `full` or `hflip`.
            words: int64 [R, M], those of the images themselves; -1 for padding.
            own: the images' own maps.
        """
        if self._masks is not None:
            return self._masks.of(positions, view, words, own)
        if self.maps == "moved":
            return StoredMaps(self._moved(positions, own.codes), own.scale)
        if self.maps != "shuffled":
            return own
        given = self.store.read_many(self.donor[positions], view)
        read = words.shape[1]
        codes, scale = torch.from_numpy(given.maps)[:, :, :read], torch.from_numpy(given.scale)[:, :, :read]
        return _cycled(codes, scale, words)

    def _moved(self, positions: npt.NDArray[np.int64], codes: Tensor) -> Tensor:
        rows, columns = codes.shape[-2:]
        moved = []
        for position, maps in zip(positions.tolist(), codes, strict=True):
            rng = np.random.default_rng([self.seed, _MOVED, position])
            shift = [int(rng.integers(max(1, side // 4), max(2, 3 * side // 4 + 1))) for side in (rows, columns)]
            moved.append(torch.roll(maps, shift, (-2, -1)))
        return torch.stack(moved)


class TrueMasks:
    """Masks of objects as target maps: a map is the share of each cell that the objects of a word's class cover.

    Args:
        store: a cache of a data set with masks.

    Raises:
        ConfigError: its data set has none.
        DatasetError: its data set is not there, or has a class that the cache has not.
    """

    def __init__(self, store: TargetStore) -> None:
        spec = store.spec.dataset
        dataset = read_dataset(store.source, store.source_root, spec.split)
        self._dataset: Dataset = relabelled(dataset, spec.classes, f"the cache {store.path}")
        if not count_masks(self._dataset.instances):
            raise ConfigError(
                f"maps 'masks' needs a data set with masks, and {spec.name} in {store.source_root} has none.",
                argument="maps",
            )
        self._codec = store.spec.codec.name
        self._class_of_word = classes_of_words(store.vocabulary.words, spec.classes)
        self._keys = store.index.keys
        self._sizes = {sample.key: (sample.height, sample.width) for sample in self._dataset.samples}

    def of(self, positions: npt.NDArray[np.int64], view: str, words: Tensor, like: StoredMaps) -> StoredMaps:
        """Return the masks of words [R, M] as maps of the shape of `like`, each layer alike.

        Raises:
            DatasetError: a mask that does not fit its image, or an image that is no longer in the data set.
        """
        _, layers, _, rows, columns = like.codes.shape
        classes = named_classes(words, self._class_of_word)
        maps = torch.zeros(*words.shape, rows, columns)
        for row, position in enumerate(positions.tolist()):
            maps[row] = self._of_image(self._keys[position], classes[row].tolist(), (rows, columns))
        if view == "hflip":
            maps = maps.flip(-1)
        mass = maps.sum((-2, -1), keepdim=True)
        codes, scale = encode_maps((maps / mass.clamp_min(1e-12)).numpy(), self._codec)
        each = (torch.from_numpy(codes)[:, None], torch.from_numpy(scale)[:, None])
        return StoredMaps(*(part.expand(-1, layers, *part.shape[2:]).contiguous() for part in each))

    def _of_image(self, key: str, classes: list[int], grid: Grid) -> Tensor:
        """Return fp32 [M, rows, columns], the share of each cell that a word's objects cover; 0 for words without any."""
        if key not in self._sizes:
            raise DatasetError(f"{self._dataset.root} must hold the image {key} of the cache, found no such record.")
        height, width = self._sizes[key]
        objects = self._dataset.instances.get(key, ())
        covered = torch.zeros(len(classes), *grid)
        whole = torch.tensor([WHOLE.window])
        for place, label in enumerate(classes):
            mask = class_mask(objects, label, height, width)
            if mask is not None:
                covered[place] = view_maps(torch.from_numpy(mask).float()[None, None], whole, grid)[0, 0]
        return covered


def donors(positions: npt.NDArray[np.int64], seed: int) -> npt.NDArray[np.int64]:
    """Return, for the `shuffled` control, position -> position whose maps it gets: a cyclic permutation by seed."""
    donor = np.zeros(int(positions.max(initial=0)) + 1, dtype=np.int64)
    order = np.random.default_rng([seed, 1]).permutation(positions)
    donor[order] = np.roll(order, 1)
    return donor


def _cycled(codes: Tensor, scale: Tensor, words: Tensor) -> StoredMaps:
    """Spread a donor's present rows over the receiver's words."""
    present = (scale > 0).all(1)  # [R, M]; a word of direction leaves a gap in the mirrored view
    first = present.int().argsort(dim=1, descending=True, stable=True)  # rows with a map, then those without
    rows = first.gather(1, torch.arange(words.shape[1]) % present.sum(1).clamp_min(1)[:, None])  # [R, M]
    scale = scale.gather(2, rows[:, None].expand_as(scale))
    codes = codes.gather(2, rows[:, None, :, None, None].expand_as(codes))
    return StoredMaps(codes, scale)


def class_rows(words: Tensor, class_of_word: Tensor, classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return which words of a batch teach which class, in tensors whose shapes do not depend on the words.

    An image has as many rows as words, or as classes if these are fewer; no class twice, which the kernels forbid. Of
    several words of one class the first is taken. Rows beyond the words that name a class have some class, and no word.

    Args:
        words: int64 [B, M], -1 for padding.
        class_of_word: int64 [V], -1 for a word that names none.
        classes: K.

    Returns:
        [B, R] each: the class, the place of its word in M, and whether there is such a word.
    """
    size = words.shape[1]
    of_class = named_classes(words, class_of_word)
    places = torch.arange(size, device=words.device).expand_as(words)
    first = torch.full((len(words), classes + 1), size, device=words.device)
    # words without a class fall into a last column, which is cut off
    first = first.scatter_reduce(1, of_class.remainder(classes + 1), places, "amin")[:, :classes]
    keys = first * classes + torch.arange(classes, device=words.device)  # each once: the choice is the same everywhere
    chosen = keys.topk(min(size, classes), dim=1, largest=False).values
    place = chosen // classes
    return chosen % classes, place.clamp_max(size - 1), place < size


def class_supervision(words: Tensor, class_of_word: Tensor, classes: int, of_words: Supervision) -> Supervision:
    """Return the maps of words as rows that teach a query head's classes (`class_rows`); `of_words` needs no embeddings."""
    row_class, place, named = class_rows(words, class_of_word, classes)
    row_batch = torch.arange(len(words), device=words.device)[:, None].expand_as(row_class)

    def rows(per_word: Tensor) -> Tensor:  # [B, M, ...] -> [B * R, ...]
        index = place.view(*place.shape, *[1] * (per_word.ndim - 2))
        return per_word.take_along_dim(index, 1).flatten(0, 1)

    return replace(
        of_words,
        words=None,
        targets=[rows(each) for each in of_words.targets or ()],
        weights=[rows(each) * named.flatten() for each in of_words.weights or ()],
        scales=[None if each is None else rows(each) for each in of_words.scales or ()],
        row_batch=row_batch.flatten(),
        row_query=row_class.flatten(),
    )
