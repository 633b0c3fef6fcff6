"""Each benchmark on tiny sizes: what it gives back, and that wrong results are found before anything is timed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lfi_pipeline.benchmarks import Outcome, codec, reads
from lfi_pipeline.benchmarks import codec as codec_candidates
from lfi_pipeline.benchmarks import reads as index
from lfi_pipeline.benchmarks import reads as loader
from lfi_pipeline.core.errors import BenchmarkError, ConfigError
from lfi_pipeline.targets import TargetStore
from lfi_pipeline.training.data import TargetImages

READS = reads.ReadsConfig(samples=20, samples_per_shard=16, reads=10, batch=4, rounds=1)
LOADER = loader.LoaderConfig(images=12, batch_size=4, workers=(0,), rounds=1)
INDEX = index.IndexConfig(samples=300, samples_per_shard=128, rounds=1)


def cases(outcome: Outcome, metric: str) -> dict[str, float]:
    values = {each.case: each.value for each in outcome.measurements if each.metric == metric}
    assert all(np.isfinite(value) and value >= 0 for value in values.values())
    return values


def test_codec_has_a_row_for_each_pair_and_for_the_cache() -> None:
    outcome = codec.bench_codec(codec.CodecConfig(samples=2, rounds=1))
    size = cases(outcome, "bytes a sample")
    assert set(cases(outcome, "KL 99 %")) == set(cases(outcome, "encode")) == set(cases(outcome, "decode")) == set(size)
    pairs = len(codec_candidates.candidates()) * len(codec.compressors())
    assert len(size) == pairs + len(codec.CODECS)
    assert size["resize: fp16, none"] == 4 * 16 * 256 * 2
    assert size["resize: uint8_sqrt, none"] == 4 * 16 * 256 + 4 * 16 * 2
    # What the writer wrote is what its codec and compressor make, plus checksums and the shards' indices.
    cache = size["resize: cache: uint8_sqrt, zstd 3"]
    assert 0 <= cache - size["resize: uint8_sqrt, zstd 3"] < 200
    assert size["resize: uint5_cbrt, zstd 3"] < 0.7 * size["resize: uint8_sqrt, zstd 3"]
    kl = cases(outcome, "KL mean")
    assert kl["resize: cache: uint8_sqrt, zstd 3"] == pytest.approx(kl["resize: uint8_sqrt, none"])
    passes = cases(outcome, "passes")
    assert passes == {case: float(size[case] <= 16_000 and kl[case] <= 0.005) for case in size}
    assert [asked.met for asked in outcome.asked] == [True, True]


@pytest.mark.parametrize("fault", ["lossy compressor", "lost mass"])
def test_codec_finds_what_is_wrong(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if fault == "lossy compressor":
        lossy = codec.compressors()["none"]
        monkeypatch.setattr(type(lossy), "decode", lambda self, data: bytes(len(data)))
    else:
        monkeypatch.setattr(codec_candidates.Half, "decode", lambda self, codes, side: codes.astype(np.float32) / 2)
    with pytest.raises(BenchmarkError, match="Nothing was timed"):
        codec.bench_codec(codec.CodecConfig(samples=1, rounds=1))


def test_reads_compares_three_readers_two_ways(tmp_path: Path) -> None:
    outcome = reads.bench_reads(READS)
    assert len(cases(outcome, "rate")) == 6
    ratio = cases(outcome, "over zarr-python")
    assert ratio["zarr-python, one at a time"] == ratio["zarr-python, batches of 4"] == 1
    assert cases(outcome, "peak RSS")["whole process"] > 1
    assert outcome.asked[0].value == ratio["TargetStore, one at a time"]


def test_reads_of_a_cache_that_is_there(tiny_targets: Path) -> None:
    outcome = reads.bench_reads(reads.ReadsConfig(targets=tiny_targets, reads=10, batch=4, rounds=1))
    assert outcome.measurements[0].shape == "24x2x6x8x8"


@pytest.mark.parametrize("array", ["maps", "words", "image_embedding"])
def test_reads_finds_a_reader_that_differs(array: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right = reads._zarr

    def wrong(root: Path) -> reads.Read:
        read = right(root)
        return lambda positions: {name: values + (name == array) for name, values in read(positions).items()}

    monkeypatch.setattr(reads, "_zarr", wrong)
    with pytest.raises(BenchmarkError, match=f"zarr-python must give the same {array}"):
        reads.bench_reads(READS)


def test_loader_gives_a_ratio_for_each_number_of_workers() -> None:
    outcome = loader.bench_loader(LOADER)
    assert set(cases(outcome, "with over without")) == {"0 workers"}
    assert outcome.asked[0].least == 0.9
    with pytest.raises(ConfigError, match="fill two batches of 32"):
        loader.LoaderConfig(images=40)
    with pytest.raises(ConfigError, match="workers"):
        loader.LoaderConfig(workers=())


def test_loader_finds_maps_of_another_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    right = TargetImages._targets
    monkeypatch.setattr(
        TargetImages, "_targets", lambda self, positions, flips: right(self, (positions + 1) % 12, flips)
    )
    with pytest.raises(BenchmarkError, match="must be the cache's"):
        loader.bench_loader(LOADER)


def test_index_is_opened_in_a_process_of_its_own() -> None:
    outcome = index.bench_index(INDEX)
    seconds = cases(outcome, "time")
    assert 0 < seconds["open"] <= seconds["open and columns"]
    assert set(cases(outcome, "added RSS")) == set(seconds)


def test_index_finds_a_wrong_row_and_a_process_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(index, "labels_of", lambda position: (0,))
        with pytest.raises(BenchmarkError, match="Rows of the index"):
            index.bench_index(INDEX)
    monkeypatch.setattr(index, "PROBE", "lfi_pipeline.benchmarks.no_such_probe")
    with pytest.raises(BenchmarkError, match="no_such_probe"):
        index.bench_index(INDEX)


def test_the_probe_counts_from_where_it_starts(tiny_targets: Path) -> None:
    from lfi_pipeline.benchmarks.reads import probe

    found = probe(tiny_targets)
    store = TargetStore.open(tiny_targets)
    rows = found["rows"]
    assert isinstance(rows, dict)
    assert rows[12] == [
        store.index.keys[12],
        store.index.paths[12],
        list(store.index.labels[12]),
        int(store.index.image_crc32c[12]),
    ]
