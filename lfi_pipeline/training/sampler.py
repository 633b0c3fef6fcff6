"""The training images of each step, and what runs that share one read must have in common."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from torch.utils.data import Sampler

from lfi_pipeline.core.errors import ConfigError
from lfi_pipeline.targets import TargetStore
from lfi_pipeline.training.config import DataConfig, TrainConfig


def read_of(config: TrainConfig) -> tuple[DataConfig, int, str, str]:
    """Return the settings that must be equal for runs to be fed from one read."""
    return config.data, config.grad_accum_steps, config.val_split, config.task


def common_data(configs: Sequence[TrainConfig]) -> DataConfig:
    first = configs[0]
    for config in configs[1:]:
        if read_of(config) != read_of(first):
            raise ConfigError(
                "Runs that are fed from one read must agree on what is read (data, augmentation, epochs, batch size, "
                "seed), on the task, the validation split and on grad_accum_steps. Train the others in a command of "
                "their own."
            )
    return first.data


def require_apart(outs: Sequence[Path]) -> None:
    if len({out.resolve() for out in outs}) < len(outs):
        raise ConfigError(f"Each run must have a directory of its own, got {', '.join(map(str, outs))}.")


def require_samples(store: TargetStore, data: DataConfig) -> npt.NDArray[np.int64]:
    """Return the positions that `data` trains on, of which there is one at least."""
    known = set(store.index.domains)
    unknown = [domain for domain in data.hold_out if domain not in known]
    if unknown:
        raise ConfigError(
            f"hold_out must name domains of the cache ({sorted(known)}), got {unknown}. A domain that the cache "
            "lacks is not trained on as it is."
        )
    positions = training_positions(store, data.hold_out)
    if not len(positions):
        raise ConfigError(f"{data.targets} has no usable sample left to train on.")
    return positions


def require_views(store: TargetStore, data: DataConfig, *, reads_targets: bool) -> None:
    """Check that the cache holds the views of the images that the augmentation needs.

    Raises:
        ConfigError: images are to be mirrored, targets are read, and the cache has no view `hflip`.
    """
    if reads_targets and data.augmentation.hflip > 0 and "hflip" not in store.spec.views and not data.mirror_maps:
        raise ConfigError(
            f"{data.targets} has no 'hflip' view, and what the teacher saw is not what it would see of the mirrored "
            "image. Extract with `views=['full', 'hflip']`, or train with `hflip=0`, or accept mirrored maps with "
            "`mirror_maps=True`."
        )


Ticket = tuple[int, int]  # (epoch, position in the cache)


def training_positions(store: TargetStore, hold_out: Sequence[str]) -> npt.NDArray[np.int64]:
    """Return the usable positions of `store` whose domain is not held out."""
    domains = store.index.domains
    kept = [position for position in store.usable.tolist() if domains[position] not in hold_out]
    return np.array(kept, dtype=np.int64)


def steps_of_epoch(images: int, batch_size: int) -> int:
    """Return the steps of one epoch: its whole batches, and one where there are fewer images than a batch."""
    return max(1, images // batch_size)


def epochs_for(steps: int, images: int, batch_size: int) -> int:
    """Return the fewest epochs that come to `steps` steps at least."""
    return max(1, math.ceil(steps / steps_of_epoch(images, batch_size)))


class ResumableBatchSampler(Sampler[list[Ticket]]):
    """Lists of tickets for all epochs, starting at any step; each epoch is a fresh permutation.

    A step's batch is cut into `pieces` lists, of which those numbered `mine` are yielded: several where gradients are
    accumulated, a part of all where processes share the batch. Neighbours (2i, 2i + 1), which are mixed, stay in one
    list.

    Raises:
        ConfigError: fewer pairs of images in a batch than pieces.
    """

    def __init__(
        self,
        positions: npt.NDArray[np.int64],
        data: DataConfig,
        *,
        start: int = 0,
        pieces: int = 1,
        mine: Sequence[int] = (0,),
    ) -> None:
        self.positions, self.data, self.start, self.mine = positions, data, start, tuple(mine)
        self.size = min(data.batch_size, len(positions))
        self.steps_per_epoch = steps_of_epoch(len(positions), data.batch_size)
        pairs = (self.size + 1) // 2
        if pairs < pieces:
            raise ConfigError(
                f"A batch of {self.size} images cannot be shared by {pieces} (processes times accumulated passes): "
                f"each needs two images. Use batches of {2 * pieces} images or more."
            )
        bounds = [min(2 * (pairs * piece // pieces), self.size) for piece in range(pieces + 1)]
        self.cuts = [(bounds[piece], bounds[piece + 1]) for piece in self.mine]

    @property
    def steps(self) -> int:
        """Steps of the whole run."""
        return self.steps_per_epoch * self.data.epochs

    def __len__(self) -> int:
        return (self.steps - self.start) * len(self.cuts)

    def __iter__(self) -> Iterator[list[Ticket]]:
        for epoch in range(self.start // self.steps_per_epoch, self.data.epochs):
            order = np.random.default_rng([self.data.seed, epoch]).permutation(self.positions)
            first = self.start % self.steps_per_epoch if epoch == self.start // self.steps_per_epoch else 0
            for step in range(first, self.steps_per_epoch):
                batch = order[step * self.size : (step + 1) * self.size]
                for begin, end in self.cuts:
                    yield [(epoch, int(position)) for position in batch[begin:end]]
