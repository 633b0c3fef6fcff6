"""Training batches: images and the targets that belong to what the student sees of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data import Sampler

from lfi_pipeline.data import Dataset
from lfi_pipeline.data.directions import DIRECTION_WORDS
from lfi_pipeline.data.images import read_image
from lfi_pipeline.data.replay import WHOLE, view_image
from lfi_pipeline.errors import CorruptTargetsError, LFIError
from lfi_pipeline.targets import TargetStore
from lfi_pipeline.training.config import TrainConfig

Ticket = tuple[int, int]  # (epoch, position in the cache)


@dataclass(frozen=True, slots=True)
class Batch:
    """B training examples.

    Attributes:
        images: uint8 [B, 3, H, W].
        labels: fp32 [B, classes], 0 or 1.
        windows: fp32 [B, 4], the part of the (mirrored) image that is seen.
        maps, scale, words: stored targets of the seen view, uint8 [B, L, M, gh, gw], fp16 [B, L, M], int64 [B, M];
            None for an objective without maps.
        image_embedding: fp32 [B, E]; None for an objective that does not use it.
    """

    images: Tensor
    labels: Tensor
    windows: Tensor
    maps: Tensor | None = None
    scale: Tensor | None = None
    words: Tensor | None = None
    image_embedding: Tensor | None = None

    def to(self, device: torch.device) -> Batch:
        """Move every tensor."""
        return Batch(*(None if value is None else value.to(device) for value in self._tensors()))  # type: ignore[arg-type]

    def _tensors(self) -> tuple[Tensor | None, ...]:
        return (
            self.images,
            self.labels,
            self.windows,
            self.maps,
            self.scale,
            self.words,
            self.image_embedding,
        )


class TargetImages(TorchDataset[Batch]):
    """Images of a cache with their targets. Indexed by tickets, a whole batch at a time.

    What a ticket gives depends on (seed, epoch, position) alone, so it is the same for any number of workers and
    after any interruption.
    """

    def __init__(self, store: TargetStore, config: TrainConfig, size: tuple[int, int]) -> None:
        self.store, self.config, self.size = store, config, size
        self.index = store.index
        self.mirror_stored = "hflip" not in store.spec.views
        self.donor = _donors(training_positions(store, config.hold_out), config)
        self.direction_ids = [i for i, word in enumerate(store.vocabulary.words) if word in DIRECTION_WORDS]
        # Columns are read once here, before workers are forked.
        self.paths, self.labels, self.checksums = self.index.paths, self.index.labels, self.index.image_crc32c

    def __getitems__(self, tickets: Sequence[Ticket]) -> Batch:
        images, windows, flips = [], [], []
        for epoch, position in tickets:
            rng = np.random.default_rng([self.config.seed, epoch, position])
            geometry = self.config.augmentation.draw(rng)
            path = self.paths[position]
            image, checksum, _ = read_image(self.store.data_root, path)
            if checksum != self.checksums[position]:
                raise CorruptTargetsError(
                    f"{self.store.data_root / path} (sample {self.index.keys[position]}) is not the image that the "
                    f"teacher saw: its crc32c is {checksum:08x}, the cache recorded {self.checksums[position]:08x}. "
                    "Restore the image, or extract targets anew."
                )
            images.append(torch.from_numpy(view_image(image, geometry, self.size)))
            windows.append(geometry.window)
            flips.append(geometry.flip)
        positions = np.array([position for _, position in tickets])
        labels = torch.zeros(len(tickets), len(self.store.spec.dataset.classes))
        for row, position in enumerate(positions):
            labels[row, list(self.labels[position])] = 1.0
        common = {"images": torch.stack(images), "labels": labels, "windows": torch.tensor(windows)}
        if self.config.objective == "none":
            return Batch(**common)
        return Batch(**common, **self._targets(positions, np.array(flips)))

    def _targets(self, positions: npt.NDArray[np.int64], flips: npt.NDArray[np.bool_]) -> dict[str, Tensor]:
        """Stored targets of the view that each image is seen in."""
        mirrored = flips & (not self.mirror_stored)
        parts: dict[str, npt.NDArray[np.generic]] = {}
        for view, rows in (("full", np.flatnonzero(~mirrored)), ("hflip", np.flatnonzero(mirrored))):
            if not len(rows):
                continue
            own = self.store.read_many(positions[rows], view)
            maps_of = own if self.config.maps != "shuffled" else self.store.read_many(self.donor[positions[rows]], view)
            for name, values in (
                ("maps", maps_of.maps),
                ("scale", maps_of.scale),
                ("words", own.words),
                ("image_embedding", own.image_embedding),
            ):
                parts.setdefault(name, np.zeros((len(positions), *values.shape[1:]), values.dtype))[rows] = values
        if self.config.objective == "embedding":
            return {"image_embedding": torch.from_numpy(parts["image_embedding"]).float()}
        maps, scale, words = (torch.from_numpy(parts[name]) for name in ("maps", "scale", "words"))
        words = words.long()
        if self.config.maps == "shuffled":
            scale, maps = _cycled(maps, scale, words)
        if self.mirror_stored and flips.any():
            seen_mirrored = torch.from_numpy(flips)
            maps = torch.where(seen_mirrored.view(-1, 1, 1, 1, 1), maps.flip(-1), maps)
            direction = torch.isin(words, torch.tensor(self.direction_ids, dtype=torch.long))
            words = torch.where(seen_mirrored[:, None] & direction, -1, words)
        return {"maps": maps, "scale": scale, "words": words}


class ErrorsAsValues(TorchDataset[Batch | LFIError]):
    """Gives a user's error back as a value; raised in a loader's worker process, it would come out as a traceback."""

    def __init__(self, images: TargetImages) -> None:
        self.images = images

    def __getitems__(self, tickets: Sequence[Ticket]) -> Batch | LFIError:
        try:
            return self.images.__getitems__(tickets)
        except LFIError as error:
            return error


class Tickets(Sampler[list[Ticket]]):
    """Batches of tickets for all epochs, starting at any step; each epoch is a fresh permutation."""

    def __init__(self, positions: npt.NDArray[np.int64], config: TrainConfig, start: int = 0) -> None:
        self.positions, self.config, self.start = positions, config, start
        self.steps_per_epoch = max(1, len(positions) // config.batch_size)

    def __len__(self) -> int:
        return self.steps_per_epoch * self.config.epochs - self.start

    def __iter__(self) -> Iterator[list[Ticket]]:
        size = min(self.config.batch_size, len(self.positions))
        for epoch in range(self.start // self.steps_per_epoch, self.config.epochs):
            order = np.random.default_rng([self.config.seed, epoch]).permutation(self.positions)
            first = self.start % self.steps_per_epoch if epoch == self.start // self.steps_per_epoch else 0
            for step in range(first, self.steps_per_epoch):
                yield [(epoch, int(position)) for position in order[step * size : (step + 1) * size]]


class PlainImages(TorchDataset[tuple[Tensor, Tensor]]):
    """Whole images and multi-label targets of a data set, for scoring: uint8 [3, H, W] and fp32 [classes]."""

    def __init__(self, dataset: Dataset, size: tuple[int, int]) -> None:
        self.dataset, self.size = dataset, size

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, position: int) -> tuple[Tensor, Tensor]:
        sample = self.dataset.samples[position]
        image, _, _ = read_image(self.dataset.root, sample.path)
        labels = torch.zeros(len(self.dataset.classes))
        labels[list(sample.labels)] = 1.0
        return torch.from_numpy(view_image(image, WHOLE, self.size)), labels


def training_positions(store: TargetStore, hold_out: Sequence[str]) -> npt.NDArray[np.int64]:
    """Return the usable positions of `store` whose domain is not held out."""
    domains = store.index.domains
    kept = [position for position in store.usable.tolist() if domains[position] not in hold_out]
    return np.array(kept, dtype=np.int64)


def _donors(positions: npt.NDArray[np.int64], config: TrainConfig) -> npt.NDArray[np.int64]:
    """For the `shuffled` control: position -> another position, a fixed cyclic permutation drawn from the seed."""
    donor = np.zeros(int(positions.max(initial=0)) + 1, dtype=np.int64)
    order = np.random.default_rng([config.seed, 1]).permutation(positions)
    donor[order] = np.roll(order, 1)
    return donor


def _cycled(maps: Tensor, scale: Tensor, words: Tensor) -> tuple[Tensor, Tensor]:
    """Spread a donor's present rows over the words of the receiver; returns scale and maps."""
    present = (scale > 0).all(1)  # [B, M]; a word of direction leaves a gap in the mirrored view
    first = present.int().argsort(dim=1, descending=True, stable=True)  # rows with a map, then those without
    rows = first.gather(1, torch.arange(words.shape[1]) % present.sum(1).clamp_min(1)[:, None])  # [B, M]
    scale = scale.gather(2, rows[:, None].expand_as(scale))
    maps = maps.gather(2, rows[:, None, :, None, None].expand_as(maps))
    return scale, maps
