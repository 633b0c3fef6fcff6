"""Reading: random samples of a cache by several libraries, and training's image loader with targets and without."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader

from lfi_pipeline.benchmarks.config import LoaderConfig, ReadsConfig
from lfi_pipeline.benchmarks.index import peak_rss, reset_peak
from lfi_pipeline.benchmarks.inputs import SIZE, drawn_maps, maps_spec, payload_of, photo_cache, write_targets
from lfi_pipeline.benchmarks.outcome import Asked, Measurement, Outcome, interleaved, require
from lfi_pipeline.core.progress import progress_bar
from lfi_pipeline.targets import SampleTargets, TargetStore
from lfi_pipeline.training.config import DataConfig
from lfi_pipeline.training.data import MAPS, Batch, TargetImages, whole_batch
from lfi_pipeline.training.sampler import Tickets

ARRAYS = ("maps", "scale", "words", "kept", "image_embedding")
Positions = npt.NDArray[np.int64]
Read = Callable[[Positions], dict[str, npt.NDArray[np.generic]]]


def bench_reads(config: ReadsConfig) -> Outcome:
    """Read samples at random, one at a time and in batches, from one thread, with the files in the page cache.

    Raises:
        BenchmarkError: two readers differ in any array of any sample that was looked at.
    """
    with tempfile.TemporaryDirectory(prefix="lfi-bench-") as scratch:
        root = config.targets or _synthetic(Path(scratch) / "targets", config)
        store = TargetStore.open(root)
        readers: dict[str, Read] = {
            "TargetStore": lambda positions: _plain(store.read_many(positions)),
            "tensorstore": _tensorstore(root),
            "zarr-python": _zarr(root),
        }
        _check(readers, store)
        reset_peak()  # writing the synthetic cache does not count
        return _timed(config, store, readers)


def _timed(config: ReadsConfig, store: TargetStore, readers: dict[str, Read]) -> Outcome:
    rng = np.random.default_rng(3)
    counts = {name: max(1, config.reads // (10 if name == "zarr-python" else 1)) for name in readers}
    cases: dict[str, tuple[int, Callable[[], None]]] = {}
    for name, read in readers.items():
        one = store.read if name == "TargetStore" else None

        def singly(read: Read = read, count: int = counts[name], one: Callable[[int], object] | None = one) -> None:
            for position in rng.integers(0, len(store), count):
                if one is None:
                    read(np.asarray([position]))
                else:
                    one(int(position))

        def in_batches(read: Read = read, count: int = counts[name]) -> None:
            for first in range(0, count, config.batch):
                read(rng.integers(0, len(store), min(config.batch, count - first)))

        cases[f"{name}, one at a time"] = counts[name], singly
        cases[f"{name}, batches of {config.batch}"] = counts[name], in_batches
    seconds = interleaved({case: run for case, (_, run) in cases.items()}, config.rounds, name="reads")
    rates = {case: cases[case][0] / value for case, value in seconds.items()}
    spec = store.spec
    shape = f"{len(store)}x{len(spec.layers)}x{spec.words_per_sample}x{spec.grid[0]}x{spec.grid[1]}"
    measured = []
    for case, rate in rates.items():
        way = case.partition(", ")[2]
        ratio = rate / rates[f"zarr-python, {way}"]
        for metric, value, unit in (("rate", rate, "samples/s"), ("over zarr-python", ratio, "")):
            measured.append(Measurement(case=case, shape=shape, metric=metric, value=value, unit=unit))
    peak = peak_rss() / 2**20
    measured.append(Measurement(case="whole process", shape=shape, metric="peak RSS", value=peak, unit="MiB"))
    single, batched = (rates[f"TargetStore, {way}"] for way in ("one at a time", f"batches of {config.batch}"))
    return Outcome(
        benchmark="reads",
        checked="all readers give equal arrays",
        measurements=tuple(measured),
        asked=(
            Asked(
                what="TargetStore over zarr-python, one at a time",
                value=single / rates["zarr-python, one at a time"],
                least=15,
            ),
            Asked(what="TargetStore, one at a time, samples/s", value=single, least=10_000),
            Asked(what=f"TargetStore, batches of {config.batch}, samples/s", value=batched, least=10_000),
        ),
        notes=("One calling thread, files in the page cache, all five arrays of one view; rounds take turns.",),
    )


def _synthetic(out: Path, config: ReadsConfig) -> Path:
    spec = maps_spec(samples=config.samples, maps_shape=(4, 16, 16, 16), samples_per_shard=config.samples_per_shard)
    write_targets(out, spec, lambda positions: payload_of(spec, drawn_maps(spec, positions)))
    return out


def _plain(targets: SampleTargets) -> dict[str, npt.NDArray[np.generic]]:
    return {name: getattr(targets, name) for name in ARRAYS}


def _tensorstore(root: Path) -> Read:
    import tensorstore as ts

    context = ts.Context({"cache_pool": {"total_bytes_limit": 64 * 2**20}})
    handles = {
        name: ts.open(
            {
                "driver": "zarr3",
                "kvstore": {"driver": "file", "path": f"{(root / 'views/full' / name).absolute()}/"},
                "recheck_cached_data": False,
                "recheck_cached_metadata": False,
            },
            context=context,
            open=True,
            read=True,
        ).result()
        for name in ARRAYS
    }

    def read(positions: Positions) -> dict[str, npt.NDArray[np.generic]]:
        futures = {name: handle[positions].read() for name, handle in handles.items()}
        return {name: future.result() for name, future in futures.items()}

    return read


def _zarr(root: Path) -> Read:
    import zarr

    group = zarr.open_group(str(root), mode="r")
    arrays: dict[str, Any] = {name: group[f"views/full/{name}"] for name in ARRAYS}

    def read(positions: Positions) -> dict[str, npt.NDArray[np.generic]]:
        if len(positions) == 1:
            first = int(positions[0])
            return {name: array[first : first + 1] for name, array in arrays.items()}
        return {name: array.oindex[positions] for name, array in arrays.items()}

    return read


def _check(readers: dict[str, Read], store: TargetStore) -> None:
    rng = np.random.default_rng(2)
    for count in (1, 16):
        positions = rng.integers(0, len(store), count)
        expected = _plain(store.read_many(positions))
        alone = _plain(store.read(int(positions[0])))
        for name, read in readers.items():
            found = read(positions)
            for array in ARRAYS:
                same = np.array_equal(found[array], expected[array]) and np.array_equal(
                    alone[array], expected[array][0]
                )
                require(same, f"{name} must give the same {array} as TargetStore at {positions.tolist()}.")


READS: dict[str, frozenset[str]] = {"none": frozenset(), "lfi": frozenset({MAPS})}
"""Targets that are read, by objective."""
CROP = (224, 224)


def bench_loader(config: LoaderConfig) -> Outcome:
    """Time decoding, cropping to 224 pixels and collating, as training does it, for objectives `none` and `lfi`.

    Raises:
        BenchmarkError: a batch's images depend on the objective or the workers, or its targets are not the cache's.
    """
    with tempfile.TemporaryDirectory(prefix="lfi-bench-") as scratch:
        store = photo_cache(Path(scratch), config.images)
        _loader_check(store, config)
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
    with progress_bar(total=(config.rounds + 1) * len(rates), desc="loader", unit="run", leave=False) as bar:
        for number in range(config.rounds + 1):
            for workers in config.workers:
                for objective in READS if number % 2 else list(READS)[::-1]:
                    rate = _rate(_loader(store, config, objective, workers, number))
                    if number:  # the first round warms the page cache
                        rates[workers, objective].append(rate)
                    bar.update()
    return rates


def _loader(store: TargetStore, config: LoaderConfig, objective: str, workers: int, seed: int = 0) -> DataLoader[Batch]:
    data = DataConfig(targets=store.path, epochs=1, batch_size=config.batch_size, seed=seed)
    return DataLoader(
        TargetImages(store, data, [CROP], READS[objective]),
        batch_sampler=Tickets(store.usable, data),
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


def _loader_check(store: TargetStore, config: LoaderConfig) -> None:
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
