"""Reading a cache, loading training batches, and opening a large index: speed and memory.

Memory of an index is measured in a process of its own, on Linux from /proc, since `getrusage` there starts a process
with the peak of its parent.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader

from lfi_pipeline.benchmarks.config import IndexConfig, LoaderConfig, ReadsConfig
from lfi_pipeline.benchmarks.inputs import (
    SIZE,
    drawn_maps,
    labels_of,
    maps_spec,
    payload_of,
    photo_cache,
    planned_samples,
    write_targets,
)
from lfi_pipeline.benchmarks.outcome import Asked, Measurement, Outcome, interleaved, require
from lfi_pipeline.core.errors import BenchmarkError
from lfi_pipeline.core.runtime import progress_bar
from lfi_pipeline.targets import SampleTargets, ShardPayload, TargetStore
from lfi_pipeline.training.config import DataConfig
from lfi_pipeline.training.data import MAPS, Batch, TargetImages, whole_batch
from lfi_pipeline.training.sampler import ResumableBatchSampler

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
            arrays = read(positions)
            for array in ARRAYS:
                same = np.array_equal(arrays[array], expected[array]) and np.array_equal(
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
    measured, requirements = [], []
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
        requirements.append(Asked(what=f"images/s with targets over without, {case}", value=ratio, least=0.90))
    return Outcome(
        benchmark="loader",
        checked="images do not depend on the objective, and targets are the cache's own",
        measurements=tuple(measured),
        asked=tuple(requirements),
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
        batch_sampler=ResumableBatchSampler(store.usable, data),
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
        loaded = batch.maps[row].numpy()
        require(any(np.array_equal(loaded, maps) for maps in stored), f"Maps of sample {position} must be the cache's.")


def peak_rss() -> int:
    """Bytes of the largest resident set so far, or since `reset_peak`."""
    return _status("VmHWM") or _ru_maxrss()


def rss() -> int:
    """Bytes of the resident set now, where the system tells (Linux); else the peak so far."""
    return _status("VmRSS") or _ru_maxrss()


def reset_peak() -> None:
    """Let the peak start from the resident set of now, where the system can (Linux)."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _status(field: str) -> int:
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:")), 0)


def _ru_maxrss() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


PROBE = "lfi_pipeline.benchmarks.reads"


def bench_index(config: IndexConfig) -> Outcome:
    """Open a cache whose maps are one cell each, so that the index is all there is, and touch what training touches.

    Raises:
        BenchmarkError: a row of the index is not what was written.
    """
    with tempfile.TemporaryDirectory(prefix="lfi-bench-") as scratch:
        root = Path(scratch) / "targets"
        _write(root, config)
        probes = [_probe(root) for _ in progress_bar(range(config.rounds), desc="open", unit="process", leave=False)]
    _index_check(probes[0], config.samples)
    shape = f"{config.samples} samples, {config.samples_per_shard} a shard"
    measured = []
    for step in ("open", "open and columns"):
        for metric, key, unit, scale in (("time", "seconds", "s", 1.0), ("added RSS", "bytes", "MB", 1e-6)):
            value = statistics.median(probe[step][key] * scale for probe in probes)
            measured.append(Measurement(case=step, shape=shape, metric=metric, value=value, unit=unit))
    seconds, memory = measured[-2].value, measured[-1].value
    return Outcome(
        benchmark="index",
        checked="first, middle and last rows are what was written",
        measurements=tuple(measured),
        asked=(
            Asked(what=f"seconds to open {config.samples:,} samples with columns", value=seconds, most=2.0),
            Asked(what=f"MB added by {config.samples:,} samples with columns", value=memory, most=300.0),
        ),
        notes=(
            "TargetStore.open; then the columns that training reads: keys, paths, labels, image checksums. Each round "
            "is a fresh process in which the packages are imported already; memory is the peak after minus the "
            "resident set before. Files are in the page cache.",
        ),
    )


def _write(root: Path, config: IndexConfig) -> None:
    spec = maps_spec(
        samples=config.samples, maps_shape=(1, 1, 1, 1), samples_per_shard=config.samples_per_shard, embedding_dim=1
    )

    def payload(positions: range) -> ShardPayload:
        checksums = np.arange(positions.start, positions.stop, dtype=np.uint32) + 1
        return payload_of(spec, np.ones((len(positions), 1, 1, 1, 1), np.float32), checksums)

    write_targets(root, spec, payload, plan=planned_samples(config.samples))


def _probe(root: Path) -> dict[str, Any]:
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        [sys.executable, "-m", PROBE, str(root)], env=env, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise BenchmarkError(f"The process that opens {root} failed: {done.stderr.strip()[-500:]}")
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def _index_check(probed: dict[str, Any], samples: int) -> None:
    expected = {
        str(i): [f"{i:012d}", f"train2017/{i:012d}.jpg", list(labels_of(i)), i + 1]
        for i in (0, samples // 2, samples - 1)
    }
    require(probed["rows"] == expected, f"Rows of the index must be {expected}, got {probed['rows']}.")


def probe(root: Path) -> dict[str, object]:
    """Open `root`, read the columns that training reads, and return seconds and bytes added to the resident set."""
    reset_peak()
    before, began = rss(), time.perf_counter()
    store = TargetStore.open(root)
    opened = {"seconds": time.perf_counter() - began, "bytes": max(0, peak_rss() - before)}
    index = store.index
    keys, paths, labels, checksums = index.keys, index.paths, index.labels, index.image_crc32c
    columns = {"seconds": time.perf_counter() - began, "bytes": max(0, peak_rss() - before)}
    places = (0, len(store) // 2, len(store) - 1)
    rows = {i: [str(keys[i]), str(paths[i]), [int(label) for label in labels[i]], int(checksums[i])] for i in places}
    return {"open": opened, "open and columns": columns, "rows": rows}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(probe(Path(sys.argv[1]))) + "\n")
