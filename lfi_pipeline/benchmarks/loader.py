"""The image loader of training with targets against the same loader without."""

from __future__ import annotations

import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from lfi_pipeline.benchmarks.outcome import Asked, Measurement, Outcome, require
from lfi_pipeline.benchmarks.photo_cache import photo_cache
from lfi_pipeline.benchmarks.photos import SIZE
from lfi_pipeline.errors import ConfigError
from lfi_pipeline.targets import TargetStore
from lfi_pipeline.training.config import StreamConfig
from lfi_pipeline.training.data import MAPS, Batch, TargetImages, whole_batch
from lfi_pipeline.training.tickets import Tickets

READS: dict[str, frozenset[str]] = {"none": frozenset(), "lfi": frozenset({MAPS})}
"""Targets that are read, by objective."""
CROP = (224, 224)


@dataclass(frozen=True, kw_only=True, slots=True)
class LoaderConfig:
    """What to load.

    Attributes:
        images: JPEG files of 500 x 375 pixels; a round loads each once.
        batch_size: images of one batch.
        workers: loader processes, several to compare.
        rounds: of which the median counts.
    """

    images: int = 512
    batch_size: int = 32
    workers: tuple[int, ...] = (0, 1, 2)
    rounds: int = 5

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.rounds < 1 or not self.workers or min(self.workers) < 0:
            raise ConfigError(
                "batch_size and rounds must be 1 or more and workers some numbers of 0 or more, got "
                f"{self.batch_size}, {self.rounds}, {self.workers}."
            )
        if self.images < 2 * self.batch_size:
            raise ConfigError(f"images must fill two batches of {self.batch_size} or more, got {self.images}.")


def bench_loader(config: LoaderConfig) -> Outcome:
    """Time decoding, cropping to 224 pixels and collating, as training does it, for objectives `none` and `lfi`.

    Raises:
        BenchmarkError: a batch's images depend on the objective or the workers, or its targets are not the cache's.
    """
    with tempfile.TemporaryDirectory(prefix="lfi-bench-") as scratch:
        store = photo_cache(Path(scratch), config.images)
        _check(store, config)
        rates = _rates(store, config)
    shape = f"{config.images}x{SIZE[0]}x{SIZE[1]} to {CROP[0]}x{CROP[1]}, batch {config.batch_size}"
    measured, asked = [], []
    for workers in config.workers:
        plain, targets = (rates[workers, objective] for objective in READS)
        ratio = statistics.median(b / a for a, b in zip(plain, targets, strict=True))
        case = f"{workers} workers"
        for metric, value, unit in (
            ("without targets", statistics.median(plain), "images/s"),
            ("with targets", statistics.median(targets), "images/s"),
            ("with over without", ratio, ""),
        ):
            measured.append(Measurement(case=case, shape=shape, metric=metric, value=value, unit=unit))
        asked.append(Asked(what=f"images/s with targets over without, {case}", value=ratio, least=0.90))
    return Outcome(
        benchmark="loader",
        checked="images do not depend on the objective, and targets are the cache's own",
        measurements=tuple(measured),
        asked=tuple(asked),
        notes=(
            "Synthetic textures with a 1/f spectrum, JPEG quality 90; targets 4 layers x 16 words x 16 x 16 cells, "
            "views full and hflip; the clock starts at the first batch, so that starting workers does not count.",
        ),
    )


def _rates(store: TargetStore, config: LoaderConfig) -> dict[tuple[int, str], list[float]]:
    rates: dict[tuple[int, str], list[float]] = {(w, o): [] for w in config.workers for o in READS}
    with tqdm(total=(config.rounds + 1) * len(rates), desc="loader", unit="run", leave=False) as bar:
        for number in range(config.rounds + 1):
            for workers in config.workers:
                for objective in READS if number % 2 else list(READS)[::-1]:
                    rate = _rate(_loader(store, config, objective, workers, number))
                    if number:  # the first round warms the page cache
                        rates[workers, objective].append(rate)
                    bar.update()
    return rates


def _loader(store: TargetStore, config: LoaderConfig, objective: str, workers: int, seed: int = 0) -> DataLoader[Batch]:
    stream = StreamConfig(targets=store.path, epochs=1, batch_size=config.batch_size, seed=seed)
    return DataLoader(
        TargetImages(store, stream, [CROP], READS[objective]),
        batch_sampler=Tickets(store.usable, stream),
        collate_fn=whole_batch,
        num_workers=workers,
    )


def _rate(loader: DataLoader[Batch]) -> float:
    """Images a second from the first batch on."""
    batches = iter(loader)
    next(batches)
    began = time.perf_counter()
    images = sum(len(batch) for batch in batches)
    return images / (time.perf_counter() - began)


def _check(store: TargetStore, config: LoaderConfig) -> None:
    for workers in config.workers:
        plain, full = (next(iter(_loader(store, config, objective, workers))) for objective in READS)
        same = torch.equal(plain.images[CROP], full.images[CROP]) and torch.equal(plain.windows, full.windows)
        require(same, f"Images must not depend on the objective; they do with {workers} workers.")
    loader = _loader(store, config, "lfi", 0)
    tickets = next(iter(loader.batch_sampler or ()))
    batch = next(iter(loader))
    assert batch.maps is not None
    for row, (_, position) in enumerate(tickets):
        stored = [store.read(position, view).maps for view in store.spec.views]
        found = batch.maps[row].numpy()
        require(any(np.array_equal(found, maps) for maps in stored), f"Maps of sample {position} must be the cache's.")
