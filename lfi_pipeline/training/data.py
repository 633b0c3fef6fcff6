"""Training batches: images and the target maps that belong to what the students see of them."""

from __future__ import annotations

import math
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Sampler, get_worker_info
from torch.utils.data import Dataset as TorchDataset

from lfi_pipeline.core.errors import ConfigError, CorruptTargetsError, ImageReadError, LFIError
from lfi_pipeline.data import Dataset
from lfi_pipeline.data.augment import (
    DIRECTION_WORDS,
    WHOLE,
    Geometry,
    draw_changes,
    draw_geometry,
    view_image,
    view_maps,
)
from lfi_pipeline.data.dataset import uniform_number
from lfi_pipeline.data.images import read_image
from lfi_pipeline.data.mixing import Mix, draw_mix, mix_images, mix_labels, shown_by_maps, visible_labels
from lfi_pipeline.targets import TargetStore, decode_maps
from lfi_pipeline.targets.vocabulary import classes_of_words, named_classes
from lfi_pipeline.training.config import DataConfig
from lfi_pipeline.training.maps import MapSource, StoredMaps
from lfi_pipeline.training.sampler import Ticket, training_positions

Size = tuple[int, int]  # (height, width) in pixels
MAPS, IMAGE_EMBEDDING = "maps", "image_embedding"
_PHOTOMETRIC, _MIXING, _CUTTING = 1, 2, 3  # streams of random numbers beside that of the geometry


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """B training examples.

    Attributes:
        images: for each size that a student asks for, uint8 [B, 3, H, W].
        labels: fp32 [B, classes], 0 or 1, or between where images are mixed.
        windows: fp32 [B, 4], the part of the (mirrored) image that is seen.
        positions: int64 [B], of the images in the cache.
        mix: how images were cut and mixed; None where they were not. Maps and embeddings are of the unmixed images.
        maps, scale, words: stored targets of the seen view, uint8 [B, L, M, gh, gw], fp16 [B, L, M], int64 [B, M];
            None where no student reads maps.
        image_embedding: fp32 [B, E]; None where no student reads it.
        label_weight: fp32 [B], what the task's loss of an image counts: 0 where its labels are not used, the others so much
            that their mean over all images is 1; None where all labels are used.
        whole: whether every image is seen whole and unmixed, so that stored maps are targets as they are.
    """

    images: dict[Size, Tensor]
    labels: Tensor
    windows: Tensor
    positions: Tensor
    mix: Mix | None = None
    maps: Tensor | None = None
    scale: Tensor | None = None
    words: Tensor | None = None
    image_embedding: Tensor | None = None
    label_weight: Tensor | None = None
    whole: bool = False

    def __len__(self) -> int:
        return len(self.positions)

    def to(self, device: torch.device) -> Batch:
        """Move every tensor; from pinned memory, without waiting for it."""
        return self._mapped(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """Pin every tensor; a loader asks for it."""
        return self._mapped(Tensor.pin_memory)

    def _mapped(self, change: Callable[[Tensor], Tensor]) -> Batch:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        changed: dict[str, Any] = {name: change(v) for name, v in values.items() if isinstance(v, Tensor)}
        if self.mix is not None:
            changed["mix"] = self.mix.mapped(change)
        return replace(self, images={size: change(images) for size, images in self.images.items()}, **changed)


class TargetImages(TorchDataset[Batch]):
    """Images of a cache with their targets. Indexed by tickets, a whole batch at a time.

    What a ticket gives depends on (seed, epoch, position) alone (and on its partner, where images are mixed), so it is
    the same for any number of workers and processes and after any interruption.

    Args:
        store: the cache.
        data: what is read of it.
        sizes: of the students' inputs; an image is read and decoded once for all of them.
        reads: which targets to read, of `MAPS` and `IMAGE_EMBEDDING`.
    """

    def __init__(self, store: TargetStore, data: DataConfig, sizes: Sequence[Size], reads: frozenset[str]) -> None:
        self.store, self.data, self.sizes, self.reads = store, data, tuple(dict.fromkeys(sizes)), reads
        self.index = store.index
        self.mirror_stored = "hflip" not in store.spec.views
        trained = training_positions(store, data.hold_out)
        self.source = MapSource(store, data, trained)
        self.direction_ids = [i for i, word in enumerate(store.vocabulary.words) if word in DIRECTION_WORDS]
        # Columns are read once here, before workers are forked.
        self.paths, self.labels, self.checksums = self.index.paths, self.index.labels, self.index.image_crc32c
        self.class_of_word = classes_of_words(store.vocabulary.words, store.spec.dataset.classes)
        labelled = _chosen(self.index.keys, trained, "labels", data.label_share)
        self.label_weight = None if labelled is None else labelled / labelled[trained].mean()
        self.mapped = _chosen(self.index.keys, trained, "maps", data.map_share)
        self.one_label = all(len(self.labels[position]) == 1 for position in store.usable.tolist())

    def __getitems__(self, tickets: Sequence[Ticket]) -> Batch:
        seen: dict[Size, list[Tensor]] = {size: [] for size in self.sizes}
        windows, flips = [], []
        for epoch, position in tickets:
            geometry = draw_geometry(self.data.augmentation, np.random.default_rng([self.data.seed, epoch, position]))
            changes = draw_changes(
                self.data.photometric, np.random.default_rng([self.data.seed, epoch, position, _PHOTOMETRIC])
            )
            image = self._image(position, _least_side(geometry, self.sizes) if self.data.draft else 0)
            for size, images in seen.items():
                images.append(torch.from_numpy(view_image(image, geometry, size, changes=changes)))
            windows.append(geometry.window)
            flips.append(geometry.flip)
        positions = np.array([position for _, position in tickets])
        labels = torch.zeros(len(tickets), len(self.store.spec.dataset.classes))
        for row, position in enumerate(positions):
            labels[row, list(self.labels[position])] = 1.0
        targets = self._targets(positions, np.array(flips)) if self.reads or self.data.mix.cuts else {}
        mix = self._mix(tickets)
        if mix is not None and self.data.mix.cuts:
            mix, labels = self._cut(tickets, mix, labels, targets, torch.tensor(windows))
        images_of = {size: torch.stack(images) for size, images in seen.items()}
        return Batch(
            images=images_of if mix is None else {size: mix_images(each, mix) for size, each in images_of.items()},
            labels=labels if mix is None else mix_labels(labels, mix),
            windows=torch.tensor(windows),
            positions=torch.from_numpy(positions),
            mix=mix,
            whole=mix is None and all(window == WHOLE.window for window in windows),
            label_weight=None if self.label_weight is None else self.label_weight[positions],
            **{name: each for name, each in targets.items() if name == IMAGE_EMBEDDING or MAPS in self.reads},
        )

    def _image(self, position: int, least: int) -> Image.Image:
        return unchanged_image(self.store, position, self.paths[position], self.checksums[position], least)

    def _mix(self, tickets: Sequence[Ticket]) -> Mix | None:
        """Draw how neighbours (2i, 2i + 1) are mixed; None where the settings mix nothing."""
        config = self.data.mix
        if not config.active:
            return None
        pairs = [tickets[i : i + 2] for i in range(0, len(tickets) - 1, 2)]
        seeds = [[self.data.seed, _MIXING, *(number for ticket in pair for number in ticket)] for pair in pairs]
        return draw_mix(config, [np.random.default_rng(seed) for seed in seeds], len(tickets))

    def _cut(
        self, tickets: Sequence[Ticket], mix: Mix, labels: Tensor, targets: Mapping[str, Tensor], windows: Tensor
    ) -> tuple[Mix, Tensor]:
        """Mask images, at random, to what their maps show; return the mix with the masks, and the labels [B, classes].

        Labels of classes that a mask hides are dropped; data with one label an image keep each image's own label.
        """
        seeds = [[self.data.seed, _CUTTING, *ticket] for ticket in tickets]
        drawn = torch.tensor([np.random.default_rng(seed).random() < self.data.mix.maps_probability for seed in seeds])
        drawn &= mix.partner != torch.arange(len(tickets))
        drawn &= (targets["scale"] > 0).flatten(1).any(1)  # without a map there is nothing to cut by
        if self.data.maps == "uniform":
            drawn[:] = False  # a flat map leaves nothing out
        stored = decode_maps(targets["maps"][:, -1:], targets["scale"][:, -1:], self.store.spec.codec.name)
        mass = view_maps(stored, windows, (stored.shape[-2], stored.shape[-1]))[:, 0]  # [B, M, gh, gw]
        words = targets["words"]
        classes = named_classes(words, self.class_of_word)
        cutting = classes >= 0 if self.store.spec.dataset.classes else words >= 0
        kept = torch.where(drawn[:, None, None], shown_by_maps(mass, cutting), 1)
        seen = labels if self.one_label else visible_labels(labels, mass, classes, kept, mix.partner)
        return replace(mix, kept=kept), seen

    def _targets(self, positions: npt.NDArray[np.int64], flips: npt.NDArray[np.bool_]) -> dict[str, Tensor]:
        """Return the stored targets of the view each image is seen in (`full` or `hflip`), shapes as in `Batch`."""
        mirrored = flips & (not self.mirror_stored)
        with_maps, read = MAPS in self.reads or self.data.mix.cuts, self.data.words
        parts: dict[str, Tensor] = {}
        for view, rows in (("full", np.flatnonzero(~mirrored)), ("hflip", np.flatnonzero(mirrored))):
            if not len(rows):
                continue
            own = self.store.read_many(positions[rows], view)
            values = {IMAGE_EMBEDDING: torch.from_numpy(own.image_embedding)}
            if with_maps:
                words = torch.from_numpy(own.words)[:, :read].long()
                stored = StoredMaps(torch.from_numpy(own.maps)[:, :, :read], torch.from_numpy(own.scale)[:, :, :read])
                stored = self.source.of(positions[rows], view, words, stored)
                values |= {"maps": stored.codes, "scale": stored.scale, "words": words}
            for name, value in values.items():
                parts.setdefault(name, value.new_zeros(len(positions), *value.shape[1:]))[rows] = value
        chosen = {IMAGE_EMBEDDING: parts[IMAGE_EMBEDDING].float()} if IMAGE_EMBEDDING in self.reads else {}
        if not with_maps:
            return chosen
        maps, scale, words = (parts[name] for name in ("maps", "scale", "words"))
        if self.mirror_stored and flips.any():
            seen_mirrored = torch.from_numpy(flips)
            maps = torch.where(seen_mirrored.view(-1, 1, 1, 1, 1), maps.flip(-1), maps)
            direction = torch.isin(words, torch.tensor(self.direction_ids, dtype=torch.long))
            words = torch.where(seen_mirrored[:, None] & direction, -1, words)
        if self.mapped is not None:  # a scale of 0 is how an absent map is stored
            scale = scale * self.mapped[positions][:, None, None]
        return chosen | {"maps": maps, "scale": scale, "words": words}


def _chosen(keys: Sequence[str], trained: npt.NDArray[np.int64], of: str, share: float) -> Tensor | None:
    """Return 1 for the images of a share, chosen by their keys, and 0 for the others, fp32 [S]; None for all of them.

    Raises:
        ConfigError: none is chosen of those that are trained on.
    """
    if share == 1:
        return None
    chosen = torch.tensor([float(uniform_number(f"{of} {key}") < share) for key in keys])
    if not chosen[trained].any():
        raise ConfigError(
            f"A share of {share:g} of {len(trained)} images must hold one whose {of} are used, found none."
        )
    return chosen


_DRAFT = 2
"""Pixels of a draft for each one that is seen: fewer, and its coarser filter would show."""


def _least_side(geometry: Geometry, sizes: Sequence[Size]) -> int:
    """Return how many pixels each side of an image must keep so that a window has `_DRAFT` for each one that is seen."""
    left, top, right, bottom = geometry.window
    across = max(width for _, width in sizes) / (right - left)
    down = max(height for height, _ in sizes) / (bottom - top)
    return math.ceil(_DRAFT * max(across, down))


def unchanged_image(store: TargetStore, position: int, path: str, checksum: int, least: int = 0) -> Image.Image:
    """Read the image at `position` of a cache, of which `path` and `checksum` are recorded, as upright RGB.

    `least` is as `read_image` takes it.

    Raises:
        ImageReadError: it cannot be read.
        CorruptTargetsError: its bytes do not have the crc32c that the cache recorded.
    """
    image, image_crc, _ = read_image(store.data_root, path, least)
    if image_crc != checksum:
        raise CorruptTargetsError(
            f"{store.data_root / path} (sample {store.index.keys[position]}) is not the image that the "
            f"teacher saw: its crc32c is {image_crc:08x}, the cache recorded {checksum:08x}. Restore the image, or "
            "extract targets anew."
        )
    return image


@dataclass(frozen=True, slots=True)
class LoaderFailure:
    """Traceback of an error in a loader's worker process that is not an `LFIError`."""

    text: str


class ErrorsAsValues(TorchDataset[Batch | LFIError | LoaderFailure]):
    """Returns errors as values instead of raising them.

    Raised in a loader's worker process, an `LFIError` would reach the user as a traceback, and no error could be told
    from the death of that process.
    """

    def __init__(self, images: TargetImages) -> None:
        self.images = images

    def __getitems__(self, tickets: Sequence[Ticket]) -> Batch | LFIError | LoaderFailure:
        try:
            return self.images.__getitems__(tickets)
        except LFIError as error:
            return error
        except Exception:
            if get_worker_info() is None:
                raise
            return LoaderFailure(traceback.format_exc())


def batch_loader(
    images: TargetImages, batches: Sampler[list[Ticket]], *, workers: int, pin_memory: bool
) -> DataLoader[Batch | LFIError | LoaderFailure]:
    """Return a loader of `batches`, whose items are for `unwrapped`."""
    return DataLoader(
        ErrorsAsValues(images),
        batch_sampler=batches,
        collate_fn=whole_batch,
        num_workers=workers,
        pin_memory=pin_memory,
    )


def unwrapped(item: Batch | LFIError | LoaderFailure) -> Batch:
    """Return the batch that a loader gave.

    Raises:
        LFIError: the one that the loader met.
        RuntimeError: a loader process met another error; holds its traceback.
    """
    if isinstance(item, LFIError):
        raise item
    if isinstance(item, LoaderFailure):
        raise RuntimeError(f"A loader process met an error:\n{item.text}")
    return item


def whole_batch(batch: Any) -> Batch | LFIError | LoaderFailure:
    """Return `batch` unchanged: the data set returns whole batches, so the loader has nothing to collate."""
    assert isinstance(batch, Batch | LFIError | LoaderFailure)
    return batch


class PlainImages(TorchDataset[tuple[dict[Size, Tensor], Tensor, bool]]):
    """Whole images of a data set for scoring.

    An item is uint8 [3, H, W] for each size, fp32 labels [classes], and whether the image could be read; it is black
    where it could not.
    """

    def __init__(self, dataset: Dataset, sizes: Sequence[Size]) -> None:
        self.dataset, self.sizes = dataset, tuple(dict.fromkeys(sizes))

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, position: int) -> tuple[dict[Size, Tensor], Tensor, bool]:
        sample = self.dataset.samples[position]
        labels = torch.zeros(len(self.dataset.classes))
        labels[list(sample.labels)] = 1.0
        try:
            image, _, _ = read_image(self.dataset.root, sample.path)
        except ImageReadError:
            return {size: torch.zeros(3, *size, dtype=torch.uint8) for size in self.sizes}, labels, False
        return {size: torch.from_numpy(view_image(image, WHOLE, size)) for size in self.sizes}, labels, True
