"""Random reads of whole samples: TargetStore against zarr-python and raw tensorstore on the same files."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lfi_pipeline.benchmarks.memory import peak_rss, reset_peak
from lfi_pipeline.benchmarks.outcome import Asked, Measurement, Outcome, require
from lfi_pipeline.benchmarks.synthetic import drawn_maps, maps_spec, payload_of, write_targets
from lfi_pipeline.benchmarks.timing import interleaved
from lfi_pipeline.errors import ConfigError
from lfi_pipeline.targets import SampleTargets, TargetStore

ARRAYS = ("maps", "scale", "words", "kept", "image_embedding")
Positions = npt.NDArray[np.int64]
Read = Callable[[Positions], dict[str, npt.NDArray[np.generic]]]


@dataclass(frozen=True, kw_only=True, slots=True)
class ReadsConfig:
    """What to read.

    Attributes:
        targets: a cache; None writes a synthetic one of `samples`.
        samples: of the synthetic cache, each 4 layers x 16 words x 16 x 16 cells.
        samples_per_shard: of the synthetic cache.
        reads: samples that a fast reader reads in a round; zarr-python reads a tenth of them.
        batch: samples of one `read_many`.
        rounds: of which the median counts.
    """

    targets: Path | None = None
    samples: int = 4096
    samples_per_shard: int = 1024
    reads: int = 1000
    batch: int = 64
    rounds: int = 7

    def __post_init__(self) -> None:
        for name in ("samples", "samples_per_shard", "reads", "batch", "rounds"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be 1 or more, got {getattr(self, name)}.")


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
