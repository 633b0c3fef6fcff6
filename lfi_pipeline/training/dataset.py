"""A cache as a torch data set for a notebook or a training loop of one's own: samples by number, batches by loader."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset

from lfi_pipeline.core.errors import ConfigError
from lfi_pipeline.core.options import build
from lfi_pipeline.data.augment import WHOLE, view_image, view_maps
from lfi_pipeline.targets import TargetStore, decode_maps
from lfi_pipeline.targets.store import sample_image
from lfi_pipeline.training.config import DataConfig
from lfi_pipeline.training.data import IMAGE_EMBEDDING, MAPS, Batch, TargetImages, batch_loader, unwrapped
from lfi_pipeline.training.maps import Grid
from lfi_pipeline.training.sampler import ResumableBatchSampler, require_samples, require_views

PIXELS_A_CELL = 16
"""Side of the square of pixels that one cell of a map covers, unless a grid is given: the patch of a ViT-S/16."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TargetSample:
    """One image of a cache with what the teacher says of it.

    Attributes:
        key: what the data set calls the image.
        image: uint8 [3, H, W], the whole image, resized.
        words: content words of the image's text, in the order of the text.
        maps: word -> fp32 [layers, rows, columns]: where the teacher looks for the word, by its layers; each layer
            sums to 1. A word without a map is not in it.
        label: fp32 [classes], 1 for every class that the image is labelled with, else 0; `TargetDataset.classes`
            names them.
        image_embedding: fp32 [E], of the teacher, not normalised.
    """

    key: str
    image: Tensor
    words: tuple[str, ...]
    maps: Mapping[str, Tensor]
    label: Tensor
    image_embedding: Tensor


class TargetDataset(TorchDataset[TargetSample]):
    """Images of a cache with their interaction maps; the teacher is not needed.

    By number it gives whole images (`TargetSample`); `loader` gives batches for a `Distiller`, in which crops, flips
    and mixing are replayed on the maps.

    Example:
        >>> import lfi_pipeline as lfi
        >>> targets = lfi.TargetDataset("shards", image_size=64)   # doctest: +SKIP
        >>> targets[0].maps["dog"].sum((-2, -1))                    # doctest: +SKIP
        tensor([1.])

    Args:
        targets: directory of a cache, as `lfi_pipeline.extract` makes it.
        image_size: side, or (height, width), of the images in pixels.
        grid: (rows, columns) of the maps of samples; None: a cell for every 16 pixels. Maps are densities over the
            image, so a change of grid moves no mass. In training every tap has its own grid, whatever this is.
        data_root: directory of the images, if they have moved since the cache was made.
        settings: what batches are like, by the names of `lfi_pipeline.training.DataConfig`, such as `seed=1`,
            `hold_out=("photo",)` or `words=8`.

    Raises:
        TargetsError: `targets` is not a complete cache.
        ConfigError, UnknownNameError: a setting that does not exist or cannot be.
    """

    def __init__(
        self,
        targets: str | Path,
        *,
        image_size: int | tuple[int, int] = 224,
        grid: tuple[int, int] | None = None,
        data_root: str | Path | None = None,
        **settings: Any,
    ) -> None:
        self.image_size = (image_size, image_size) if isinstance(image_size, int) else image_size
        if min(self.image_size) < 1:
            raise ConfigError(f"image_size must be 1 or more pixels, got {image_size}.")
        rows, columns = (max(1, round(side / PIXELS_A_CELL)) for side in self.image_size)
        self.grid: Grid = (rows, columns) if grid is None else grid
        self.data = build(DataConfig, {"targets": targets, "data_root": data_root, **settings})
        self.store = TargetStore.open(targets, data_root=data_root)
        self.positions = require_samples(self.store, self.data)

    def __len__(self) -> int:
        """Number of images that can be trained on: neither quarantined nor of a domain that is held out."""
        return len(self.positions)

    def __repr__(self) -> str:
        spec = self.store.spec
        return (
            f"TargetDataset({str(self.store.path)!r}: {len(self)} images of {spec.dataset.name}, {spec.dataset.split}; "
            f"teacher {spec.teacher.name}, layers {len(spec.layers)}, views {', '.join(spec.views)})"
        )

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes of the data set; empty where it has none."""
        return tuple(self.store.spec.dataset.classes)

    def __getitem__(self, number: int) -> TargetSample:
        """Return one whole image with its targets.

        Raises:
            IndexError: no such number.
            CorruptTargetsError: the image, or stored bytes, are not those that were recorded.
        """
        position = int(self.positions[number])
        image = sample_image(self.store, position)
        targets = self.store.read(position)
        stored = decode_maps(
            torch.from_numpy(targets.maps)[None], torch.from_numpy(targets.scale)[None], self.store.spec.codec.name
        )
        maps = view_maps(stored, torch.tensor([WHOLE.window]), self.grid)[0]  # [L, M, rows, columns]
        maps = maps / maps.sum((-2, -1), keepdim=True).clamp_min(1e-12)  # the codec's rounding leaves 1e-4
        names, words = self.store.vocabulary.words, [int(word) for word in targets.words if word >= 0]
        label = torch.zeros(len(self.classes))
        label[list(self.store.index.labels[position])] = 1.0
        return TargetSample(
            key=self.store.index.keys[position],
            image=torch.from_numpy(view_image(image, WHOLE, self.image_size)),
            words=tuple(names[word] for word in words),
            maps={names[word]: maps[:, m] for m, word in enumerate(words) if maps[:, m].any()},
            label=label,
            image_embedding=torch.from_numpy(targets.image_embedding).float(),
        )

    def loader(self, batch_size: int = 64, *, workers: int = 0, pin_memory: bool = False) -> TargetLoader:
        """Return batches of augmented images with their targets, shuffled anew in each pass over the loader.

        Args:
            batch_size: images a batch. A last batch that would be smaller is left out.
            workers: processes that read and decode; 0: this one. Batches are the same for any number of them.
            pin_memory: as of torch's `DataLoader`: faster copies to a GPU.

        Raises:
            ConfigError: `batch_size` is not 1 or more; the cache lacks the view `hflip` that flips need.
        """
        if batch_size < 1:
            raise ConfigError(f"batch_size must be 1 or more, got {batch_size}.")
        return TargetLoader(self, batch_size, workers=workers, pin_memory=pin_memory)


class TargetLoader:
    """Batches of a `TargetDataset`, a pass at a time. What a batch holds depends on seed, pass and number alone.

    `state_dict` says which batch comes next; a loader that is given it goes on there, in a new process too.
    """

    def __init__(self, dataset: TargetDataset, batch_size: int, *, workers: int, pin_memory: bool) -> None:
        self._dataset, self._workers, self._pin_memory = dataset, workers, pin_memory
        self._batch_size, self._epoch, self._step = batch_size, 0, 0
        require_views(dataset.store, dataset.data, reads_targets=True)
        self._images = TargetImages(
            dataset.store, dataset.data, [dataset.image_size], frozenset({MAPS, IMAGE_EMBEDDING})
        )

    def __len__(self) -> int:
        """Batches of one pass."""
        return self._batches().steps_per_epoch

    def __iter__(self) -> Iterator[Batch]:
        loader = batch_loader(self._images, self._batches(), workers=self._workers, pin_memory=self._pin_memory)
        for batch in map(unwrapped, loader):
            self._step += 1
            yield batch
        self._epoch, self._step = self._epoch + 1, 0

    def state_dict(self) -> dict[str, int]:
        """Return the pass and the batch in it that come next."""
        return {"epoch": self._epoch, "step": self._step}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Continue where `state_dict` was called, with the same data set and batch size."""
        self._epoch, self._step = int(state["epoch"]), int(state["step"])

    def _batches(self) -> ResumableBatchSampler:
        """Return the sampler of the batches that are left in the current pass."""
        stream = replace(self._dataset.data, batch_size=self._batch_size, epochs=self._epoch + 1)
        tickets = ResumableBatchSampler(self._dataset.positions, stream)
        tickets.start = self._epoch * tickets.steps_per_epoch + self._step
        return tickets
